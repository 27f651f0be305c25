"""The two tables of release 0.1.0 as libnftables 1.0.6 compiled them, message by message.

Recorded from commit 7f7e6e7 for the VIPs 10.80.0.0/16 and no IPv6 network: no nft of today has to
understand that release's text.
"""

from __future__ import annotations

import json
from pathlib import Path

from netconf.nft.elements import NFPROTO_BRIDGE, NFPROTO_INET
from netconf.nft.encoding import NLM_F_CREATE, NLM_F_REQUEST, message, nftables
from netconf.nft.wire import NftSocket

RECORDED = Path(__file__).with_name("rulesets-0.1.0.json")
FAMILY = {"container": NFPROTO_INET, "host": NFPROTO_BRIDGE}


def load(nft: NftSocket, which: str) -> None:
    """Load the table of 0.1.0's ``container`` or ``host``."""
    recorded = json.loads(RECORDED.read_text(encoding="utf-8"))[which]
    nft.transact(
        lambda first: [
            message(
                nftables(kind),
                NLM_F_REQUEST | NLM_F_CREATE | flags,
                number,
                FAMILY[which],
                bytes.fromhex(body),
            )
            for number, (kind, flags, body) in enumerate(recorded, first)
        ]
    )
