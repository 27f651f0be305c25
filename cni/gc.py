"""GC: undo every attachment to the network that the runtime no longer knows.

CNI specification 1.1.0, section 2 "GC".

1. Without a list nothing is stale; with an empty list everything is (`cni.config`, rule 5).
2. Only attachments that the same runtime made are removed (`cni.config`, rule 6), because two
   runtimes that share a node and a network do not know each other's containers.
3. The daemon removes them. If it does not answer, for whatever reason, the executable does. Both
   go on with the next attachment after an error.
4. The call is forwarded to the plugin that ``ipam.type`` names, even if something failed before.
"""

from __future__ import annotations

from cni import client
from cni.config import Network
from cni.environment import Environment
from cni.errors import Failure


def collect(call: Environment, network: Network) -> None:
    """Collect; Failure names everything that could not be undone."""
    failures: list[Failure] = []
    try:
        _collect(network)
    except Failure as failure:
        failures.append(failure)
    try:
        if network.ipam:
            from cni import ipam

            ipam.run(call, network, "GC")
    except Failure as failure:
        failures.append(failure)
    if failures:
        first, *others = failures
        details = [first.details, *(f"{other.message}: {other.details}" for other in others)]
        raise Failure(first.code, first.message, "; ".join(filter(None, details)))


def _collect(network: Network) -> None:
    valid = network.valid_attachments()
    if valid is None:
        return
    socket, runtime = network.socket, network.runtime
    try:
        client.collect(socket, network.name, valid, runtime)
    except client.Silence:
        from cni import fallback

        fallback.collect(socket, network.name, valid, runtime)
