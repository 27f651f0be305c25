"""GC: undo every attachment to the network that the runtime no longer knows.

CNI specification 1.1.0, section 2 "GC".

1. Without a list nothing is stale; with an empty list everything is (`cni.config`, rule 5).
2. The daemon does it, and goes on past errors. Without a daemon nothing is lost: it collects
   what died when it returns. Nothing is forwarded, as no plugin is delegated to.
"""

from __future__ import annotations

from cni import client
from cni.config import Network
from cni.environment import Environment
from cni.result import TRY_AGAIN_LATER, Failure


def collect(_call: Environment, network: Network) -> None:
    """Collect; Failure names what could not be undone."""
    valid = network.valid_attachments()
    if valid is None:
        return
    try:
        client.collect(network.socket, network.name, valid)
    except client.Silence as silence:
        raise Failure(
            TRY_AGAIN_LATER,
            "noctuled does not answer, and collects by itself when it returns; "
            "start it: systemctl start noctuled",
            str(silence),
        ) from None
