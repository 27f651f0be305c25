"""The reference library calls the plugin: add, check, del, its cache, a chain of real plugins."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, cast

import pytest

from cni.codec import decode, matched
from tests.e2e.bare import Bare, bare
from tests.e2e.cluster import NETWORK, Cluster, Failed
from tests.e2e.inventory import Bag, inventory, settle
from tests.e2e.machine import inside, run

CLIENT = Path(os.environ.get("NOCTULE_BUILD", "build")) / "libcni"
PLUGINS = "/opt/cni/bin:/usr/lib/cni"
VERSIONS = ("0.4.0", "1.0.0")
TUNING = {"type": "tuning", "sysctl": {"net.ipv4.ip_default_ttl": "77"}}
PORTMAP = {"type": "portmap", "capabilities": {"portMappings": True}}
PORTS = [{"hostPort": 8000, "containerPort": 8080, "protocol": "tcp"}]


@dataclass
class Library:
    """The Go program on n1, with a cache and lists of its own."""

    cluster: Cluster
    folder: Path

    def conflist(self, version: str, *chained: dict[str, Any], **fields: Any) -> Path:
        """Write a network configuration list with Noctule first; return its path."""
        first = {
            "type": "noctule", "service": "web",
            "key": {"file": str(self.cluster.base / "mesh.key")},
            "socket": str(self.cluster.socket("n1")),
            "capabilities": {"aliases": True, "ips": True, "mac": True}, **fields,
        }  # fmt: skip
        path = self.folder / f"{version}.conflist"
        content = {"cniVersion": version, "name": NETWORK, "plugins": [first, *chained]}
        path.write_text(json.dumps(content))
        return path

    def __call__(self, verb: str, conflist: Path, *container: Bare, **capabilities: Any) -> Any:
        """Return what the library got; Failed with the plugin's error."""
        arguments = [part for one in container for part in (one.name, one.netns)]
        variables = {
            "CNI_PATH": PLUGINS, "CNI_CACHE": str(self.folder / "cache"),
            "CAP_ARGS": json.dumps(capabilities), "PATH": os.environ["PATH"],
        }  # fmt: skip
        done = inside("/run/netns/n1", str(CLIENT), verb, str(conflist), *arguments,
                      check=False, env=variables)  # fmt: skip
        printed = json.loads(done.stdout) if done.stdout.strip() else None
        if done.returncode != 0:
            raise Failed(printed or {}, done.stderr)
        return printed

    def cached(self) -> list[str]:
        """Return the names in the library's cache."""
        return sorted(path.name for path in self.folder.glob("cache/results/*"))


@pytest.fixture(scope="module")
def library(lone: Cluster) -> Library:
    assert CLIENT.exists(), f"{CLIENT} is missing: make libcni builds it"
    folder = lone.base / "libcni"
    folder.mkdir()
    made = Library(lone, folder)
    # What stays for good when first used, the daemon's open files and portmap's own two chains,
    # is there before anything is compared.
    first = bare(lone, "first", "web")
    conflist = made.conflist("1.0.0", PORTMAP)
    made("add", conflist, first, portMappings=PORTS)
    made("del", conflist, first, portMappings=PORTS)
    first.kill()
    del lone.containers["first"]
    return made


@pytest.fixture
def box(library: Library, lone: Cluster) -> Iterator[Bare]:
    """An empty container; what a test leaves in it or on its node is a failure."""
    made = bare(lone, "box", "web")
    try:
        before = _picture(lone, made)
        yield made
        settle(lambda: _picture(lone, made), before)
    finally:
        made.kill()
        del lone.containers["box"]


def _picture(cluster: Cluster, box: Bare) -> Bag:
    """Links, elements, files, and what iptables holds, which portmap writes to."""
    bag = inventory(cluster, "n1", box)
    rules = inside("/run/netns/n1", "iptables-save", "-t", "nat").stdout
    bag.update(f"iptables {line}" for line in rules.splitlines() if line.startswith("-A"))
    return bag


