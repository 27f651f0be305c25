"""pyroute2's message classes; nothing else of pyroute2 is used.

1. Only ``netconf`` imports from here. The sockets are our own (`netconf.netlink.socket`).
2. ``import pyroute2`` runs the package's ``__init__``, which loads every kind of socket, NDB and an
   event loop; that takes 0.2 s and 20 MiB. The message classes alone take 0.04 s. So they are
   imported with an empty module in place of the package, which is then removed from
   ``sys.modules``: a later ``import pyroute2`` by other code loads the real package as usual.
3. A module that declares a link kind that pyroute2 does not know registers it
   (`register_link_kind`), as pyroute2's own plugins do.
"""

from __future__ import annotations

import importlib.util
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import TYPE_CHECKING, Any

_importing = threading.Lock()


@contextmanager
def _bare_pyroute2() -> Iterator[None]:
    """Let submodules of pyroute2 be imported without running its ``__init__``."""
    spec = None if "pyroute2" in sys.modules else importlib.util.find_spec("pyroute2")
    if spec is None or spec.submodule_search_locations is None:
        yield
        return
    bare = ModuleType("pyroute2")
    bare.__path__ = list(spec.submodule_search_locations)
    with _importing:
        sys.modules["pyroute2"] = bare
        try:
            yield
        finally:
            del sys.modules["pyroute2"]


if TYPE_CHECKING:
    # Types for the classes that we use: pyroute2 has no annotations.
    class nlmsg(dict[str, Any]):
        hex: Any
        data: bytearray
        nla_map: Any

        def __init__(self, data: bytes | None = None) -> None: ...
        def encode(self) -> None: ...
        def decode(self) -> None: ...
        def reset(self) -> None: ...
        def get_attr(self, name: str, default: Any = None) -> Any: ...

    class nla(nlmsg):
        value: Any

    class nla_string(nla): ...

    class genlmsg(nlmsg): ...

    class ctrlmsg(genlmsg): ...

    class ifaddrmsg(nlmsg): ...

    class ifinfmsg(nlmsg):
        ifinfo: Any

    class ndmsg(nlmsg): ...

    class rtmsg(nlmsg): ...

    class fibmsg(nlmsg): ...

else:
    with _bare_pyroute2():
        from pyroute2.netlink import ctrlmsg, genlmsg, nla, nla_string, nlmsg
        from pyroute2.netlink.rtnl.fibmsg import fibmsg
        from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
        from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
        from pyroute2.netlink.rtnl.ndmsg import ndmsg
        from pyroute2.netlink.rtnl.rtmsg import rtmsg

__all__ = [
    "ctrlmsg",
    "fibmsg",
    "genlmsg",
    "ifaddrmsg",
    "ifinfmsg",
    "ndmsg",
    "nla",
    "nla_string",
    "nlmsg",
    "register_link_kind",
    "routemsg",
]


def register_link_kind(kind: str, data: type[nla]) -> None:
    """Make ``IFLA_INFO_DATA`` of links of a `kind` encode and decode as `data`."""
    ifinfmsg.ifinfo.register_link_kind(module={kind: data})


class routemsg(rtmsg):
    """``struct rtmsg`` with the attributes by which a lookup can ask for a UDP port.

    They are those of enum rtattr_type_t from 24 to 29, which pyroute2 lacks.
    """

    nla_map = (
        *rtmsg.nla_map,
        ("RTA_PAD", "none"),
        ("RTA_UID", "uint32"),
        ("RTA_TTL_PROPAGATE", "uint8"),
        ("RTA_IP_PROTO", "uint8"),
        ("RTA_SPORT", "be16"),
        ("RTA_DPORT", "be16"),
    )
