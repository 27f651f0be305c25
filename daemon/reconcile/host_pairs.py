"""Which pairs of MACs the host filter should hold, and which it holds. No I/O.

1. An attachment needs both pairs, (its MAC, peer's) and (peer's, its MAC), for each of its
   peers. If both ends are on this node, both use the same pairs; a pair is removed when its last
   user no longer needs it.
2. The differences are kept up to date: the pairs that are wanted but not in the kernel, and those
   in the kernel that are not wanted. So a replica that comes or goes costs time in proportion to
   its own peers, not to all pairs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Set

from netconf import names

Pair = tuple[str, str]
"""(sender's MAC, receiver's MAC)."""


class HostPairs:
    """The pairs of one node."""

    def __init__(self) -> None:
        self._peers: dict[str, tuple[str, Collection[str]]] = {}
        """Address and peers' addresses by attachment."""
        self._users: Counter[Pair] = Counter()
        self._there: set[Pair] = set()
        self._lacking: set[Pair] = set()
        self._surplus: set[Pair] = set()

    def want(self, attachment: str, own: str, peers: Collection[str]) -> None:
        """Set the `peers` (dotted IPv4 addresses) of `attachment`, whose own address is `own`.

        Every pass calls this for every attachment; unchanged peers are the same object, and cost
        one comparison.
        """
        before = self._peers.get(attachment)
        if before is not None and before[1] is peers and before[0] == own:
            return
        if before is not None and before[0] != own:
            self.forget(attachment)
            before = None
        old = before[1] if before is not None else ()
        mac = names.mac_of(own)
        for address in peers:
            if address not in old:
                self._use(mac, names.mac_of(address), 1)
        for address in old:
            if address not in peers:
                self._use(mac, names.mac_of(address), -1)
        self._peers[attachment] = (own, peers)

    def forget(self, attachment: str) -> None:
        """Remove all that `attachment` wants; nothing happens if it is not known."""
        own, peers = self._peers.pop(attachment, ("", ()))
        for address in peers:
            self._use(names.mac_of(own), names.mac_of(address), -1)

    def known(self) -> set[str]:
        """Return the ids of the attachments whose peers were set."""
        return set(self._peers)

    def _use(self, mac: str, peer: str, users: int) -> None:
        for pair in ((mac, peer), (peer, mac)):
            self._users[pair] += users
            if self._users[pair] > 0:
                self._surplus.discard(pair)
                if pair not in self._there:
                    self._lacking.add(pair)
            else:
                del self._users[pair]
                self._lacking.discard(pair)
                if pair in self._there:
                    self._surplus.add(pair)

    def found(self, there: Iterable[Pair]) -> frozenset[Pair]:
        """Note that the kernel was read and holds these pairs; return those that are a surprise."""
        before, self._there = self._there, set(there)
        wanted = self._users.keys()
        self._lacking = set(wanted - self._there)
        self._surplus = set(self._there - wanted)
        return frozenset(before ^ self._there)

    def holds(self, pair: Pair) -> bool:
        """Tell whether the kernel holds `pair`, as far as is known."""
        return pair in self._there

    def lacking(self) -> frozenset[Pair]:
        """Return the pairs that are wanted and not in the kernel."""
        return frozenset(self._lacking)

    def surplus(self, busy: Set[str] = frozenset()) -> frozenset[Pair]:
        """Return the pairs in the kernel that are not wanted, except those with a MAC in `busy`."""
        return frozenset(pair for pair in self._surplus if busy.isdisjoint(pair))

    def changed(self, added: Iterable[Pair], removed: Iterable[Pair]) -> None:
        """Note that these changes were made in the kernel."""
        for pair in added:
            self._there.add(pair)
            self._lacking.discard(pair)
            if pair not in self._users:
                self._surplus.add(pair)
        for pair in removed:
            self._there.discard(pair)
            self._surplus.discard(pair)
            if pair in self._users:
                self._lacking.add(pair)
