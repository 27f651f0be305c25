"""Repairing the host filter, and closing its ports that belong to no attachment.

Attach writes the state file before it opens the port; detach removes the file after it has closed
the port. So this module reads the ports first and the files afterwards: a port without a file then
belongs to nobody, unless its attachment ended or was made anew between the two readings. That is
why each such port is checked once more under the attachment's lock before it is closed.
"""

from __future__ import annotations

import contextlib
import re
from typing import Final

from netconf import names
from netconf.attach.state import State
from netconf.errors import TryAgain
from netconf.nft import host, ruleset

PATIENCE: Final = 1.0
"""Seconds to wait for the attachment's lock; if it stays locked, the next audit looks again."""

FILTER_PATIENCE: Final = 30.0
"""Seconds to wait for the node's lock. Executables that work without the daemon hold it one after
the other, so this is longer than one of them takes."""

_OURS: Final = re.compile(f"{names.host_end('')}([0-9a-f]{{12}})")


def mend_filter(state: State) -> list[str]:
    """Replace the host filter if it is not as it should be, and keep its elements.

    Return a sentence for each difference. The node's lock is held, so that no executable opens or
    closes a port in a table that is being replaced. TryAgain if executables hold the lock for
    longer than `FILTER_PATIENCE`; KernelFailure.
    """
    with state.shared(FILTER_PATIENCE):
        return ruleset.ensure_host()


def close_surplus(state: State) -> list[str]:
    """Close the ports of no attachment, in the calling thread's namespace.

    Return one sentence for each that was closed.
    """
    there = host.ports()
    known = {(made.vh, made.mac) for made in state.all()}
    return [
        f"host filter: port {port} of {mac} should not be there"
        for port, mac in sorted(there - known)
        if _close(state, port, mac)
    ]


def _close(state: State, port: str, mac: str) -> bool:
    """Close `port` to `mac` unless an attachment has both; tell whether it was closed."""
    with contextlib.ExitStack() as held:
        if owner := _OURS.fullmatch(port):
            try:
                held.enter_context(state.holding(owner[1], PATIENCE))
            except TryAgain:
                return False
            made = state.get(owner[1])
            if made is not None and (made.phase == "unreadable" or made.mac == mac):
                return False
        if (port, mac) not in host.ports():
            return False
        host.del_port(port, mac)
    return True
