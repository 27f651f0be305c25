"""The devices of this node's mesh: brought up once, and kept as they should be.

1. At the start what is wrong with the configuration ends the daemon, with a sentence for people.
   What time may bring is waited for: see ``netconf.mesh.devices``, rule 3. The daemon
   serves its containers meanwhile, and says what it waits for.
2. Afterwards each look brings everything up again, which changes only what differs. Nothing
   that is found then ends the daemon or removes anything; it is said once (``news``).
3. Whether a bat0 without our mark is ours is known from the state folder: release 0.1.0 set
   none, and left ``node.json`` there. Both die with a reboot.
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
        """`ula` is the IPv6 network of the containers, empty without one."""
        self._mesh = mesh
        self._state = state
        self._journal = journal
        self._floor = mtu.floor(ula)
        self._news = News()
        self._facts: MeshFacts | None = None
        self.trouble: tuple[str, ...] = ()
        """What is wrong and was not set right at the last look, in sentences."""

    @property
    def facts(self) -> MeshFacts:
        """What the last look found or made."""
        assert self._facts is not None, "start comes first"
        return self._facts

    @property
    def announced(self) -> int:
        """The most that this node will carry: what its links can, or the MTU it was told."""
        told = self._mesh.mtu
        return self.facts.limit if told == "auto" else told

    def start(self, least: int | None) -> None:
        """Bring the mesh up; `least` is the least MTU of the others. NoctuleError."""
        adopt = (self._state.directory / "node.json").exists()
        facts = devices.bring_up(self._mesh, mesh_mtu=least, adopt=adopt)
        mtu.check(facts.mtu, self._floor)
        for advice in facts.advice:
            self._journal.warning("mesh link", advice=advice)
        self._facts = facts
        self._wait(facts)

    def look(self, least: int | None) -> tuple[str, ...]:
        """Set right what is not as it should be; return that, in sentences.

        NoctuleError where the kernel refuses or a device is somebody else's; it is `trouble` then.
        """
        before = self.facts
        try:
            facts = devices.bring_up(
                self._mesh, mesh_mtu=min(before.mtu, least or before.mtu), before=before
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
        """Log what made a look fail; once, while it goes on failing."""
        for said in self._news.tell(time.monotonic(), [error]):
            self._journal.error("mesh", error=said, details=details)

    def _wait(self, facts: MeshFacts) -> None:
        self.trouble = tuple(facts.waiting.values())
        for why in self._news.tell(time.monotonic(), self.trouble):
            self._journal.warning("mesh link not in use", waiting=why)


def replaced(before: MeshFacts, after: MeshFacts) -> bool:
    """Tell whether bat0 or the bridge is another device: what was in them is gone."""
    return (before.mesh_index, before.bridge_index) != (after.mesh_index, after.bridge_index)
