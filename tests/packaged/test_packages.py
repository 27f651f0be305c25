"""The Debian package on machines without Python, under systemd: from installation to purge.

The tests are stations of two nodes' life and run in this order: n1 is upgraded under traffic
and calls, reinstalled, downgraded, and removed while containers are attached; n2 had been
installed from a checkout before, and is purged.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tarfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from io import BytesIO
from pathlib import Path

import pytest

from daemon.version import VERSION
from tests import vanishing
from tests.e2e.cluster import PLUGIN, POLICY, Failed
from tests.e2e.conftest import telling
from tests.e2e.container import Container
from tests.e2e.machine import inside, run, until
from tests.packaged.booted import STARTING, TRIXIE, Booted, oldest_root
from tests.packaged.stream import Stream

CHECKOUT = Path(__file__).resolve().parents[2]
NEXT = f"{VERSION}+next"
PACKAGE = Path(f"/src/dist/noctule_{VERSION}_amd64.deb")
NODES = ("n1", "n2")
LIBRARY = "/usr/lib/noctule"
EXPOSURE = {"noctuled.service": 33, "noctule-resolver.service": 22}
"""What ``systemd-analyze security`` says, times ten; packaging/README.md has the reasons."""

pytestmark = pytest.mark.timeout(400)


@pytest.fixture(scope="module")
def cluster(request: pytest.FixtureRequest) -> Iterator[Booted]:
    """Two nodes with the package and a policy, of both releases if the package runs on both; n2
    had an installation from a checkout."""
    booted = Booted()
    with telling(booted, request):
        booted.boot({"n1": TRIXIE, "n2": oldest_root(PACKAGE)})
        from_checkout(booted, "n2")
        with ThreadPoolExecutor() as side_by_side:
            said = dict(zip(NODES, side_by_side.map(partial(install, booted), NODES), strict=True))
        assert "from a checkout" not in said["n1"]
        assert said["n2"].count("from a checkout") == 2, said["n2"]
        for node in NODES:
            assert booted.pid(node, "noctuled.service") == 0, "started without a configuration"
            booted.configure(node)
        booted.start(*NODES)
        booted.meet(*NODES)
        booted.apply(POLICY)
        until(lambda: meshed(booted), "the mesh")
        yield booted


def meshed(cluster: Booted) -> bool:
    """Tell whether each node has a path to the other."""
    return all(
        peer["quality"] > 0
        for node in NODES
        for peer in cluster.status(node)["nodes"]
        if peer["node"] in NODES
    )


def from_checkout(cluster: Booted, node: str) -> None:
    """Leave what packaging/install.sh leaves, as far as it meets the package."""
    folder = cluster.base / "from-checkout"
    folder.mkdir()
    script = CHECKOUT / "packaging/install.sh"
    run("bash", str(script), "--no-deps", "--root", str(folder))
    # Not --root: it would resolve the way into the machine, and end up outside.
    run("cp", "-a", f"{folder}/.", f"{cluster.within(node, '/')}/.")


def install(cluster: Booted, node: str, package: Path = PACKAGE) -> str:
    """Install a package file; return what dpkg and its scripts said."""
    shutil.copy(package, cluster.within(node, "/tmp/noctule.deb"))
    done = cluster.command(node, "dpkg", "--install", "/tmp/noctule.deb")
    return str(done.stdout + done.stderr)


def renumbered(package: Path, version: str, folder: Path) -> Path:
    """Return a copy of `package` that calls itself `version`.

    A Debian package is an ar archive (deb(5)): its data are copied, its control files edited.
    """
    control = subprocess.run(
        ["dpkg-deb", "--ctrl-tarfile", package], check=True, capture_output=True
    )
    edited = BytesIO()
    with (
        tarfile.open(fileobj=BytesIO(control.stdout)) as old,
        tarfile.open(fileobj=edited, mode="w") as new,
    ):
        for member in old:
            file = old.extractfile(member)
            text = file.read().replace(VERSION.encode(), version.encode()) if file else b""
            member.size = len(text)
            new.addfile(member, BytesIO(text))
    archive, members = package.read_bytes(), []
    position = len(b"!<arch>\n")
    while position < len(archive):
        header = archive[position : position + 60]
        size = int(header[48:58])
        members.append(
            (header[:16].strip().decode(), archive[position + 60 : position + 60 + size])
        )
        position += 60 + size + size % 2
    copy = folder / f"noctule_{version}_amd64.deb"
    with copy.open("wb") as out:
        out.write(b"!<arch>\n")
        for name, content in members:
            if name.startswith("control.tar"):
                name, content = "control.tar", edited.getvalue()
            out.write(f"{name:16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n".encode())
            out.write(content + b"\n" * (len(content) % 2))
    return copy


def version(cluster: Booted, node: str) -> str:
    """Return which release is current."""
    target = cluster.sh(node, f"readlink {LIBRARY}/current").strip()
    assert target.startswith("release/")
    return target.removeprefix("release/").rpartition(".")[0]


def releases(cluster: Booted, node: str) -> list[str]:
    """Return the names of all releases on disk."""
    return sorted(cluster.sh(node, f"ls {LIBRARY}/release").split())


class Churn:
    """ADD and DEL of one container, over and over, until told to stop."""

    def __init__(self, cluster: Booted, container: Container) -> None:
        self.calls, self.failures = 0, list[str]()
        self._cluster, self._container = cluster, container
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._stopping.is_set():
            for verb in ("ADD", "DEL"):
                try:
                    self._cluster.cni(verb, self._container)
                except Exception as error:
                    self.failures.append(f"{verb}: {error}")
                self.calls += 1

    def stop(self) -> None:
        """Wait for the end of the pair of calls that is under way."""
        self._stopping.set()
        self._thread.join()


def waiting_add(cluster: Booted, container: Container) -> subprocess.Popen[str]:
    """Start an ADD that has been executed and has not got its configuration yet."""
    process = subprocess.Popen(
        cluster.plugin(container.node), env=cluster.environment("ADD", container), text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    # In read(2) on stdin: the interpreter is up, nothing but main is imported.
    until(lambda: _system_call(process.pid) == "0 0x0", "the executable to read")
    return process


def _system_call(nsenter: int) -> str:
    """Number and first argument of the system call that nsenter's child, the plugin, is in."""
    children = vanishing.children(nsenter)
    if len(children) != 1:
        return ""
    plugin = Path(f"/proc/{children[0]}")
    if "/release/" not in (vanishing.link(plugin / "exe") or ""):
        return ""
    return " ".join((vanishing.read(plugin / "syscall") or "").split()[:2])


