"""Make the kernel of one attachment agree with a `View`, changing only what differs.

1. Grants go receiver first: RX SC and keys; then the peer map and ingress; then the
   neighbour entry; then egress and the load-balancing slots. Revocation goes the other way.
2. The kernel thus takes five steps at most, and all elements of a step are one batch:

       keys in   ->  receive  ->  neighbours in  ->  send  ->
       neighbours out  ->  unreceive  ->  flows out  ->  keys out

   ``send`` both grants and revokes: a slot moves from one replica to another with no gap.
3. A new association number of a known peer is added before the withdrawn one goes. A new
   key under the same number (the peer began anew) replaces the old one.
4. Flows of a replica that left, or of a grant that went, are deleted from conntrack once
   all maps have changed: TCP is reset, UDP finds another replica.
5. `old` is what the caller last programmed. If the kernel's errors show that it is not
   so, reality is read, and the difference from there is applied; once.
6. Nothing is flushed, and no rule is ever changed.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import msgspec

from netconf import keys, names
from netconf.errors import UnknownContainer
from netconf.handles import Handles
from netconf.namespace import Namespace, identity
from netconf.netlink import doing
from netconf.nft.elements import (
    EGRESS,
    EGRESS_ICMP,
    INGRESS,
    INGRESS_ICMP,
    LB,
    PEER,
    Key,
    Set,
)
from netconf.nft.encoding import mark_of
from netconf.nft.wire import Batch, Flows
from netconf.view import ICMP, Grant, Slot, Target, View, differing

DRIFT = frozenset({errno.ENOENT, errno.EEXIST, errno.EBUSY, errno.ENODEV})
"""What nf_tables and macsec answer when something is missing, there, or in use."""


class Attached(Protocol):
    """What the programmer needs of an attachment (netconf.state.Attachment)."""

    @property
    def id(self) -> str: ...
    @property
    def network(self) -> str: ...
    @property
    def ifname(self) -> str: ...
    @property
    def netns(self) -> str: ...
    @property
    def netns_id(self) -> tuple[int, int]: ...


class Nft(Protocol):
    """What the programmer needs of `netconf.nft.wire.NftSocket`."""

    def send(self, batch: Batch) -> None: ...
    def dump(self, target: Set) -> dict[Key, Key]: ...
    def delete_flows(self, flows: Flows) -> None: ...


class Hands(Protocol):
    """What the programmer needs of `netconf.handles.Handles`."""

    @property
    def nft(self) -> Nft: ...
    def add_channel(self, sci: bytes) -> None: ...
    def del_channel(self, sci: bytes) -> None: ...
    def add_key(self, sci: bytes, an: int, sak: bytes, key_id: bytes) -> None: ...
    def del_key(self, sci: bytes, an: int) -> None: ...
    def channels(self) -> dict[bytes, dict[int, bytes]]: ...
    def set_neighbour(self, address: str) -> None: ...
    def del_neighbour(self, address: str) -> None: ...
    def neighbours(self) -> dict[str, str]: ...


class Observed(msgspec.Struct, frozen=True, kw_only=True):
    """A `View` as the kernel holds it: salts have become key ids, and peers are scattered."""

    keys: dict[bytes, dict[int, bytes]] = {}
    """Key id by association number by SCI."""
    services: dict[str, int] = {}
    """Service id by replica address."""
    neighbours: dict[str, str] = {}
    """MAC by replica address."""
    egress: frozenset[Grant] = frozenset()
    ingress: frozenset[Grant] = frozenset()
    slots: dict[Slot, Target] = {}


def expected(view: View) -> Observed:
    """Return what the kernel holds once it agrees with `view`."""
    return Observed(
        keys={
            sci: {an: keys.key_id(salt, sci) for an, salt in peer.salts.items()}
            for sci, peer in ((_sci(address), peer) for address, peer in view.peers.items())
        },
        services={address: peer.service for address, peer in view.peers.items()},
        neighbours={address: names.mac_of(address) for address in view.peers},
        egress=view.egress,
        ingress=view.ingress,
        slots=view.slots,
    )


def differences(observed: Observed, view: View) -> list[str]:
    """Say, one sentence each, where the kernel departs from `view`; sorted, empty if nowhere."""
    wanted = expected(view)
    said: list[str] = []
    for what, there, should in (
        ("channel", _flat(observed.keys), _flat(wanted.keys)),
        ("peer", observed.services, wanted.services),
        ("neighbour", observed.neighbours, wanted.neighbours),
        ("egress", dict.fromkeys(observed.egress, ""), dict.fromkeys(wanted.egress, "")),
        ("ingress", dict.fromkeys(observed.ingress, ""), dict.fromkeys(wanted.ingress, "")),
        ("slot", observed.slots, wanted.slots),
    ):
        said += _compare(what, there, should)
    return sorted(said)


def pairs_of(mac: str, view: View) -> frozenset[tuple[str, str]]:
    """Return the (sender, receiver) pairs the host filter needs for a replica's `view`."""
    peers = [names.mac_of(address) for address in view.peers]
    return frozenset((mac, peer) for peer in peers) | frozenset((peer, mac) for peer in peers)


