"""Trying the kernel out before the first container needs it.

The probe makes a container's kernel objects, a MACsec device and the ruleset, in a namespace that
is thrown away afterwards. This has two uses. The kernel loads some forty modules at their first
use, which takes a second on a small machine, so the first container need not wait for that. And
what a kernel lacks is named when the daemon starts, not when a container fails.
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
"""Kernel module by the kind of device that it provides."""


def probe_kernel(vips: str, ula: str) -> list[str]:
    """Make one attachment's kernel objects and throw them away.

    `vips` is the CIDR of the VIPs, `ula` that of the IPv6 network or empty. NotAvailable names what
    the kernel lacks. Return the differences that this kernel reports of a ruleset just loaded
    (`ruleset.calibrate`).
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
    """Return one sentence for each kind of device and each ruleset that this kernel cannot make."""
    found: list[str] = []

    def play() -> None:
        with links.open() as rtnl:
            for kind, module in MODULES.items():
                try:
                    rtnl.batch([links.create_request(f"x-{kind}", kind, [], [])])
                except OSError as error:
                    # EOPNOTSUPP: the kernel does not know the kind. Any other error comes from
                    # the module, which is therefore there.
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
    """Call `play` in a thread with a new network namespace, which ends together with the thread."""
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