@pytest.fixture(scope="module")
def web(cluster: Booted) -> Container:
    return cluster.add("web.1", "n1", "web")


@pytest.fixture(scope="module")
def api(cluster: Booted) -> Container:
    return cluster.add("api.1", "n2", "api")


@pytest.fixture(scope="module")
def stream(web: Container, api: Container) -> Iterator[Stream]:
    """A connection that lives from the first test to the end of n1."""
    with Stream(web, api, 8080) as made:
        yield made


@pytest.fixture(scope="module")
def newer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package, with a later version."""
    return renumbered(PACKAGE, NEXT, tmp_path_factory.mktemp("newer"))


def test_there_is_no_python(cluster: Booted) -> None:
    names = "-name 'python*' -o -name 'libpython*'"
    found = cluster.sh("n1", rf"find / -xdev -path {LIBRARY} -prune -o \( {names} \) -print")
    assert found.split() == []
    # The tool works there too, beside whatever the caller's environment says.
    told = json.loads(cluster.sh("n1", "PYTHONHOME=/nowhere noctulectl status --json"))
    assert told["node"] == "n1"


def test_verbs_under_the_sandbox(cluster: Booted, web: Container, stream: Stream) -> None:
    cluster.cni("CHECK", web)
    fresh = cluster.add("web.2", "n1", "web")
    cluster.delete(fresh.name)
    stream.flows()
    assert json.loads(cluster.sh("n1", "noctulectl verify --json"))["differences"] == []


@pytest.mark.parametrize("unit", EXPOSURE)
def test_exposure(cluster: Booted, unit: str) -> None:
    threshold = f"--threshold={EXPOSURE[unit]}"
    cluster.command(
        "n1",
        "systemd-analyze",
        "security",
        "--offline=true",
        threshold,
        f"/lib/systemd/system/{unit}",
    )


@pytest.mark.parametrize("unit", EXPOSURE)
def test_a_killed_daemon_comes_back(
    cluster: Booted, web: Container, stream: Stream, unit: str
) -> None:
    before = cluster.pid("n1", unit)
    cluster.sh("n1", f"kill -KILL {before}")
    until(
        lambda: cluster.active("n1", unit) and cluster.pid("n1", unit) != before,
        f"{unit} to be started again",
    )
    cluster.cni("CHECK", web)
    stream.flows()


@pytest.mark.parametrize("unit", ["noctuled.service", "noctule-resolver.service"])
def test_one_that_hangs_is_started_again(cluster: Booted, unit: str, stream: Stream) -> None:
    """Under a shorter limit than the package's, which a build would have to wait for."""
    folder = f"/run/systemd/system/{unit}.d"
    cluster.sh("n1", f"mkdir -p {folder}; echo '[Service]\nWatchdogSec=20' >{folder}/watch.conf")
    cluster.sh("n1", f"systemctl daemon-reload; systemctl restart {unit}")
    hanging = cluster.pid("n1", unit)
    cluster.sh("n1", f"kill -STOP {hanging}")
    until(lambda: cluster.pid("n1", unit) not in (0, hanging), f"another {unit}", 120)
    until(lambda: cluster.active("n1", unit), f"{unit} to be ready", STARTING)
    stream.flows()
    cluster.sh("n1", f"rm {folder}/watch.conf; systemctl daemon-reload; systemctl restart {unit}")
    until(lambda: cluster.active("n1", unit), f"{unit} to be ready", STARTING)


