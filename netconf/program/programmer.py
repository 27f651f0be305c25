"""Make the kernel of one attachment agree with a `Desired`, changing only what differs.

1. Grants go receiver first: RX SC and keys; then the peer map and ingress; then the
   neighbour entry; then egress and the load-balancing slots. Revocation goes the other way.
2. The kernel thus takes five steps at most, and all elements of a step are one batch:

       keys in   ->  receive  ->  neighbours in  ->  send  ->
       neighbours out  ->  unreceive  ->  flows out  ->  keys out

   ``send`` both grants and revokes: a slot moves from one replica to another with no gap.
3. A new association number of a known peer is added before the withdrawn one goes. A new
   key under the same number (the peer began anew) replaces the old one.
4. Flows of a replica that left, or of a grant that went, are deleted from conntrack once
   all maps have changed, and then their TCP sockets are aborted: whoever waits on one hears of
   it at once, and finds another replica when dialling again, as UDP does.
5. `old` is what the caller last programmed. If the kernel's errors show that it is not
   so, reality is read, and the difference from there is applied; once.
6. Nothing is flushed, and no rule is ever changed.
7. What to program follows from the desired state in one place, for both families: `actual`.
8. Where the secret cannot be read, no key can be installed. Everything else is done all the same,
   revocations above all, and peers whose keys are missing are treated as if they were not there.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Collection, Container, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Final, Protocol

import msgspec

from netconf import keys
from netconf.errors import NoctuleError, UnknownContainer
from netconf.namespace import Namespace, identity
from netconf.netlink.socket import doing
from netconf.nft import ruleset
from netconf.nft.elements import (
    EGRESS,
    EGRESS_ICMP,
    GENUINE6,
    INGRESS,
    INGRESS_ICMP,
    LB,
    LB6,
    PEER,
    PEER6,
    Element,
    Key,
    Set,
)
from netconf.nft.encoding import TcpConnection, mark_of
from netconf.nft.wire import Batch, Flows
from netconf.program import actual
from netconf.program.actual import Actual, expected
from netconf.program.desired import ICMP, Desired, Grant, differing
from netconf.program.netns_sockets import NetnsSockets

DRIFT = frozenset({errno.ENOENT, errno.EEXIST, errno.EBUSY, errno.ENODEV})
"""What nf_tables and macsec answer when something is missing, there, or in use."""

MOST_ABORTED: Final = 4096
"""Connections aborted in one change, 10 µs each. Those beyond are reset with their next segment."""


OBSERVE_SECONDS = 20.0
"""For reading one attachment's sets back, however many elements somebody put there: the daemon's
watchdog waits 120 s for a worker, and the ruleset may be compared in the same call."""


class Attached(Protocol):
    """What the programmer needs of an attachment (netconf.attach.attachment.Attachment)."""

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
    @property
    def ula(self) -> str: ...


class Nft(Protocol):
    """What the programmer needs of `netconf.nft.wire.NftSocket`."""

    def send(self, batch: Batch) -> None: ...
    def within(self, seconds: float) -> AbstractContextManager[None]: ...
    def dump(self, target: Set) -> dict[Key, Key]: ...
    def connections(self, flows: Collection[Flows], most: int) -> list[TcpConnection]: ...
    def delete_flows(self, flows: Flows) -> None: ...


class Hands(Protocol):
    """What the programmer needs of `netconf.program.netns_sockets.NetnsSockets`."""

    @property
    def nft(self) -> Nft: ...
    def add_channel(self, sci: bytes) -> None: ...
    def del_channel(self, sci: bytes) -> None: ...
    def add_key(self, sci: bytes, an: int, sak: bytes, key_id: bytes) -> None: ...
    def del_key(self, sci: bytes, an: int) -> None: ...
    def channels(self) -> dict[bytes, dict[int, bytes]]: ...
    def set_neighbour(self, address: str, mac: str) -> None: ...
    def del_neighbour(self, address: str) -> None: ...
    def neighbours(self) -> dict[str, str]: ...
    def abort(self, connections: Sequence[TcpConnection]) -> None: ...


def observe(hands: Hands, ula: str) -> Actual:
    """Read back all that `change` writes. OSError ENOENT if the ruleset is gone.

    Other OSErrors if what is there is no work of ours: ForeignElementError, or EFBIG or ETIMEDOUT.
    The IPv6 sets are read only with a `ula`: a ruleset that an older version loaded has none.
    """
    nft = hands.nft
    with nft.within(OBSERVE_SECONDS):
        peers, slots = nft.dump(PEER), nft.dump(LB)
        if ula:
            peers, slots = peers | nft.dump(PEER6), slots | nft.dump(LB6)
        return Actual(
            keys=hands.channels(),
            services=_typed({key[0]: data[0] for key, data in peers.items()}),
            neighbours=hands.neighbours(),
            genuine=frozenset(_typed(nft.dump(GENUINE6))) if ula else frozenset(),
            egress=_grants(nft.dump(EGRESS), nft.dump(EGRESS_ICMP)),
            ingress=_grants(nft.dump(INGRESS), nft.dump(INGRESS_ICMP)),
            slots=_typed(slots),
        )


def change(
    hands: Hands, old: Actual, new: Desired, ula: str, ca: str, cak: Callable[[], bytes]
) -> None:
    """Take the kernel from `old` to `new`, in the order of rules 1–4.

    `ula` is that of the attachment; `ca` is the name of the connectivity association; `cak`
    is called at most once, and only if there is a key to install. OSError as the kernel gave
    it, with earlier steps done. What `cak` raises comes at the end, when all that needs no new
    key was done (rule 8).
    """
    wanted = expected(new, ula)
    secret, trouble = b"", None
    if keyless := {a for a in new.peers if _lacking(old, wanted, actual.sci_at(a))}:
        try:
            secret = cak()
        except NoctuleError as error:
            trouble = error
            new = _without(new, keyless)
            wanted = expected(new, ula)
    nft = hands.nft
    _keys_in(hands, old, wanted, new, ca, secret)
    nft.send(_receive(old, wanted))
    for address, mac in wanted.neighbours.items():
        if old.neighbours.get(address) != mac:
            hands.set_neighbour(address, mac)
    nft.send(_send(old, wanted))
    for address in old.neighbours.keys() - wanted.neighbours.keys():
        hands.del_neighbour(address)
    nft.send(_unreceive(old, wanted))
    ended = _flows(old, wanted)
    connections = nft.connections(ended, MOST_ABORTED)
    for flows in ended:
        nft.delete_flows(flows)
    hands.abort(connections)
    for sci, sas in old.keys.items():
        if sci not in wanted.keys:
            hands.del_channel(sci)
            continue
        for an in sas.keys() - wanted.keys[sci].keys():
            hands.del_key(sci, an)
    if trouble is not None:
        raise trouble


class Programmer:
    """Programs attachments, keeping each one's sockets open until it is forgotten."""

    def __init__(self) -> None:
        self._sockets: dict[str, NetnsSockets] = {}
        self._admitted: set[str] = set()
        self._lock = threading.Lock()

    def admit(self, attachment_id: str) -> None:
        """Allow sockets for an attachment, until it is forgotten."""
        with self._lock:
            self._admitted.add(attachment_id)

    def apply(
        self, attachment: Attached, old: Desired | None, new: Desired, cak: Callable[[], bytes]
    ) -> None:
        """Make the kernel agree with `new`; `old` None: whatever is there.

        UnknownContainer: the namespace or the interface is gone. KernelFailure: refused.
        """
        sockets = self._open(attachment)
        with sockets.using(), doing(f"program attachment {attachment.id}"):
            sockets.last_generation = None
            self._change(sockets, attachment, old, new, cak)
            sockets.last_generation = sockets.nft.generation()

    def disturbed(self, attachment: Attached) -> bool:
        """Tell, in microseconds, whether nftables may have been changed by others.

        That is, since the last `apply` or `observe`. Of MACsec and neighbours it knows nothing.
        """
        sockets = self._open(attachment)
        with sockets.using(), doing(f"read attachment {attachment.id}"):
            return sockets.last_generation != sockets.nft.generation()

    def observe(self, attachment: Attached) -> Actual:
        """Read the attachment's kernel state back; the errors of `apply`."""
        sockets = self._open(attachment)
        with sockets.using(), doing(f"read attachment {attachment.id}"):
            # Before the dumps: what changes during them is seen the next time.
            sockets.last_generation = sockets.nft.generation()
            return observe(sockets, attachment.ula)

    def forget(self, attachment_id: str) -> None:
        """Close the sockets of an attachment, letting its namespace go; repeatable.

        Waits for a change under way. One that began before and opens its sockets only now finds
        that the attachment is not admitted any more, and closes them (`_open`).
        """
        with self._lock:
            self._admitted.discard(attachment_id)
        self._let_go(attachment_id)

    def close(self) -> None:
        """Forget all attachments."""
        with self._lock:
            known = self._admitted | self._sockets.keys()
        for attachment_id in known:
            self.forget(attachment_id)

    def _let_go(self, attachment_id: str) -> None:
        with self._lock:
            sockets = self._sockets.pop(attachment_id, None)
        if sockets is not None:
            with sockets.lock:
                sockets.close()

    @staticmethod
    def _change(
        sockets: NetnsSockets,
        attachment: Attached,
        old: Desired | None,
        new: Desired,
        cak: Callable[[], bytes],
    ) -> None:
        ula, ca = attachment.ula, attachment.network
        if old is not None:
            before, after = differing(old, new)
            try:
                return change(sockets, expected(before, ula), after, ula, ca, cak)
            except OSError as error:
                if error.errno not in DRIFT:
                    raise
        return change(sockets, observe(sockets, ula), new, ula, ca, cak)

    def mend(self, attachment: Attached, vips: str) -> list[str]:
        """Make the attachment's ruleset what it should be, under traffic, its elements kept.

        `vips` is the CIDR of the VIPs. Return what was wrong, one sentence each; the errors of
        `apply`.
        """
        sockets = self._open(attachment)
        with (
            sockets.using(),
            doing(f"compare the ruleset of attachment {attachment.id}"),
            Namespace.open_known(attachment.netns, attachment.netns_id) as netns,
        ):
            return ruleset.mend_container(netns, vips, attachment.ula)

    def _open(self, attachment: Attached) -> NetnsSockets:
        found = identity(attachment.netns)
        if found is None or found != tuple(attachment.netns_id):
            self._let_go(attachment.id)
            raise UnknownContainer(
                f"the namespace {attachment.netns} of attachment {attachment.id} is gone; "
                "delete the attachment"
            )
        with self._lock:
            sockets = self._sockets.get(attachment.id)
            if sockets is not None and sockets.identity == found:
                return sockets
        self._let_go(attachment.id)
        with Namespace.open_known(attachment.netns, attachment.netns_id) as netns:
            sockets = NetnsSockets(netns, attachment.ifname)
        with self._lock:
            if attachment.id in self._admitted:
                kept = self._sockets.setdefault(attachment.id, sockets)
                if kept is sockets:
                    return sockets
            else:
                kept = None
        sockets.close()
        if kept is None:
            raise UnknownContainer(f"attachment {attachment.id} was taken down meanwhile")
        return kept


