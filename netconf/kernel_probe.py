"""Trying the kernel out before the first container asks for it.

A throwaway namespace gets what a container gets: a MACsec device and the ruleset. The first
use loads some forty modules, a second's work on a small machine; and what a kernel lacks is
said when the daemon starts, by name, instead of when a container fails.
"""

from __future__ import annotations

import ctypes
import errno
import os
import threading
from collections.abc import Callable

from netconf.errors import KernelFailure, NoctuleError, NotAvailable
from netconf.namespace import CLONE_NEWNET, Namespace
from netconf.netlink import links, macsec
from netconf.netlink.socket import doing
from netconf.nft import ruleset

MODULES = {"veth": "veth", "bridge": "bridge", "macsec": "macsec", "batadv": "batman_adv"}
"""Kinds of device, and the kernel modules that bring them."""


def probe_kernel(vips: str, ula: str) -> list[str]:
    """Make and lose one attachment's kernel objects; NotAvailable names what is missing.

    `vips` is the CIDR of the VIPs, `ula` that of the IPv6 network or empty. Return what this kernel
    says of a ruleset that was not sent (`ruleset.calibrate`).
    """
    found: list[str] = []
    try:
        _apart(lambda: found.extend(_play(vips, ula)))
    except (KernelFailure, OSError) as cause:
        raise NotAvailable(
            f"this kernel cannot carry a container: {cause}; it needs macsec, veth, nf_tables "
            "with nft_ct, nft_nat, nft_numgen, nft_fib_inet and nft_reject_inet",
            details=getattr(cause, "details", ""),
        ) from cause
    return found


def lacking() -> list[str]:
    """Return, in words, which kinds of device and which rulesets this kernel cannot make."""
    found: list[str] = []

    def play() -> None:
        with links.open() as rtnl:
            for kind, module in MODULES.items():
                try:
                    rtnl.batch([links.create_request(f"x-{kind}", kind, [], [])])
                except OSError as error:
                    # Anything else is said by the module itself.
                    if error.errno == errno.EOPNOTSUPP:
                        found.append(f"the kernel has no {module}")
        for load in (_container, ruleset.ensure_host):
            try:
                load()
            except NoctuleError as error:
                found.append(f"{error.message} ({error.details})")

    try:
        _apart(play)
    except OSError as error:
        found.append(f"cannot try the kernel out: {error}")
    return found


def _apart(play: Callable[[], None]) -> None:
    """Call `play` in a namespace of its own, which ends with the thread that it runs in."""
    failure: list[Exception] = []

    def act() -> None:
        try:
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.unshare(CLONE_NEWNET) != 0:
                code = ctypes.get_errno()
                raise OSError(code, os.strerror(code))
            play()
        except Exception as error:
            failure.append(error)

    actor = threading.Thread(target=act, name="rehearsal")
    actor.start()
    actor.join()
    if failure:
        raise failure[0]


def _play(vips: str, ula: str) -> list[str]:
    with doing("make a MACsec device"), links.open() as rtnl:
        pair = [links.create_request("vh", "veth", [], []), links.get_request("vh")]
        index = links.facts(rtnl.batch(pair)[1][0]).index
        rtnl.batch(
            [links.create_request("secy", "macsec", macsec.link_data(), [("IFLA_LINK", index)])]
        )
    _container(vips, ula)
    with Namespace.own() as own:
        return ruleset.calibrate(own, vips, ula)


def _container(vips: str = "192.0.2.0/24", ula: str = "") -> None:
    with Namespace.own() as own:
        if ula:
            links.enable_ipv6(own, "lo")
        ruleset.load_container(own, vips, ula)
