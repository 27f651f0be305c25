"""A container resolves the services it may dial, and no other, whatever happens to the daemon.

Asked twice over: by libc, as a program in the container would (getaddrinfo, with a
resolv.conf of its own), and by single queries.
"""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import dnslib
import pytest

from netconf.names import NAMESERVER
from tests import vanishing
from tests.e2e.bare import bare
from tests.e2e.cluster import POLICY, Cluster
from tests.e2e.conftest import telling
from tests.e2e.container import Container
from tests.e2e.machine import inside, socket_in, until

CLOSED = POLICY.replace("  - {from: web, to: api, ports: [tcp/80, icmp]}\n", "")
NXDOMAIN = 3

LIBC = """
import json, socket, sys
found = {}
for name in sys.argv[1:]:
    try:
        found[name] = sorted({info[4][0] for info in socket.getaddrinfo(name, 80)})
    except socket.gaierror as error:
        found[name] = error.errno
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def cluster(_machine: None, request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """Only n1 runs. web may dial api, api may dial db."""
    with telling(Cluster(), request) as made:
        made.start("n1")
        made.apply(POLICY)
        for name in ("api", "db", "web"):
            box = made.add(name, "n1", name, 8080)
            inside(box.netns, "ip", "link", "set", "lo", "up")
        yield made


def query(
    container: Container, name: str, kind: str = "A", over: socket.SocketKind = socket.SOCK_DGRAM
) -> dnslib.DNSRecord:
    """Ask the container's name server; OSError if nobody listens."""
    message = bytes(dnslib.DNSRecord.question(name, kind).pack())
    framed = over is socket.SOCK_STREAM
    with socket_in(container.netns, over) as sock:
        sock.settimeout(20)
        sock.connect((NAMESERVER, 53))
        sock.send(len(message).to_bytes(2, "big") + message if framed else message)
        answer = sock.recv(2000)
    return dnslib.DNSRecord.parse(answer[2:] if framed else answer)


def resolve(container: Container, name: str) -> str | None:
    """Return the address of a name; None if nobody listens, "" if there is no such name."""
    try:
        answer = query(container, name)
    except OSError:
        return None
    return str(answer.a.rdata) if answer.rr else ""


def libc(cluster: Cluster, container: Container, *names: str) -> dict[str, list[str] | int]:
    """Return what getaddrinfo finds in the container: addresses, or an error number."""
    conf = cluster.base / "resolv.conf"
    Path("/etc/resolv.conf").touch()  # what is mounted over must be there
    conf.write_text(f"nameserver {NAMESERVER}\nsearch example.org\noptions timeout:5\n")
    done = inside(
        container.netns,
        "unshare", "--mount", "sh", "-c",
        f'mount --bind {conf} "$(realpath /etc/resolv.conf)" && exec "$@"', "sh",
        sys.executable, "-I", "-S", "-c", LIBC, *names,
    )  # fmt: skip
    found: dict[str, list[str] | int] = json.loads(done.stdout)
    return found


def test_add_waited_for_the_name_server(cluster: Cluster) -> None:
    assert "no names for new containers" not in cluster.log("n1")
    for over in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
        answer = query(cluster.containers["web"], "api", over=over)
        assert [str(rr.rdata) for rr in answer.rr] == [cluster.vip("api")]


def test_what_it_may_dial_and_nothing_else(cluster: Cluster) -> None:
    api, db = ([cluster.vip(name), cluster.vip(name, field="vip6")] for name in ("api", "db"))
    unknown = socket.EAI_NONAME
    assert libc(cluster, cluster.containers["web"], "api", "db", "web", "example.org") == {
        "api": api, "db": unknown, "web": unknown, "example.org": unknown,
    }  # fmt: skip
    assert libc(cluster, cluster.containers["api"], "db", "DB", "web") == {
        "db": db, "DB": db, "web": unknown,
    }  # fmt: skip
    assert query(cluster.containers["db"], "api").header.rcode == NXDOMAIN
    back = ".".join(reversed(api[0].split("."))) + ".in-addr.arpa"
    assert str(query(cluster.containers["web"], back, "PTR").a.rdata) == "api."
    assert query(cluster.containers["db"], back, "PTR").header.rcode == NXDOMAIN


def test_the_name_leads_there(cluster: Cluster) -> None:
    address = resolve(cluster.containers["web"], "api")
    assert address
    assert cluster.containers["web"].greet(address, 80) == "api"


def test_a_policy_that_takes_the_edge_takes_the_name(cluster: Cluster) -> None:
    web = cluster.containers["web"]
    vip = cluster.vip("api")
    cluster.apply(CLOSED)
    until(lambda: resolve(web, "api") == "", "the name to go")
    cluster.apply(POLICY)
    until(lambda: resolve(web, "api") == vip, "the name to come back")


def test_a_dead_daemon_is_not_missed(cluster: Cluster) -> None:
    web, vip = cluster.containers["web"], cluster.vip("api")
    cluster.kill("n1")
    assert resolve(web, "api") == vip
    # Without the daemon the executable attaches by itself, and the resolver sees the file.
    late = cluster.add("late", "n1", "web")
    inside(late.netns, "ip", "link", "set", "lo", "up")
    until(lambda: resolve(late, "api") == vip, "the name server of a container without a daemon")
    cluster.kill_resolver("n1")
    assert resolve(web, "api") is None
    cluster.start_resolver("n1")
    until(lambda: resolve(web, "api") == vip, "the resolver to be back without a daemon")
    found = set()
    with ThreadPoolExecutor(1) as aside:
        starting = aside.submit(cluster.start, "n1")
        while not starting.done():
            found.add(resolve(web, "api"))
        starting.result()
    assert found == {vip}
    cluster.delete("late")


def test_no_namespace_is_kept(cluster: Cluster) -> None:
    """Neither after DEL nor after a namespace that went without one, daemon or no daemon.

    What keeps one is an open socket; test_scale.py asks the kernel for namespaces.
    """
    for name in ("deleted", "vanished", "alone"):
        box = bare(cluster, name, "web")
        box.result = cluster.cni("ADD", box)
        inside(box.netns, "ip", "link", "set", "lo", "up")
        assert resolve(box, "db") == ""
        count = _open_files(cluster)
        if name == "deleted":
            cluster.delete(name)
        elif name == "vanished":
            cluster.containers.pop(name).kill()
        else:
            cluster.kill("n1")
            cluster.containers.pop(name).kill()
        until(lambda c=count: _open_files(cluster) == c - 2, f"the sockets of {name} to close")
    cluster.start("n1")


def _open_files(cluster: Cluster) -> int:
    return len(list(vanishing.descriptors(cluster.resolvers["n1"].pid)))
