"""``paths`` of ``node.yaml``, which the daemon and the resolver both read."""

from __future__ import annotations

import msgspec


class Paths(msgspec.Struct, forbid_unknown_fields=True):
    """The folder `state` is lost at a reboot, as namespaces are; the folder `cache` survives it."""

    state: str = "/run/noctule"
    socket: str = "/run/noctule/noctuled.sock"
    cache: str = "/var/lib/noctule"
