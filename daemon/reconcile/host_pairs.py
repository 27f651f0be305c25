"""Which pairs of MACs the host filter should hold, and which it holds; values only.

1. An attachment needs both pairs, (its MAC, peer's) and (peer's, its MAC), for each of its
   peers. Where both ends are on this node both need them: a pair goes with its last user.
2. Only what may differ from the kernel is remembered: what is wanted and not known to be
   there, and what is there and not known to be wanted. A replica among a thousand that comes
   or goes thus costs what its own peers cost.
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
        """`attachment`, at the address `own`, talks to the replicas at these addresses only.

        Every pass says so of every attachment: what was said before costs one comparison.
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
        """`attachment` is gone; never known is fine."""
        own, peers = self._peers.pop(attachment, ("", ()))
        for address in peers:
            self._use(names.mac_of(own), names.mac_of(address), -1)

    def known(self) -> set[str]:
        """Return the attachments that were spoken of."""
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
        """The kernel was read: it holds just these. Return where that is not what was thought."""
        before, self._there = self._there, set(there)
        wanted = self._users.keys()
        self._lacking = set(wanted - self._there)
        self._surplus = set(self._there - wanted)
        return frozenset(before ^ self._there)

    def holds(self, pair: Pair) -> bool:
        """Tell whether the kernel is thought to hold `pair`."""
        return pair in self._there

    def lacking(self) -> frozenset[Pair]:
        """Return what is wanted and not there."""
        return frozenset(self._lacking)

    def surplus(self, busy: Set[str] = frozenset()) -> frozenset[Pair]:
        """Return what is there and not wanted, but for the pairs of the MACs in `busy`."""
        return frozenset(pair for pair in self._surplus if busy.isdisjoint(pair))

    def changed(self, added: Iterable[Pair], removed: Iterable[Pair]) -> None:
        """The kernel took these changes."""
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