def observe(hands: Hands) -> Observed:
    """Read back all that `change` writes. OSError ENOENT if the ruleset is gone."""
    nft = hands.nft
    return Observed(
        keys=hands.channels(),
        services=_typed({key[0]: data[0] for key, data in nft.dump(PEER).items()}),
        neighbours=hands.neighbours(),
        egress=_grants(nft.dump(EGRESS), nft.dump(EGRESS_ICMP)),
        ingress=_grants(nft.dump(INGRESS), nft.dump(INGRESS_ICMP)),
        slots=_typed(nft.dump(LB)),
    )


def change(hands: Hands, old: Observed, new: View, ca: str, cak: Callable[[], bytes]) -> None:
    """Take the kernel from `old` to `new`, in the order of rules 1–4.

    `ca` is the name of the connectivity association; `cak` is called at most once, and only
    if there is a key to install. OSError as the kernel gave it, with earlier steps done.
    """
    wanted = expected(new)
    nft = hands.nft
    _keys_in(hands, old, wanted, new, ca, cak)
    nft.send(_receive(old, wanted))
    for address, mac in wanted.neighbours.items():
        if old.neighbours.get(address) != mac:
            hands.set_neighbour(address)
    nft.send(_send(old, wanted))
    for address in old.neighbours.keys() - wanted.neighbours.keys():
        hands.del_neighbour(address)
    nft.send(_unreceive(old, wanted))
    for flows in _flows(old, wanted):
        nft.delete_flows(flows)
    for sci, sas in old.keys.items():
        if sci not in wanted.keys:
            hands.del_channel(sci)
            continue
        for an in sas.keys() - wanted.keys[sci].keys():
            hands.del_key(sci, an)


class Programmer:
    """Programs attachments, keeping each one's sockets open until it is forgotten."""

    def __init__(self) -> None:
        self._handles: dict[str, Handles] = {}
        self._lock = threading.Lock()

    def apply(
        self, attachment: Attached, old: View | None, new: View, cak: Callable[[], bytes]
    ) -> None:
        """Make the kernel agree with `new`; `old` None: whatever is there.

        UnknownContainer: the namespace or the interface is gone. KernelFailure: refused.
        """
        handles = self._open(attachment)
        with handles.lock, doing(f"program attachment {attachment.id}"):
            handles.last_generation = None
            self._change(handles, attachment.network, old, new, cak)
            handles.last_generation = handles.nft.generation()

    def disturbed(self, attachment: Attached) -> bool:
        """Tell, in microseconds, whether nftables may have been changed by others.

        That is, since the last `apply` or `observe`. Of MACsec and neighbours it knows nothing.
        """
        handles = self._open(attachment)
        with handles.lock, doing(f"read attachment {attachment.id}"):
            return handles.last_generation != handles.nft.generation()

    def observe(self, attachment: Attached) -> Observed:
        """Read the attachment's kernel state back; the errors of `apply`."""
        handles = self._open(attachment)
        with handles.lock, doing(f"read attachment {attachment.id}"):
            # Before the dumps: what changes during them is seen the next time.
            handles.last_generation = handles.nft.generation()
            return observe(handles)

    def forget(self, attachment_id: str) -> None:
        """Close the sockets of an attachment, letting its namespace go; repeatable."""
        with self._lock:
            handles = self._handles.pop(attachment_id, None)
        if handles is not None:
            with handles.lock:
                handles.close()

    def close(self) -> None:
        """Forget all attachments."""
        for attachment_id in list(self._handles):
            self.forget(attachment_id)

    @staticmethod
    def _change(
        handles: Handles, ca: str, old: View | None, new: View, cak: Callable[[], bytes]
    ) -> None:
        if old is not None:
            before, after = differing(old, new)
            try:
                return change(handles, expected(before), after, ca, cak)
            except OSError as error:
                if error.errno not in DRIFT:
                    raise
        return change(handles, observe(handles), new, ca, cak)

    def _open(self, attachment: Attached) -> Handles:
        found = identity(attachment.netns)
        if found is None or found != tuple(attachment.netns_id):
            self.forget(attachment.id)
            raise UnknownContainer(
                f"the namespace {attachment.netns} of attachment {attachment.id} is gone; "
                "delete the attachment"
            )
        with self._lock:
            handles = self._handles.get(attachment.id)
            if handles is not None and handles.identity == found:
                return handles
        self.forget(attachment.id)
        with Namespace.open(attachment.netns) as netns:
            handles = Handles(netns, attachment.ifname)
        with self._lock:
            return self._handles.setdefault(attachment.id, handles)


