"""STATUS: say whether ADD would work.

CNI specification 1.1.0, section 2 "STATUS".

1. The daemon answers for itself. Without it ADD gives a closed attachment only, which is less
   than a runtime should schedule on: code 50.
"""

from __future__ import annotations

from cni import client
from cni.config import Network
from cni.environment import Environment
from cni.result import NOT_AVAILABLE, Failure


def status(_call: Environment, network: Network) -> None:
    """Return if ADD would work; Failure 50 or 51 says why not."""
    try:
        client.status(network.socket)
    except client.Silence as silence:
        raise Failure(
            NOT_AVAILABLE,
            "noctuled does not answer; start it: systemctl start noctuled",
            str(silence),
        ) from None
