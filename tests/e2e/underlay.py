"""The networks below the mesh, in IPv4 and in IPv6: the same picture with other addresses."""

from __future__ import annotations

from dataclasses import dataclass

PORT = 7447


@dataclass(frozen=True)
class Underlay:
    """Addresses and routes of three nodes: n1 and n2 on a segment, n3 routed behind n2."""

    fabric: dict[str, str]
    """Where each node's daemon listens."""
    addresses: tuple[tuple[str, str, str], ...]
    """Node, address in CIDR notation, device."""
    routes: tuple[tuple[str, str, str], ...]
    """Node, network, gateway."""
    links: dict[str, str]
    """Each node's ``mesh.links``, as YAML."""
    forwarding: str
    """The sysctl that makes n2 a router."""

    def endpoint(self, node: str) -> str:
        """Return where a node's daemon is dialled."""
        address = self.fabric[node]
        return f"tls/[{address}]:{PORT}" if ":" in address else f"tls/{address}:{PORT}"


IPV4 = Underlay(
    fabric={"n1": "192.0.2.1", "n2": "192.0.2.2", "n3": "198.51.100.3"},
    addresses=(
        ("n1", "192.0.2.1/24", "eth1"),
        ("n2", "192.0.2.2/24", "eth1"),
        ("n2", "198.51.100.2/24", "eth2"),
        ("n3", "198.51.100.3/24", "eth1"),
    ),
    routes=(("n1", "198.51.100.0/24", "192.0.2.2"), ("n3", "192.0.2.0/24", "198.51.100.2")),
    links={
        "n1": "    - interface: eth1",
        "n2": "    - interface: eth1\n    - geneve: {remote: 198.51.100.3, id: 7}",
        "n3": "    - geneve: {remote: 198.51.100.2, id: 7}",
    },
    forwarding="net.ipv4.ip_forward",
)

IPV6 = Underlay(
    fabric={"n1": "2001:db8:1::1", "n2": "2001:db8:1::2", "n3": "2001:db8:2::3"},
    addresses=(
        ("n1", "2001:db8:1::1/64", "eth1"),
        ("n2", "2001:db8:1::2/64", "eth1"),
        ("n2", "2001:db8:2::2/64", "eth2"),
        ("n3", "2001:db8:2::3/64", "eth1"),
    ),
    routes=(
        ("n1", "2001:db8:2::/64", "2001:db8:1::2"),
        ("n3", "2001:db8:1::/64", "2001:db8:2::2"),
    ),
    links={
        "n1": "    - interface: eth1",
        "n2": '    - interface: eth1\n    - geneve: {remote: "2001:db8:2::3", id: 7}',
        "n3": '    - geneve: {remote: "2001:db8:2::2", local: "2001:db8:2::3", id: 7}',
    },
    forwarding="net.ipv6.conf.all.forwarding",
)
