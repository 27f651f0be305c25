"""Limits on what a container may send and receive: one token bucket per direction.

1. The bucket for traffic towards the container is on ``vh``, the one for traffic from it on ``vc``.
   Both links are in the node's namespace, so the container cannot change the buckets, and deleting
   the links deletes them. They count the bytes of the encrypted frames.
2. Rates are in bits per second and bursts in bits, as in the capability ``bandwidth``
   (containernetworking/cni, CONVENTIONS.md); "ingress" is towards the container. 0 is no limit.
3. A bucket smaller than a frame drops that frame, however long it has been idle (net/sched/
   sch_tbf.c, tbf_enqueue). So the burst is at least one full frame.
4. A frame that finds no tokens waits for at most 25 ms, as with the reference plugin ``bandwidth``;
   a frame that would wait longer is dropped.
"""

from __future__ import annotations

import errno
from typing import Annotated, TypeAlias

import msgspec

from netconf.netlink.socket import (
    NLM_F_CREATE,
    NLM_F_ECHO,
    NLM_F_REPLACE,
    Netlink,
    NetlinkRequest,
)
from netconf.uapi.tbf import RTM_GETQDISC, RTM_NEWQDISC, TC_H_ROOT, tcmsg

LATENCY_SECONDS = 0.025
ETHERNET_HEADER = 14
_U32_MAX = (1 << 32) - 1

Bits: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]


class Bandwidth(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Limits of one attachment: rates in bits per second, bursts in bits (rule 2)."""

    ingress_rate: Bits = 0
    ingress_burst: Bits = 0
    egress_rate: Bits = 0
    egress_burst: Bits = 0


class Bucket(msgspec.Struct, frozen=True, kw_only=True):
    """One token bucket in the kernel's units: rate in bytes per second, burst in bytes."""

    rate: int
    burst: int

    @property
    def limit(self) -> int:
        """Bytes that may wait (rule 4)."""
        return min(int(self.rate * LATENCY_SECONDS) + self.burst, _U32_MAX)


def buckets(bandwidth: Bandwidth | None, mtu: int) -> tuple[Bucket | None, Bucket | None]:
    """Return the buckets for vh and for vc, None where there is no limit.

    `mtu` is the larger MTU of the two links, in bytes of payload.
    """
    if bandwidth is None:
        return None, None
    return (
        _bucket(bandwidth.ingress_rate, bandwidth.ingress_burst, mtu),
        _bucket(bandwidth.egress_rate, bandwidth.egress_burst, mtu),
    )


def _bucket(rate: int, burst: int, mtu: int) -> Bucket | None:
    if rate == 0:
        return None
    frame = mtu + ETHERNET_HEADER
    return Bucket(rate=max(rate // 8, 1), burst=min(max(burst // 8, frame), _U32_MAX))


def requests(
    ends: tuple[int, int], wanted: tuple[Bucket | None, Bucket | None]
) -> list[NetlinkRequest]:
    """Return the requests that make the buckets `wanted` on the links with the indices `ends`."""
    return [
        _request(index, bucket)
        for index, bucket in zip(ends, wanted, strict=True)
        if bucket is not None
    ]


def _request(index: int, bucket: Bucket) -> NetlinkRequest:
    message = tcmsg()
    message["index"] = index
    message["parent"] = TC_H_ROOT
    parms = {"rate": min(bucket.rate, _U32_MAX), "limit": bucket.limit}
    options: list[tuple[str, object]] = [
        ("TCA_TBF_PARMS", parms),
        ("TCA_TBF_BURST", bucket.burst),
    ]
    if bucket.rate > _U32_MAX:
        options.append(("TCA_TBF_RATE64", bucket.rate))
    message["attrs"] = [("TCA_KIND", "tbf"), ("TCA_OPTIONS", {"attrs": options})]
    return NetlinkRequest(RTM_NEWQDISC, message, NLM_F_CREATE | NLM_F_REPLACE)


def differences(
    rtnl: Netlink,
    ends: tuple[tuple[str, int], tuple[str, int]],
    wanted: tuple[Bucket | None, Bucket | None],
) -> list[tuple[str, tuple[NetlinkRequest, ...]]]:
    """Return a sentence for each link whose bucket is not as `wanted`, and its repair's requests.

    `ends` are names and indices. Where no bucket is wanted, whatever is there is somebody else's.
    """
    wrong: list[tuple[str, tuple[NetlinkRequest, ...]]] = []
    for (name, index), bucket in zip(ends, wanted, strict=True):
        if bucket is not None and _found(rtnl, index) != (bucket.rate, bucket.limit):
            what = (
                f"{name} has no token bucket of {bucket.rate} bytes per second "
                f"and {bucket.burst} bytes"
            )
            wrong.append((what, (_request(index, bucket),)))
    return wrong


def _found(rtnl: Netlink, index: int) -> tuple[int, int] | None:
    """Return rate and limit of a link's bucket; None if its root discipline is no ``tbf``.

    Only one link is asked for, because a dump would return the disciplines of all containers'
    links. The kernel answers such a request only if it has NLM_F_ECHO (tc_get_qdisc), and not for a
    link without any discipline. The burst is not compared: the kernel returns it as a time, cut to
    32 bits (tbf_dump). But the limit includes it, so comparing the limit is enough.
    """
    message = tcmsg()
    message["index"] = index
    message["parent"] = TC_H_ROOT
    message["attrs"] = []
    try:
        answers = rtnl.request(RTM_GETQDISC, message, NLM_F_ECHO)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.EINVAL):
            return None
        raise
    for answer in answers:
        if answer.get_attr("TCA_KIND") == "tbf":
            options = answer.get_attr("TCA_OPTIONS")
            parms = options.get_attr("TCA_TBF_PARMS")
            return int(options.get_attr("TCA_TBF_RATE64") or parms["rate"]), int(parms["limit"])
    return None
