"""The fabric, over which nodes exchange records and questions.

What may live here: the interface, its zenoh adapter, the small pure parts of that adapter, and
how it is opened (the identity's files, waiting for an address). What may not: what a record means
(``daemon.model``), or the kernel.
"""

from daemon.fabric.interface import (
    MAX_PAYLOAD,
    Counters,
    Fabric,
    FabricError,
    FabricRefusedError,
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
    "FabricRefusedError",
    "FabricTimeoutError",
    "Listener",
    "NotOpenError",
    "Settings",
]
