"""The fabric: how nodes tell each other facts. The rest of the daemon sees only this page.

What may live here: the interface, its zenoh adapter, and the small pure parts of that
adapter. What may not: what a record means (``daemon.model``), or the kernel.
"""

from daemon.fabric.interface import (
    MAX_PAYLOAD,
    Counters,
    Fabric,
    FabricError,
    FabricTimeoutError,
    Listener,
    NotOpenError,
    Settings,
)

__all__ = [
    "MAX_PAYLOAD",
    "Counters",
    "Fabric",
    "FabricError",
    "FabricTimeoutError",
    "Listener",
    "NotOpenError",
    "Settings",
]