def test_upgrade_under_traffic_and_calls(
    cluster: Booted, newer: Path, web: Container, stream: Stream
) -> None:
    early = cluster.launch("early", "n1", "web")
    call = waiting_add(cluster, early)
    daemon = cluster.pid("n1", "noctuled.service")
    churn = Churn(cluster, cluster.launch("churn", "n1", "web"))
    stream.gap = 0.0
    try:
        install(cluster, "n1", newer)
    finally:
        churn.stop()
    print(f"longest gap in {stream.count} answers: {stream.gap * 1e3:.0f} ms; calls: {churn.calls}")
    assert churn.failures == []
    assert churn.calls >= 4
    assert version(cluster, "n1") == NEXT
    assert cluster.pid("n1", "noctuled.service") not in (0, daemon)
    # What was executed before the upgrade finds the rest of its own release.
    said, complaint = call.communicate(json.dumps(cluster.config(early)), timeout=60)
    assert call.returncode == 0, said + complaint
    early.result = json.loads(said)
    cluster.cni("CHECK", early)
    cluster.delete("early")
    cluster.delete("churn")
    cluster.cni("CHECK", web)
    stream.flows()
    assert json.loads(cluster.sh("n1", "noctulectl verify --json"))["differences"] == []


@pytest.mark.full  # two more installations take a minute
def test_reinstalled_and_downgraded(
    cluster: Booted, newer: Path, web: Container, stream: Stream
) -> None:
    before = releases(cluster, "n1")
    assert len(before) == 2
    for package, now in ((newer, NEXT), (PACKAGE, VERSION)):
        install(cluster, "n1", package)
        assert version(cluster, "n1") == now
    assert len(releases(cluster, "n1")) == 2
    assert not set(before) & set(releases(cluster, "n1"))
    cluster.cni("CHECK", web)
    stream.flows()


def test_a_checkout_gives_way(cluster: Booted) -> None:
    """n2 runs the package's code, though a checkout was installed there first."""
    pid = cluster.pid("n2", "noctuled.service")
    executable = cluster.sh("n2", f"readlink /proc/{pid}/exe")
    assert executable.startswith(f"{LIBRARY}/release/{VERSION}.")
    assert cluster.sh("n2", f"readlink {PLUGIN}").strip() == f"{LIBRARY}/current/noctule"


def test_removal_leaves_traffic_and_del(cluster: Booted, web: Container, stream: Stream) -> None:
    done = cluster.command("n1", "dpkg", "--remove", "noctule")
    assert "1 containers are attached" in done.stderr
    assert not cluster.active("n1", "noctuled.service")
    stream.flows()
    late = cluster.launch("late", "n1", "web")
    with pytest.raises(Failed) as failed:
        cluster.cni("ADD", late)
    assert failed.value.code == 11
    cluster.cni("DEL", late)
    cluster.cni("DEL", web)
    assert "macsec" not in inside(web.netns, "ip", "-d", "link").stdout
    assert cluster.sh("n1", "ls /run/noctule/attachments") == ""


def test_installed_again(cluster: Booted, web: Container) -> None:
    install(cluster, "n1", PACKAGE)
    until(lambda: cluster.pid("n1", "noctuled.service"), "the daemon to start by itself")
    web.result = cluster.cni("ADD", web)
    cluster.cni("DEL", web)


def test_purge_leaves_nothing(cluster: Booted, api: Container) -> None:
    cluster.cni("DEL", api)
    cluster.sh("n2", "rm -r /opt/noctule /usr/local/bin/noctule* /etc/systemd/system/noctule*")
    cluster.command("n2", "dpkg", "--purge", "noctule")
    found = cluster.sh(
        "n2", "find / -xdev -name '*noctule*' -not -path '/proc/*' -not -path '/sys/*'"
    )
    assert found.split() == []