def _lacking(old: Actual, wanted: Actual, sci: bytes) -> list[int]:
    """Return the association numbers under which a peer's key is to be installed."""
    there = old.keys.get(sci, {})
    return [an for an, key_id in wanted.keys[sci].items() if there.get(an) != key_id]


def _without(new: Desired, peers: Container[str]) -> Desired:
    """Return `new` without some peers, given by address, and without the slots that lead there."""
    return msgspec.structs.replace(
        new,
        peers={address: peer for address, peer in new.peers.items() if address not in peers},
        slots={slot: target for slot, target in new.slots.items() if target[0] not in peers},
    )


def _keys_in(
    hands: Hands, old: Actual, wanted: Actual, new: Desired, ca: str, secret: bytes
) -> None:
    for address, peer in new.peers.items():
        sci = actual.sci_at(address)
        if sci not in old.keys:
            hands.add_channel(sci)
        for an in _lacking(old, wanted, sci):
            if an in old.keys.get(sci, {}):
                hands.del_key(sci, an)
            sak = keys.derive_sak(secret, salt=peer.salts[an], ca=ca, sci=sci)
            hands.add_key(sci, an, sak, wanted.keys[sci][an])


def _receive(old: Actual, wanted: Actual) -> Batch:
    moved = _changed(old.services, wanted.services)
    batch = _delete(Batch(), PEER, PEER6, [(a,) for a in moved if a in old.services])
    _add(batch, PEER, PEER6, [((address,), (wanted.services[address],)) for address in moved])
    batch.add(GENUINE6, [(pair, ()) for pair in wanted.genuine - old.genuine])
    return _grant(batch, INGRESS, INGRESS_ICMP, wanted.ingress - old.ingress)