def test_versions(library: Library) -> None:
    conflist = library.conflist("1.0.0")
    supported = library("version", conflist)["noctule"]
    assert set(VERSIONS) <= set(supported)
    assert sorted(library("validate", conflist)) == ["aliases", "ips", "mac"]
    with pytest.raises(Failed, match="does not support config version"):
        library("validate", library.conflist("0.2.0"))


@pytest.mark.parametrize("version", VERSIONS)
def test_life(library: Library, box: Bare, version: str) -> None:
    conflist = library.conflist(version)
    result = library("add", conflist, box)
    box.result = result
    assert result["cniVersion"] == version
    (interface,) = (one for one in result["interfaces"] if one.get("sandbox"))
    assert interface["name"] == "eth0"
    assert interface["sandbox"] == box.netns
    (ip,) = (one for one in result["ips"] if "." in one["address"])
    assert ("version" in ip) == (version == "0.4.0")
    shown = json.loads(inside(box.netns, "ip", "-j", "address", "show", "eth0").stdout)[0]
    assert interface["mac"] == shown["address"]
    assert box.address in [one["local"] for one in shown["addr_info"]]

    assert library("cached", conflist, box) == result
    library("check", conflist, box)

    # The container is attached; saying so again must not harm it.
    with pytest.raises(Failed) as caught:
        library("add", conflist, box)
    assert caught.value.code, caught.value
    assert "eth0" in str(caught.value)
    library("check", conflist, box)

    inside(box.netns, "ip", "address", "del", ip["address"], "dev", "eth0")
    with pytest.raises(Failed, match=box.address) as caught:
        library("check", conflist, box)
    assert caught.value.code == 102

    library("del", conflist, box)
    assert library.cached() == []
    assert library("cached", conflist, box) is None
    library("del", conflist, box)


@pytest.mark.parametrize("version", VERSIONS)
def test_chain(library: Library, box: Bare, version: str) -> None:
    conflist = library.conflist(version, TUNING, PORTMAP)
    assert "portMappings" in library("validate", conflist)
    box.result = library("add", conflist, box, portMappings=PORTS)
    # Each plugin got the one before's result, or portmap would not know where to send.
    rules = inside("/run/netns/n1", "iptables-save", "-t", "nat").stdout
    assert f"--to-destination {box.address}:8080" in rules
    assert inside(box.netns, "sysctl", "-n", "net.ipv4.ip_default_ttl").stdout == "77\n"

    # portmap 1.1 is not asked: it fails the check of whatever has no IPv6 address.
    checked = library.conflist(version, TUNING)
    library("check", checked, box)
    inside(box.netns, "sysctl", "-q", "-w", "net.ipv4.ip_default_ttl=64")
    with pytest.raises(Failed, match="ip_default_ttl"):
        library("check", checked, box)

    library("del", library.conflist(version, TUNING, PORTMAP), box, portMappings=PORTS)
    assert library.cached() == []


def test_capabilities(library: Library, box: Bare) -> None:
    conflist = library.conflist("1.0.0", service=None)
    wanted = "10.64.16.77/12"
    box.result = library(
        "add", conflist, box, aliases={NETWORK: ["nobody", "api"]}, ips=[wanted],
        mac="02:4e:0a:40:10:4d",
    )  # fmt: skip
    assert wanted in [one["address"] for one in box.result["ips"]]
    (replica,) = library.cluster.status("n1")["replicas"]
    assert (replica["service"], replica["mac"]) == ("api", "02:4e:0a:40:10:4d")
    library("del", conflist, box)


def test_del_when_the_namespace_is_gone(library: Library, lone: Cluster, box: Bare) -> None:
    """The library calls DEL with its cached result; a second container shows that it is ours."""
    conflist = library.conflist("1.0.0")
    library("add", conflist, box)
    other = bare(lone, "other", "web")
    library("add", conflist, other)
    other.kill()
    library("del", conflist, other)
    assert library.cached() == [f"{NETWORK}-box-eth0"]
    library("check", conflist, box)
    library("del", conflist, box)
    del lone.containers["other"]


