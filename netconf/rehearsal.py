"""Trying the kernel out before the first container asks for it.

A throwaway namespace gets what a container gets: a MACsec device and the ruleset. The first
use loads some forty modules, a second's work on a small machine; and what a kernel lacks is
said when the daemon starts, by name, instead of when a container fails.
"""

from __future__ import annotations

import ctypes
import os
import threading

from netconf import links, macsec
from netconf.errors import KernelFailure, NotAvailable
from netconf.namespace import CLONE_NEWNET, Namespace
from netconf.netlink import doing
from netconf.nft import ruleset


def rehearse(vips: str) -> None:
    """Make and lose one attachment's kernel objects; NotAvailable names what is missing.

    `vips` is the CIDR of the VIPs. Runs in a thread of its own, whose namespace ends with it.
    """
    failure: list[Exception] = []

    def play() -> None:
        try:
            _play(vips)
        except Exception as error:
            failure.append(error)

    actor = threading.Thread(target=play, name="rehearsal")
    actor.start()
    actor.join()
    if failure and isinstance(failure[0], KernelFailure | OSError):
        cause = failure[0]
        raise NotAvailable(
            f"this kernel cannot carry a container: {cause}; it needs macsec, veth, nf_tables "
            "with nft_ct, nft_nat, nft_numgen, nft_fib_inet and nft_reject_inet",
            details=getattr(cause, "details", ""),
        ) from cause
    if failure:
        raise failure[0]


def _play(vips: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNET) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    with doing("make a MACsec device"), links.open() as rtnl:
        pair = [links.create_request("vh", "veth", [], []), links.get_request("vh")]
        index = links.facts(rtnl.batch(pair)[1][0]).index
        rtnl.batch(
            [links.create_request("secy", "macsec", macsec.link_data(), [("IFLA_LINK", index)])]
        )
    with Namespace.own() as own:
        ruleset.load_container(own, vips)
