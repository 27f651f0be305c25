"""The lab's decisions: what is built, kept, installed and said to qemu."""

from __future__ import annotations

import dataclasses
import gzip
import lzma
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.lab import __main__ as lab
from tests.lab import image, kernel, kvm, machine, native, payload, sources
from tests.lab.recipe import ROOTS, Recipe, Root, for_guest, load, requirements

ROOT = Root("trixie", "minbase", ("a", "b"), ("c",))
RECIPE = Recipe(
    roots={".": ROOT}, kernels={"1": "trixie"}, deps=("x==1",), dev=("y==1",), code=(b"code",)
)


def rooted(**changes: Any) -> Recipe:
    """The recipe with another root."""
    return dataclasses.replace(RECIPE, roots={".": dataclasses.replace(ROOT, **changes)})


# The recipe.


def test_equal_recipes_share_a_digest() -> None:
    assert dataclasses.replace(RECIPE).digest == RECIPE.digest


def test_the_order_of_packages_is_not_part_of_the_recipe() -> None:
    assert rooted(packages=("b", "a")).digest == RECIPE.digest


@pytest.mark.parametrize(
    "other",
    [
        rooted(packages=("a",)),
        rooted(packages=("a", "b", "c"), borrowed=()),
        rooted(suite="bookworm"),
        rooted(variant="essential"),
        dataclasses.replace(RECIPE, roots={"srv": ROOT}),
        dataclasses.replace(RECIPE, kernels={"1": "bookworm"}),
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
    assert recipe.roots == ROOTS
    assert all("==" in line for line in recipe.deps + recipe.dev)


# Where packages come from.

TARGETS = """\
Debian|bookworm|main|http://mirror.invalid/debian/
Debian|bookworm|main|http://mirror.invalid/debian/
Debian|bookworm|contrib|http://mirror.invalid/debian/
Debian|bookworm-updates|main|http://mirror.invalid/debian/
Debian|bookworm-backports|main|http://mirror.invalid/debian/
Debian|bookworm-security|main|http://mirror.invalid/security/
Third Party|trixie|main|http://other.invalid/
"""


def archives(targets: str, suite: str) -> list[str]:
    return [line.split("] ")[1] for line in sources.debian_lines(targets, suite)]


@pytest.mark.parametrize("suite", ["bookworm", "trixie"])
def test_only_debians_own_main_archives_of_the_release_are_used(suite: str) -> None:
    assert archives(TARGETS, suite) == [
        f"http://mirror.invalid/debian/ {suite} main",
        f"http://mirror.invalid/debian/ {suite}-updates main",
        f"http://mirror.invalid/security/ {suite}-security main",
    ]


def test_sid_has_neither_updates_nor_security_updates() -> None:
    assert archives(TARGETS, "sid") == ["http://mirror.invalid/debian/ sid main"]


def test_of_two_releases_that_apt_knows_each_archive_is_taken_once() -> None:
    both = TARGETS + TARGETS.replace("bookworm", "trixie")
    assert archives(both, "trixie") == archives(TARGETS, "trixie")


def test_a_machine_without_debian_sources_is_told_what_to_do() -> None:
    with pytest.raises(sources.NoSourcesError, match="apt-get update"):
        sources.debian_lines("Third Party|bookworm|main|http://other.invalid/\n", "trixie")


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
    for name in ("a", "b", "c", "d.new-x", "c.sid"):
        (tmp_path / name).mkdir()
    (tmp_path / "kvm.json").touch()
    image.prune(tmp_path, "c")
    left = {path.name for path in tmp_path.iterdir()}
    assert len(left & {"a", "b"}) == 1
    assert left >= {"c", "c.sid", "d.new-x", "kvm.json"}


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


def zstd(data: bytes) -> bytes:
    return subprocess.run(["zstd", "-qc"], input=data, stdout=subprocess.PIPE, check=True).stdout


def bzimage(stream: bytes) -> bytes:
    """A kernel's file as the boot protocol has it, with a size after the compressed stream."""
    payload = stream + (4711).to_bytes(4, "little")
    image = bytearray(0x400)
    image[0x1F1] = 1  # the set-up code's sectors, beside the first
    image[0x24C:0x250] = len(payload).to_bytes(4, "little")
    return bytes(image) + payload + b"what follows"


@pytest.mark.parametrize("pack", [lzma.compress, zstd])
def test_a_packed_kernel_is_unpacked(pack: Callable[[bytes], bytes]) -> None:
    assert kernel.uncompressed(bzimage(pack(b"\x7fELF"))) == b"\x7fELF"


def test_a_kernel_packed_in_another_way_is_left_alone() -> None:
    packed = bzimage(gzip.compress(b"\x7fELF"))
    assert kernel.uncompressed(packed) == packed


@pytest.mark.parametrize("place", ["boot/vmlinuz-1", "usr/lib/modules/1/vmlinuz"])
def test_a_kernel_is_found_wherever_its_release_puts_it(tmp_path: Path, place: str) -> None:
    (tmp_path / place).parent.mkdir(parents=True)
    (tmp_path / place).touch()
    (tmp_path / "vmlinuz").symlink_to(place)
    assert kernel.packed(tmp_path) == tmp_path / place


def test_modules_are_unpacked_where_they_lie(tmp_path: Path) -> None:
    (tmp_path / "net").mkdir()
    (tmp_path / "net/a.ko.xz").write_bytes(lzma.compress(b"a"))
    (tmp_path / "b.ko.zst").write_bytes(zstd(b"b"))
    (tmp_path / "c.ko").write_bytes(b"c")
    (tmp_path / "modules.dep").touch()
    kernel.unpack_modules(tmp_path)
    files = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert files == {"a.ko", "b.ko", "c.ko", "modules.dep"}
    assert (tmp_path / "net/a.ko").read_bytes() == b"a"
    assert (tmp_path / "b.ko").read_bytes() == b"b"


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
    booted = kernel.Kernel(Path("/i/kernels/1"))
    root, packed, modules = machine.disks(image.Image(Path("/i")), Path("/p.tar"), booted)[1::2]
    assert "snapshot=on" in root
    assert "readonly=on" in packed
    assert "readonly=on" in modules


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
        ["run", "--memory", "2G", "--timeout", "9.5", "--icount", "--kernel", "6.1", "a.sh"]
    )
    assert (args.memory, args.timeout, args.icount, args.kernel) == ("2G", 9.5, True, "6.1")
    assert not args.native


@pytest.mark.parametrize(
    "line",
    [[], ["run"], ["fly"], ["run", "--cpus", "many", "a.sh"], ["run", "--kernel", "2.4", "a.sh"]],
)
def test_nonsense_is_refused(line: list[str]) -> None:
    with pytest.raises(SystemExit):
        lab.parser().parse_args(line)
