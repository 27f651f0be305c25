"""Limits as the kernel takes them: bytes, never less than a frame, never more than it holds."""

from __future__ import annotations

import pytest

from netconf.netlink.shaping import Bandwidth, Bucket, buckets
from netconf.uapi.tbf import TC_H_ROOT, tcmsg

MTU = 1476
FRAME = MTU + 14


@pytest.mark.parametrize(
    ("bandwidth", "towards", "away"),
    [
        (None, None, None),
        (Bandwidth(), None, None),
        (
            Bandwidth(ingress_rate=8_000_000, ingress_burst=1_600_000),
            Bucket(rate=1_000_000, burst=200_000),
            None,
        ),
        # The burst of CONVENTIONS.md: 200 bytes would let no full frame through, ever.
        (
            Bandwidth(ingress_rate=2048, ingress_burst=1600, egress_rate=4096, egress_burst=1600),
            Bucket(rate=256, burst=FRAME),
            Bucket(rate=512, burst=FRAME),
        ),
        (Bandwidth(egress_rate=1, egress_burst=1), None, Bucket(rate=1, burst=FRAME)),
        # What containerd sends for a limit without a burst: 2^32 - 1 bits.
        (
            Bandwidth(egress_rate=80_000_000_000, egress_burst=(1 << 63) - 1),
            None,
            Bucket(rate=10_000_000_000, burst=(1 << 32) - 1),
        ),
    ],
)
def test_buckets(bandwidth: Bandwidth | None, towards: Bucket | None, away: Bucket | None) -> None:
    assert buckets(bandwidth, MTU) == (towards, away)


def test_what_waits() -> None:
    assert Bucket(rate=1_000_000, burst=2000).limit == 27_000
    assert Bucket(rate=1 << 40, burst=(1 << 32) - 1).limit == (1 << 32) - 1


def test_a_message_of_another_discipline_is_readable() -> None:
    message = tcmsg()
    message["index"], message["parent"] = 7, TC_H_ROOT
    message["attrs"] = [("TCA_KIND", "fq_codel"), ("TCA_OPTIONS", "00:11")]
    message.encode()
    again = tcmsg(message.data)
    again.decode()
    assert (again["index"], again.get_attr("TCA_KIND")) == (7, "fq_codel")