def test_gc_and_status(library: Library, lone: Cluster, box: Bare) -> None:
    """The library has both from 1.2 on, for lists of 1.1.0; an older one's client says so."""
    conflist = library.conflist("1.1.0")
    try:
        library("status", conflist)
    except Failed as failed:
        assert "older than 1.2" in str(failed)
        return
    lost = library.conflist("1.1.0", key={"file": "/nowhere.key"})
    with pytest.raises(Failed, match=r"/nowhere\.key") as caught:
        library("status", lost)
    assert caught.value.code == 50

    conflist = library.conflist("1.1.0")
    library("add", conflist, box)
    other = bare(lone, "other", "web")
    library("add", conflist, other)
    # What the library still has in its cache it deletes itself; for the rest there is our GC.
    (library.folder / "cache" / "results" / f"{NETWORK}-other-eth0").unlink()
    library("gc", conflist, box)
    assert len(lone.status("n1")["replicas"]) == 1
    library("check", conflist, box)
    library("del", conflist, box)
    other.kill()
    del lone.containers["other"]


def test_a_failed_add_leaves_no_cache(library: Library, box: Bare) -> None:
    broken = library.conflist("1.0.0", {"type": "nowhere"})
    with pytest.raises(Failed, match="nowhere"):
        library("add", broken, box)
    # The chain broke after us, and the library does not clean up: its caller calls del.
    assert library.cached() == []
    library("del", library.conflist("1.0.0"), box)


def test_names_match_as_gos_decoder_matches_them(tmp_path: Path) -> None:
    """The same texts, with fields in all spellings and twice, to Go's decoder and to ours."""
    random = Random(8)
    texts = [_arguments(random) for _ in range(1000)]
    file = tmp_path / "texts"
    file.write_text(json.dumps(texts))
    theirs = json.loads(run(str(CLIENT), "decode", str(file)).stdout)
    assert len(theirs) == len(texts)
    for text, expected in zip(texts, theirs, strict=True):
        assert _matched(text) == expected, text
    assert len({json.dumps(one) for one in theirs}) > 100


def _arguments(random: Random) -> str:
    """Return an object of capability arguments, of which some are not known."""

    def spelt(name: str) -> str:
        other = random.choice((name, name.upper(), name.capitalize(), name.swapcase()))
        return random.choice((other, other, other.replace("s", "ſ").replace("k", "\u212a"), "x"))

    def number() -> str:
        return str(random.randrange(1, 100))

    def texts() -> str:
        return json.dumps([random.choice("abc") for _ in range(random.randrange(1, 3))])

    def one(*values: tuple[str, Callable[[], str]]) -> str:
        # No two keys are equal: runtimes write what they hold in a map.
        chosen = (random.choice(values) for _ in range(random.randrange(6)))
        spellings = {spelt(name): value for name, value in chosen}
        return "{" + ", ".join(f'"{name}": {value()}' for name, value in spellings.items()) + "}"

    return one(
        ("bandwidth", lambda: one(("ingressRate", number), ("egressRate", number))),
        ("dns", lambda: one(("servers", texts), ("searches", texts))),
        ("mask", lambda: json.dumps(random.choice("abc"))),
    )


def _matched(text: str) -> dict[str, Any]:
    """Return what our decoder makes of it, without what it does not know."""
    known = {"bandwidth": ("ingressRate", "egressRate"), "dns": ("servers", "searches"), "mask": ()}
    whole: Any = matched(cast(dict[str, object], decode(text.encode())), tuple(known))
    found: dict[str, Any] = {"bandwidth": {}}
    for name in known.keys() & whole.keys():
        if name == "mask":
            found[name] = whole[name]
        else:
            inner = matched(whole[name], known[name])
            found[name] = {key: inner[key] for key in inner if key in known[name]}
    return found


def test_the_client_itself(library: Library) -> None:
    """A program that swallowed errors would make the tests above pass."""
    conflist = str(library.conflist("1.0.0"))
    for arguments, word in (
        (["add"], "usage"),
        (["add", conflist], "needs a CONTAINER"),
        (["destroy", conflist, "box", "/run/netns/n1"], "no such verb"),
        (["add", "/nowhere.conflist", "box", "/run/netns/n1"], "/nowhere.conflist"),
    ):
        done = run(str(CLIENT), *arguments, check=False)
        assert done.returncode == 1
        assert word in json.loads(done.stdout)["msg"]