def _sci(address: str) -> bytes:
    return names.sci_of(names.mac_of(address))


def _keys_in(
    hands: Hands, old: Observed, wanted: Observed, new: View, ca: str, cak: Callable[[], bytes]
) -> None:
    secret = b""
    for address, peer in new.peers.items():
        sci = _sci(address)
        there = old.keys.get(sci)
        if there is None:
            hands.add_channel(sci)
            there = {}
        for an, key_id in wanted.keys[sci].items():
            if there.get(an) == key_id:
                continue
            if an in there:
                hands.del_key(sci, an)
            secret = secret or cak()
            sak = keys.derive_sak(secret, salt=peer.salts[an], ca=ca, sci=sci)
            hands.add_key(sci, an, sak, key_id)


def _receive(old: Observed, wanted: Observed) -> Batch:
    moved = _changed(old.services, wanted.services)
    batch = Batch().delete(PEER, [(address,) for address in moved if address in old.services])
    batch.add(PEER, [((address,), (wanted.services[address],)) for address in moved])
    return _grant(batch, INGRESS, INGRESS_ICMP, wanted.ingress - old.ingress)


def _send(old: Observed, wanted: Observed) -> Batch:
    moved = _changed(old.slots, wanted.slots)
    gone = [slot for slot in old.slots if slot not in wanted.slots]
    batch = _revoke(Batch(), EGRESS, EGRESS_ICMP, old.egress - wanted.egress)
    batch.delete(LB, gone + [slot for slot in moved if slot in old.slots])
    batch.add(LB, [(slot, wanted.slots[slot]) for slot in moved])
    return _grant(batch, EGRESS, EGRESS_ICMP, wanted.egress - old.egress)


def _unreceive(old: Observed, wanted: Observed) -> Batch:
    batch = _revoke(Batch(), INGRESS, INGRESS_ICMP, old.ingress - wanted.ingress)
    gone = [(address,) for address in old.services if address not in wanted.services]
    return batch.delete(PEER, gone)


def _flows(old: Observed, wanted: Observed) -> list[Flows]:
    """Name the conntrack entries that no grant covers any more."""
    stays = {
        address
        for address, service in old.services.items()
        if wanted.services.get(address) == service
    }
    found = [Flows(mark_of(address)) for address in old.services.keys() - stays]
    for address in stays:
        for service, protocol, port in old.egress - wanted.egress:
            if service == old.services[address]:
                found.append(Flows(mark_of(address), "out", protocol, port))
        for service, protocol, port in old.ingress - wanted.ingress:
            if service == old.services[address]:
                found.append(Flows(mark_of(address), "in", protocol, port))
    return found


def _changed(old: Mapping[Any, Any], wanted: Mapping[Any, Any]) -> list[Any]:
    """Return the keys that `wanted` adds or gives another value."""
    return [key for key, value in wanted.items() if old.get(key) != value]


def _grant(batch: Batch, ports: Set, icmp: Set, grants: Iterable[Grant]) -> Batch:
    with_port, without = _split(grants)
    return batch.add(ports, [(key, ()) for key in with_port]).add(
        icmp, [(key, ()) for key in without]
    )


def _revoke(batch: Batch, ports: Set, icmp: Set, grants: Iterable[Grant]) -> Batch:
    with_port, without = _split(grants)
    return batch.delete(ports, with_port).delete(icmp, without)


def _split(grants: Iterable[Grant]) -> tuple[list[Key], list[Key]]:
    """Separate the keys of the port set from those of the ICMP set."""
    with_port: list[Key] = []
    without: list[Key] = []
    for grant in grants:
        if grant[1] == ICMP:
            without.append(grant[:1])
        else:
            with_port.append(grant)
    return with_port, without


def _grants(ports: Iterable[Key], icmp: Iterable[Key]) -> frozenset[Grant]:
    return frozenset(_typed([*ports, *((service, ICMP, 0) for (service,) in icmp)]))


def _typed(values: Any) -> Any:
    """Let values decoded field by field pass for the tuples their set is declared to hold."""
    return values


def _flat(channels: dict[bytes, dict[int, bytes]]) -> dict[str, str]:
    """Name each channel, and each of its keys, as ``ip macsec show`` does."""
    found = {}
    for sci, sas in channels.items():
        found[sci.hex()] = "accepted"
        found |= {f"{sci.hex()} key {an}": key_id.hex() for an, key_id in sas.items()}
    return found


def _compare(what: str, there: Mapping[Any, Any], should: Mapping[Any, Any]) -> list[str]:
    said = [f"{what} {_text(key)} is missing" for key in should if key not in there]
    said += [f"{what} {_text(key)} should not be there" for key in there if key not in should]
    said += [
        f"{what} {_text(key)} is {_text(there[key])}, not {_text(should[key])}"
        for key in should
        if key in there and there[key] != should[key]
    ]
    return said


def _text(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
