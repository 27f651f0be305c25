"""Traffic control as pyroute2 would declare it, with the token bucket filter only.

1. Names, numbers and order are those of include/uapi/linux/rtnetlink.h and pkt_sched.h.
2. pyroute2's own ``tcmsg`` is not used: it loads every discipline that it knows, and it lacks the
   attributes of ``tbf`` for 64-bit rates and for bursts in bytes (TCA_TBF_RATE64, TCA_TBF_BURST).
3. This module only declares; `netconf.netlink.shaping` sends and receives.
"""

from __future__ import annotations

from typing import Any

from netconf.uapi.messages import nla, nlmsg

RTM_NEWQDISC = 36
RTM_GETQDISC = 38

TC_H_ROOT = 0xFFFFFFFF


class tbf(nla):
    """``TCA_OPTIONS`` of a qdisc of kind ``tbf``."""

    nla_map = (
        ("TCA_TBF_UNSPEC", "none"),
        ("TCA_TBF_PARMS", "tc_tbf_qopt"),
        ("TCA_TBF_RTAB", "none"),
        ("TCA_TBF_PTAB", "none"),
        ("TCA_TBF_RATE64", "uint64"),
        ("TCA_TBF_PRATE64", "uint64"),
        ("TCA_TBF_BURST", "uint32"),
        ("TCA_TBF_PBURST", "uint32"),
        ("TCA_TBF_PAD", "none"),
    )

    class tc_tbf_qopt(nla):
        """Two ``struct tc_ratespec``, then the filter's own fields; rates in bytes per second."""

        fields = (
            ("rate_cell_log", "B"),
            ("rate_linklayer", "B"),
            ("rate_overhead", "H"),
            ("rate_cell_align", "h"),
            ("rate_mpu", "H"),
            ("rate", "I"),
            ("peak_cell_log", "B"),
            ("peak_linklayer", "B"),
            ("peak_overhead", "H"),
            ("peak_cell_align", "h"),
            ("peak_mpu", "H"),
            ("peak", "I"),
            ("limit", "I"),
            ("buffer", "I"),
            ("mtu", "I"),
        )


class tcmsg(nlmsg):
    """``struct tcmsg``; options of other disciplines than ``tbf`` stay undecoded."""

    prefix = "TCA_"
    fields = (
        ("family", "B"),
        ("pad1", "B"),
        ("pad2", "H"),
        ("index", "i"),
        ("handle", "I"),
        ("parent", "I"),
        ("info", "I"),
    )
    nla_map = (
        ("TCA_UNSPEC", "none"),
        ("TCA_KIND", "asciiz"),
        ("TCA_OPTIONS", "options"),
    )

    @staticmethod
    def options(self: nlmsg, *_arguments: object, **_keywords: object) -> Any:
        """Return the class that decodes the options; other kinds' stay undecoded bytes."""
        return tbf if self.get_attr("TCA_KIND") == "tbf" else self.hex
