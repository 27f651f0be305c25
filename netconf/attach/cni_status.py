"""Whether another container could be attached to this node now: CNI's STATUS.

1. First mesh, bridge and host filter are checked: running containers need them too, so if one is
   missing the answer is code 51. Then what only a new container needs: the secret, a free address
   and a free port of the bridge (code 50).
2. The check makes and changes nothing, and it waits for no lock: runtimes ask often.
"""

from __future__ import annotations

from netconf import keys, names
from netconf.attach import allocation
from netconf.attach.attachment import NodeNet
from netconf.attach.state import State
from netconf.errors import InvalidConfig, KernelFailure, LimitedConnectivity, NotAvailable
from netconf.netlink import batadv, links
from netconf.netlink.socket import doing
from netconf.nft import host


def check(node: NodeNet, state: State, key_file: str) -> None:
    """Raise unless an attachment could be made with the secret in the file `key_file`.

    LimitedConnectivity or NotAvailable names everything that is missing, and the fix.
    """
    if wrong := _mesh(node) + _filter():
        raise LimitedConnectivity("; ".join(wrong))
    if wrong := _secret(key_file) + _room(node, state):
        raise NotAvailable("; ".join(wrong))


def _mesh(node: NodeNet) -> list[str]:
    again = "noctuled puts it back within 5 s; start it: systemctl start noctuled"
    with doing("look at the mesh"), links.open() as rtnl:
        mesh, bridge = links.get(rtnl, names.MESH), links.get(rtnl, node.bridge)
        missing = [name for name, at in ((names.MESH, mesh), (node.bridge, bridge)) if at is None]
        if mesh is None or bridge is None:
            return [f"mesh: {' and '.join(missing)} missing on the node; {again}"]
        with batadv.open() as genl:
            hard = batadv.hard_interfaces(genl, mesh.index)
    wrong = [
        f"mesh: {facts.name} is down; bring it up: ip link set {facts.name} up"
        for facts in (mesh, bridge)
        if not facts.up
    ]
    if mesh.master != bridge.index:
        wrong.append(f"mesh: {mesh.name} is no port of {bridge.name}; {again}")
    if not hard:
        wrong.append(f"mesh.links: {mesh.name} has no link to other nodes; {again}")
    elif not any(link.active for link in hard):
        down = ", ".join(link.name for link in hard)
        wrong.append(f"mesh.links: no link to other nodes is up; bring one up: {down}")
    return wrong


def _filter() -> list[str]:
    try:
        host.ports()
    except KernelFailure:
        return ["host filter: the table is missing; noctuled puts it back within 30 s"]
    return []


def _secret(key_file: str) -> list[str]:
    try:
        keys.read_key(key_file)
    except InvalidConfig as error:
        return [error.message]
    return []


def _room(node: NodeNet, state: State) -> list[str]:
    taken = state.taken()
    if len(taken) >= allocation.CONTAINERS_MAX:
        return [allocation.full().message]
    if allocation.free(node, taken) <= 0:
        return [allocation.exhausted(node).message]
    return []