def _send(old: Actual, wanted: Actual) -> Batch:
    moved = _changed(old.slots, wanted.slots)
    gone = [slot for slot in old.slots if slot not in wanted.slots]
    batch = _revoke(Batch(), EGRESS, EGRESS_ICMP, old.egress - wanted.egress)
    _delete(batch, LB, LB6, gone + [slot for slot in moved if slot in old.slots])
    _add(batch, LB, LB6, [(slot, wanted.slots[slot]) for slot in moved])
    return _grant(batch, EGRESS, EGRESS_ICMP, wanted.egress - old.egress)


def _unreceive(old: Actual, wanted: Actual) -> Batch:
    batch = _revoke(Batch(), INGRESS, INGRESS_ICMP, old.ingress - wanted.ingress)
    gone = [(address,) for address in old.services if address not in wanted.services]
    return _delete(batch, PEER, PEER6, gone).delete(GENUINE6, old.genuine - wanted.genuine)


def _flows(old: Actual, wanted: Actual) -> set[Flows]:
    """Name the conntrack entries that no grant covers any more: once for both families."""
    stays = {
        address
        for address, service in old.services.items()
        if wanted.services.get(address) == service
    }
    found = {Flows(mark_of(address)) for address in old.services.keys() - stays}
    for address in stays:
        for service, protocol, port in old.egress - wanted.egress:
            if service == old.services[address]:
                found.add(Flows(mark_of(address), "out", protocol, port))
        for service, protocol, port in old.ingress - wanted.ingress:
            if service == old.services[address]:
                found.add(Flows(mark_of(address), "in", protocol, port))
    return found


def _changed(old: Mapping[Any, Any], wanted: Mapping[Any, Any]) -> list[Any]:
    """Return the keys that `wanted` adds or gives another value."""
    return [key for key, value in wanted.items() if old.get(key) != value]


def _add(batch: Batch, four: Set, six: Set, elements: Sequence[Element]) -> Batch:
    """Add to the set of each element's family."""
    of_six = [element for element in elements if _is_six(element[0])]
    return batch.add(four, [e for e in elements if not _is_six(e[0])]).add(six, of_six)


def _delete(batch: Batch, four: Set, six: Set, keys: Sequence[Key]) -> Batch:
    """Delete from the set of each key's family."""
    of_six = [key for key in keys if _is_six(key)]
    return batch.delete(four, [key for key in keys if not _is_six(key)]).delete(six, of_six)


def _is_six(key: Key) -> bool:
    return ":" in str(key[0])


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
