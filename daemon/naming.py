"""Which names are valid: for clusters, nodes and services, and in DNS.

1. The name of a cluster, node or service must be valid in CNI, in zenoh's keys and as an X.509
   common name (`NAME`).
2. A name that is looked up in DNS has labels of 1 to `LABEL_MAX` octets between its dots
   (RFC 1035 section 2.3.4).
3. A name by which a peer is dialled is in its certificate too. So its labels, in addition, neither
   begin nor end with a hyphen (RFC 1123 section 2.1).
"""

from __future__ import annotations

import re

NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,63}")
"""A cluster, node or service: as CNI names things, and short enough for an X.509 CN."""
LABEL_MAX = 63
"""Octets between two dots of a name, RFC 1035 section 2.3.4."""


def carried(name: str) -> bool:
    """Tell whether a name can be looked up in DNS (rule 2)."""
    return all(0 < len(label) <= LABEL_MAX for label in name.encode().split(b"."))


def is_host_name(name: str) -> bool:
    """Tell whether a peer can be dialled by a name (rule 3)."""
    return carried(name) and all(label[0] != "-" and label[-1] != "-" for label in name.split("."))
