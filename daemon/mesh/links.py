"""Brings up the devices of this node's mesh, and keeps them as they should be.

1. At the start an error in the configuration ends the daemon, with a sentence in the log. Links
   that may appear later are waited for (``netconf.mesh.devices``, rule 3). Meanwhile the daemon
   serves its containers, and says what it waits for.
2. After the start, each look brings all devices up again, which changes only what differs. Nothing
   that it finds ends the daemon or removes a device; the log says it once (``daemon.news``).
3. A bat0 without our alias is ours if there is a ``node.json`` in the state folder: release 0.1.0
   wrote that file and set no alias. A reboot removes both.
"""

from __future__ import annotations

import time

from daemon.journal import Journal
from daemon.mesh import mtu
from daemon.news import News
from netconf.attach.state import State
from netconf.errors import InvalidConfig, NoctuleError
from netconf.mesh import devices
from netconf.mesh.config import MeshConfig
from netconf.mesh.devices import MeshFacts


class Links:
    """Brings the mesh up; used by one thread at a time."""

    def __init__(self, mesh: MeshConfig, ula: str, state: State, journal: Journal) -> None:
        """`ula` is the containers' IPv6 network in CIDR notation, or empty."""
        self._mesh = mesh
        self._state = state
        self._journal = journal
        self._floor = mtu.floor(ula)
        self._news = News()
        self._facts: MeshFacts | None = None
        self.trouble: tuple[str, ...] = ()
        """Sentences about what the last look found wrong and could not set right."""

    @property
    def facts(self) -> MeshFacts:
        """What the last look found or made."""
        assert self._facts is not None, "start comes first"
        return self._facts

    @property
    def announced(self) -> int:
        """The MTU, in bytes, that this node announces: as configured, or what its links carry."""
        told = self._mesh.mtu
        return self.facts.limit if told == "auto" else told

    def start(self, least: int | None) -> None:
        """Bring the mesh up; blocks. NoctuleError if that fails.

        `least` is the least MTU that other nodes announced, in bytes; None without any.
        """
        adopt = (self._state.directory / "node.json").exists()
        facts = devices.bring_up(self._mesh, mesh_mtu=least, adopt=adopt)
        mtu.check(facts.mtu, self._floor)
        for advice in facts.advice:
            self._journal.warning("mesh link", advice=advice)
        self._facts = facts
        self._wait(facts)

    def look(self, least: int | None) -> tuple[str, ...]:
        """Set right what is not as it should be; return sentences about it. Blocks.

        `least` is as for `start`. NoctuleError if the kernel refuses a change or a device is not
        ours; `trouble` then says so.
        """
        before = self.facts
        try:
            facts = devices.bring_up(
                self._mesh,
                mesh_mtu=min(before.mtu, least or before.mtu),
                floor=self._floor,
                before=before,
            )
        except NoctuleError as error:
            self.trouble = (error.message,)
            raise
        self._facts = facts
        for mended in self._news.tell(time.monotonic(), facts.mended):
            self._journal.warning("mesh repaired", difference=mended)
        self._wait(facts)
        for field in before.waiting.keys() - facts.waiting.keys():
            self._journal.info("mesh link in use", field=field)
        try:
            mtu.check(facts.mtu, self._floor)
        except InvalidConfig as error:
            self.trouble = (*self.trouble, error.message)
            self.stumble(error.message)
        return facts.mended

    def stumble(self, error: str, details: str = "") -> None:
        """Log why a look failed; the same error is logged again only after a while."""
        for said in self._news.tell(time.monotonic(), [error]):
            self._journal.error("mesh", error=said, details=details)

    def _wait(self, facts: MeshFacts) -> None:
        self.trouble = tuple(facts.waiting.values())
        for why in self._news.tell(time.monotonic(), self.trouble):
            self._journal.warning("mesh link not in use", waiting=why)


def replaced(before: MeshFacts, after: MeshFacts) -> bool:
    """Tell whether bat0 or the bridge is a new device, so that its clients or ports are gone."""
    return (before.mesh_index, before.bridge_index) != (after.mesh_index, after.bridge_index)
