"""An in-memory nftables that obeys the kernel's rules.

``tests/kernel/test_nft.py`` runs the same batches through this and through the kernel.

1. A batch happens whole or not at all; its first error is raised.
2. Adding what is there is fine; a map key with other data is EEXIST.
3. Deleting what is not there is ENOENT, even what the same batch has deleted before.
4. Sets that no table has are ENOENT.
"""

from __future__ import annotations

import errno
from collections.abc import Collection, Iterable

from netconf.nft.elements import Key, Set
from netconf.nft.encoding import TcpConnection
from netconf.nft.wire import Batch, BatchError, Flows


class FakeNft:
    """The sets of one namespace; answers like `netconf.nft.wire.NftSocket`."""

    def __init__(self, sets: Iterable[Set]) -> None:
        self.sets: dict[str, dict[Key, Key]] = {target.name: {} for target in sets}
        self.sent: list[Batch] = []
        self.flows_deleted: list[Flows] = []
        self.established: dict[Flows, list[TcpConnection]] = {}

    def send(self, batch: Batch) -> None:
        """Make all changes, or none and raise BatchError."""
        after = {name: dict(elements) for name, elements in self.sets.items()}
        for change in batch.changes:
            if change.set.name not in after:
                raise BatchError(errno.ENOENT, change, None)
            elements = after[change.set.name]
            for key, data in change.elements:
                if change.verb == "add":
                    if elements.setdefault(key, data) != data:
                        raise BatchError(errno.EEXIST, change, (key, data))
                elif key in elements:
                    del elements[key]
                else:
                    raise BatchError(errno.ENOENT, change, (key, data))
        self.sets = after
        self.sent.append(batch)

    def dump(self, target: Set) -> dict[Key, Key]:
        """Return data by key."""
        if target.name not in self.sets:
            raise FileNotFoundError(errno.ENOENT, target.name)
        return dict(self.sets[target.name])

    def connections(self, flows: Collection[Flows], most: int) -> list[TcpConnection]:
        """Return those of flows that are not deleted, as `established` has them."""
        left = [one for one in flows if one not in self.flows_deleted]
        return [found for one in left for found in self.established.get(one, ())][:most]

    def delete_flows(self, flows: Flows) -> None:
        """Remember what was to be deleted."""
        self.flows_deleted.append(flows)
