"""The lab's decisions: what is built, kept, installed and said to qemu."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from tests.lab import __main__ as lab
from tests.lab import image, kernel, kvm, machine, native, payload, sources
from tests.lab.recipe import PACKAGES, Recipe, for_guest, load, requirements

RECIPE = Recipe(packages=("a", "b"), bare=("c",), deps=("x==1",), dev=("y==1",), code=(b"code",))


# The recipe.


def test_equal_recipes_share_a_digest() -> None:
    assert dataclasses.replace(RECIPE).digest == RECIPE.digest


def test_the_order_of_packages_is_not_part_of_the_recipe() -> None:
    assert dataclasses.replace(RECIPE, packages=("b", "a")).digest == RECIPE.digest


@pytest.mark.parametrize(
    "other",
    [
        dataclasses.replace(RECIPE, packages=("a",)),
        dataclasses.replace(RECIPE, bare=()),
        dataclasses.replace(RECIPE, deps=("x==2",)),
        dataclasses.replace(RECIPE, dev=("y==2",)),
        dataclasses.replace(RECIPE, deps=("y==1",), dev=("x==1",)),
        dataclasses.replace(RECIPE, code=(b"other",)),
    ],
)
def test_every_part_of_the_recipe_changes_the_digest(other: Recipe) -> None:
    assert other.digest != RECIPE.digest


def test_requirements_are_lines_without_comments() -> None:
    assert requirements("# why\n\na==1  # because\nb==2\n") == ("a==1", "b==2")


def test_linters_stay_on_the_host() -> None:
    assert for_guest(("pytest==9", "Pygments==2", "ruff==1", "pytest_timeout==2")) == (
        "pytest==9",
        "Pygments==2",
        "pytest_timeout==2",
    )


def test_every_requirement_of_this_checkout_is_pinned() -> None:
    recipe = load()
    assert recipe.packages == PACKAGES
    assert all("==" in line for line in recipe.deps + recipe.dev)


# Where packages come from.

TARGETS = """\
Debian|bookworm|main|http://mirror.invalid/debian/
Debian|bookworm|main|http://mirror.invalid/debian/
Debian|bookworm|contrib|http://mirror.invalid/debian/
Debian|bookworm-security|main|http://mirror.invalid/security/
Debian|trixie|main|http://mirror.invalid/debian/
Third Party|bookworm|main|http://other.invalid/
"""


def test_only_debians_own_main_archives_of_the_release_are_used() -> None:
    lines = sources.debian_lines(TARGETS)
    assert [line.split("] ")[1] for line in lines] == [
        "http://mirror.invalid/debian/ bookworm main",
        "http://mirror.invalid/security/ bookworm-security main",
    ]


def test_a_machine_without_debian_sources_is_told_what_to_do() -> None:
    with pytest.raises(sources.NoSourcesError, match="apt-get update"):
        sources.debian_lines("Third Party|bookworm|main|http://other.invalid/\n")


def test_only_options_about_reaching_a_mirror_are_inherited() -> None:
    proxy = 'Acquire::http::Proxy "http://proxy.invalid";'
    dump = f'Acquire "";\nAcquire::http "";\n{proxy}\nAcquire::cdrom::mount "/media/cdrom/";\n'
    assert sources.inherited_options(dump) == [proxy]


# Images.


def test_the_newest_two_images_are_kept() -> None:
    assert image.stale({"old": 1.0, "older": 0.0, "new": 3.0, "current": 4.0}) == ["old", "older"]


def test_a_finished_image_is_used_without_building(tmp_path: Path) -> None:
    (tmp_path / RECIPE.digest).mkdir()
    assert image.ready(RECIPE, tmp_path).folder == tmp_path / RECIPE.digest


def test_the_cache_follows_xdg(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    assert image.cache_folder() == Path("/elsewhere/noctule/lab")


def test_pruning_removes_images_and_nothing_else(tmp_path: Path) -> None:
    for name in ("a", "b", "c", "d.new-x"):
        (tmp_path / name).mkdir()
    (tmp_path / "kvm.json").touch()
    image.prune(tmp_path, "c")
    left = {path.name for path in tmp_path.iterdir()}
    assert len(left & {"a", "b"}) == 1
    assert left >= {"c", "d.new-x", "kvm.json"}


# Kernel and initramfs.

MODULES_DEP = """\
kernel/fs/ext4/ext4.ko: kernel/fs/jbd2/jbd2.ko kernel/lib/crc16.ko
kernel/fs/jbd2/jbd2.ko:
kernel/lib/crc16.ko:
kernel/drivers/block/virtio_blk.ko: kernel/drivers/virtio/virtio.ko
kernel/drivers/virtio/virtio.ko:
"""


def test_every_driver_comes_after_what_it_needs() -> None:
    order = kernel.in_load_order(MODULES_DEP, ("virtio_blk", "built_in", "ext4"))
    assert [Path(path).stem for path in order] == [
        "virtio",
        "virtio_blk",
        "crc16",
        "jbd2",
        "ext4",
    ]


def test_cpio_entries_are_aligned_and_ended() -> None:
    archive = kernel.Cpio()
    archive.directory("bin")
    archive.file("init", b"hello", 0o755)
    data = archive.finish()
    assert len(data) % 4 == 0
    assert data.startswith(b"070701")
    assert data.count(b"070701") == 3
    assert b"TRAILER!!!" in data


def test_a_kernel_not_packed_by_xz_is_left_alone() -> None:
    packed = bytearray(0x1000)
    packed[0x24C] = 16  # the payload's length
    packed[0x200:0x204] = b"\x1f\x8b\x08\x00"  # gzip's magic
    assert kernel.uncompressed(bytes(packed)) == packed


# What each boot brings along.


def test_a_script_of_the_checkout_runs_in_the_guests_copy(tmp_path: Path) -> None:
    script = tmp_path / "tests" / "a.sh"
    script.parent.mkdir()
    script.touch()
    text, carried = payload.guest_command(script, ["two words"], tmp_path)
    assert not carried
    assert text.endswith("exec bash /opt/noctule/checkout/tests/a.sh 'two words'\n")


def test_any_other_script_is_carried_along(tmp_path: Path) -> None:
    script = tmp_path / "a.py"
    script.touch(mode=0o755)
    text, carried = payload.guest_command(script, [], tmp_path / "checkout")
    assert carried
    assert text.endswith("exec /run/lab/a.py\n")


def test_an_exported_tree_needs_no_git(tmp_path: Path) -> None:
    for name in ("cni/main.py", "cni/__pycache__/main.pyc", ".venv/bin/python"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert payload.source_files(tmp_path) == [Path("cni/main.py")]


def test_the_environment_finds_installed_code_before_anything_else() -> None:
    assert payload.ENVIRONMENT["PYTHONPATH"].startswith("/opt/noctule/lib:/opt/noctule/deps")
    assert "export TERM='a b'\n" in payload.environment({"TERM": "a b"})


# The machine.


def test_counting_instructions_needs_one_emulated_cpu() -> None:
    arguments = machine.accelerator(machine.Options(cpus=8, icount=True, kvm=True))
    assert arguments[arguments.index("-smp") + 1] == "1"
    assert arguments[arguments.index("-icount") + 1] == "shift=0,sleep=off"
    assert "kvm" not in arguments


def test_emulation_uses_every_cpu() -> None:
    arguments = machine.accelerator(machine.Options(cpus=3))
    assert "tcg,thread=multi" in arguments
    assert arguments[arguments.index("-smp") + 1] == "3"


def test_the_image_is_never_written() -> None:
    root, packed = machine.disks(image.Image(Path("/i")), Path("/p.tar"))[1::2]
    assert "snapshot=on" in root
    assert "readonly=on" in packed


def test_an_answer_about_kvm_holds_until_the_machine_boots_again(tmp_path: Path) -> None:
    path = tmp_path / "kvm.json"
    assert kvm.recall(path, "boot 1") is None
    kvm.remember(path, "boot 1", False)
    assert kvm.recall(path, "boot 1") is False
    assert kvm.recall(path, "boot 2") is None
    assert list(tmp_path.iterdir()) == [path]


def test_native_hides_what_it_installs_from_the_machine() -> None:
    text = native.preparation(Path("/w/root"), Path("/packages"))
    for target in ("/opt", "/usr/local"):
        assert f"-o lowerdir={target},upperdir=/w/root/mnt{target}," in text
    assert "mount -t tmpfs lab /run/netns" in text


# The command line.


def test_what_follows_the_script_is_the_scripts() -> None:
    args = lab.parser().parse_args(["run", "--cpus", "4", "a.sh", "--timeout", "x"])
    assert (args.cpus, args.script, args.arguments) == (4, Path("a.sh"), ["--timeout", "x"])
    assert args.timeout is None


def test_options_of_a_run() -> None:
    args = lab.parser().parse_args(
        ["run", "--memory", "2G", "--timeout", "9.5", "--icount", "--native", "a.sh"]
    )
    assert (args.memory, args.timeout, args.icount, args.native) == ("2G", 9.5, True, True)


@pytest.mark.parametrize("line", [[], ["run"], ["fly"], ["run", "--cpus", "many", "a.sh"]])
def test_nonsense_is_refused(line: list[str]) -> None:
    with pytest.raises(SystemExit):
        lab.parser().parse_args(line)
