"""MACsec as pyroute2 would declare it: the link kind and the generic netlink family.

1. Names, numbers and order are those of include/uapi/linux/if_macsec.h and if_link.h.
2. This module only declares; `netconf.netlink.macsec` sends and receives.
"""

from __future__ import annotations

import sys

from netconf.uapi.messages import genlmsg, nla, nla_string, register_link_kind

MACSEC_GENL_NAME = "macsec"
MACSEC_GENL_VERSION = 1

MACSEC_CIPHER_ID_GCM_AES_128 = 0x0080C20001000001
MACSEC_DEFAULT_CIPHER_ID = 0x0080020001000001
"""The deprecated identifier of GCM-AES-128, which the kernel reports for that cipher."""

MACSEC_STD_ICV_LEN = 16
MACSEC_VALIDATE_STRICT = 2

MACSEC_CMD_GET_TXSC = 0
MACSEC_CMD_ADD_RXSC = 1
MACSEC_CMD_DEL_RXSC = 2
MACSEC_CMD_UPD_RXSC = 3
MACSEC_CMD_ADD_TXSA = 4
MACSEC_CMD_DEL_TXSA = 5
MACSEC_CMD_UPD_TXSA = 6
MACSEC_CMD_ADD_RXSA = 7
MACSEC_CMD_DEL_RXSA = 8
MACSEC_CMD_UPD_RXSA = 9
MACSEC_CMD_UPD_OFFLOAD = 10


class macsec(nla):
    """``IFLA_INFO_DATA`` of a link of kind ``macsec``: enum IFLA_MACSEC_* of if_link.h."""

    prefix = "IFLA_"
    nla_map = (
        ("IFLA_MACSEC_UNSPEC", "none"),
        ("IFLA_MACSEC_SCI", "be64"),
        ("IFLA_MACSEC_PORT", "be16"),
        ("IFLA_MACSEC_ICV_LEN", "uint8"),
        ("IFLA_MACSEC_CIPHER_SUITE", "uint64"),
        ("IFLA_MACSEC_WINDOW", "uint32"),
        ("IFLA_MACSEC_ENCODING_SA", "uint8"),
        ("IFLA_MACSEC_ENCRYPT", "uint8"),
        ("IFLA_MACSEC_PROTECT", "uint8"),
        ("IFLA_MACSEC_INC_SCI", "uint8"),
        ("IFLA_MACSEC_ES", "uint8"),
        ("IFLA_MACSEC_SCB", "uint8"),
        ("IFLA_MACSEC_REPLAY_PROTECT", "uint8"),
        ("IFLA_MACSEC_VALIDATION", "uint8"),
        ("IFLA_MACSEC_PAD", "none"),
        ("IFLA_MACSEC_OFFLOAD", "uint8"),
    )


register_link_kind("macsec", macsec)


class packet_number(nla_string):
    """A packet number (PN): u32, or u64 with the ciphers of extended packet numbering (XPN)."""

    def encode(self) -> None:
        number = int(self["value"])
        self["value"] = number.to_bytes(4 if number < 1 << 32 else 8, sys.byteorder)
        super().encode()

    def decode(self) -> None:
        super().decode()
        self.value = int.from_bytes(self["value"], sys.byteorder)


class macsec_sa(nla):
    """enum macsec_sa_attrs"""

    nla_map = (
        ("MACSEC_SA_ATTR_UNSPEC", "none"),
        ("MACSEC_SA_ATTR_AN", "uint8"),
        ("MACSEC_SA_ATTR_ACTIVE", "uint8"),
        ("MACSEC_SA_ATTR_PN", "pn"),
        ("MACSEC_SA_ATTR_KEY", "cdata"),
        ("MACSEC_SA_ATTR_KEYID", "cdata"),
        ("MACSEC_SA_ATTR_STATS", "stats"),
        ("MACSEC_SA_ATTR_PAD", "none"),
        ("MACSEC_SA_ATTR_SSCI", "be32"),
        ("MACSEC_SA_ATTR_SALT", "cdata"),
    )
    pn = packet_number

    class stats(nla):
        """enum macsec_sa_stats_attr"""

        nla_map = (
            ("MACSEC_SA_STATS_ATTR_UNSPEC", "none"),
            ("MACSEC_SA_STATS_ATTR_IN_PKTS_OK", "uint32"),
            ("MACSEC_SA_STATS_ATTR_IN_PKTS_INVALID", "uint32"),
            ("MACSEC_SA_STATS_ATTR_IN_PKTS_NOT_VALID", "uint32"),
            ("MACSEC_SA_STATS_ATTR_IN_PKTS_NOT_USING_SA", "uint32"),
            ("MACSEC_SA_STATS_ATTR_IN_PKTS_UNUSED_SA", "uint32"),
            ("MACSEC_SA_STATS_ATTR_OUT_PKTS_PROTECTED", "uint32"),
            ("MACSEC_SA_STATS_ATTR_OUT_PKTS_ENCRYPTED", "uint32"),
        )


class macsec_rxsc(nla):
    """enum macsec_rxsc_attrs"""

    nla_map = (
        ("MACSEC_RXSC_ATTR_UNSPEC", "none"),
        ("MACSEC_RXSC_ATTR_SCI", "be64"),
        ("MACSEC_RXSC_ATTR_ACTIVE", "uint8"),
        ("MACSEC_RXSC_ATTR_SA_LIST", "*sa"),
        ("MACSEC_RXSC_ATTR_STATS", "stats"),
        ("MACSEC_RXSC_ATTR_PAD", "none"),
    )
    sa = macsec_sa

    class stats(nla):
        """enum macsec_rxsc_stats_attr"""

        nla_map = (
            ("MACSEC_RXSC_STATS_ATTR_UNSPEC", "none"),
            ("MACSEC_RXSC_STATS_ATTR_IN_OCTETS_VALIDATED", "uint64"),
            ("MACSEC_RXSC_STATS_ATTR_IN_OCTETS_DECRYPTED", "uint64"),
            ("MACSEC_RXSC_STATS_ATTR_IN_PKTS_UNCHECKED", "uint64"),
            ("MACSEC_RXSC_STATS_ATTR_IN_PKTS_DELAYED", "uint64"),
            ("MACSEC_RXSC_STATS_ATTR_IN_PKTS_OK", "uint64"),
            ("MACSEC_RXSC_STATS_ATTR_IN_PKTS_INVALID", "uint64"),
            ("MACSEC_RXSC_STATS_ATTR_IN_PKTS_LATE", "uint64"),
            ("MACSEC_RXSC_STATS_ATTR_IN_PKTS_NOT_VALID", "uint64"),
            ("MACSEC_RXSC_STATS_ATTR_IN_PKTS_NOT_USING_SA", "uint64"),
            ("MACSEC_RXSC_STATS_ATTR_IN_PKTS_UNUSED_SA", "uint64"),
            ("MACSEC_RXSC_STATS_ATTR_PAD", "none"),
        )


class macsec_secy(nla):
    """enum macsec_secy_attrs"""

    nla_map = (
        ("MACSEC_SECY_ATTR_UNSPEC", "none"),
        ("MACSEC_SECY_ATTR_SCI", "be64"),
        ("MACSEC_SECY_ATTR_ENCODING_SA", "uint8"),
        ("MACSEC_SECY_ATTR_WINDOW", "uint32"),
        ("MACSEC_SECY_ATTR_CIPHER_SUITE", "uint64"),
        ("MACSEC_SECY_ATTR_ICV_LEN", "uint8"),
        ("MACSEC_SECY_ATTR_PROTECT", "uint8"),
        ("MACSEC_SECY_ATTR_REPLAY", "uint8"),
        ("MACSEC_SECY_ATTR_OPER", "uint8"),
        ("MACSEC_SECY_ATTR_VALIDATE", "uint8"),
        ("MACSEC_SECY_ATTR_ENCRYPT", "uint8"),
        ("MACSEC_SECY_ATTR_INC_SCI", "uint8"),
        ("MACSEC_SECY_ATTR_ES", "uint8"),
        ("MACSEC_SECY_ATTR_SCB", "uint8"),
        ("MACSEC_SECY_ATTR_PAD", "none"),
    )


class macsecmsg(genlmsg):
    """A message of the family ``macsec``: enum macsec_attrs."""

    nla_map = (
        ("MACSEC_ATTR_UNSPEC", "none"),
        ("MACSEC_ATTR_IFINDEX", "uint32"),
        ("MACSEC_ATTR_RXSC_CONFIG", "rxsc"),
        ("MACSEC_ATTR_SA_CONFIG", "sa"),
        ("MACSEC_ATTR_SECY", "secy"),
        ("MACSEC_ATTR_TXSA_LIST", "*sa"),
        ("MACSEC_ATTR_RXSC_LIST", "*rxsc"),
        ("MACSEC_ATTR_TXSC_STATS", "txsc_stats"),
        ("MACSEC_ATTR_SECY_STATS", "secy_stats"),
        ("MACSEC_ATTR_OFFLOAD", "offload"),
    )
    rxsc = macsec_rxsc
    sa = macsec_sa
    secy = macsec_secy

    class txsc_stats(nla):
        """enum macsec_txsc_stats_attr"""

        nla_map = (
            ("MACSEC_TXSC_STATS_ATTR_UNSPEC", "none"),
            ("MACSEC_TXSC_STATS_ATTR_OUT_PKTS_PROTECTED", "uint64"),
            ("MACSEC_TXSC_STATS_ATTR_OUT_PKTS_ENCRYPTED", "uint64"),
            ("MACSEC_TXSC_STATS_ATTR_OUT_OCTETS_PROTECTED", "uint64"),
            ("MACSEC_TXSC_STATS_ATTR_OUT_OCTETS_ENCRYPTED", "uint64"),
            ("MACSEC_TXSC_STATS_ATTR_PAD", "none"),
        )

    class secy_stats(nla):
        """enum macsec_secy_stats_attr"""

        nla_map = (
            ("MACSEC_SECY_STATS_ATTR_UNSPEC", "none"),
            ("MACSEC_SECY_STATS_ATTR_OUT_PKTS_UNTAGGED", "uint64"),
            ("MACSEC_SECY_STATS_ATTR_IN_PKTS_UNTAGGED", "uint64"),
            ("MACSEC_SECY_STATS_ATTR_OUT_PKTS_TOO_LONG", "uint64"),
            ("MACSEC_SECY_STATS_ATTR_IN_PKTS_NO_TAG", "uint64"),
            ("MACSEC_SECY_STATS_ATTR_IN_PKTS_BAD_TAG", "uint64"),
            ("MACSEC_SECY_STATS_ATTR_IN_PKTS_UNKNOWN_SCI", "uint64"),
            ("MACSEC_SECY_STATS_ATTR_IN_PKTS_NO_SCI", "uint64"),
            ("MACSEC_SECY_STATS_ATTR_IN_PKTS_OVERRUN", "uint64"),
            ("MACSEC_SECY_STATS_ATTR_PAD", "none"),
        )

    class offload(nla):
        """enum macsec_offload_attrs"""

        nla_map = (
            ("MACSEC_OFFLOAD_ATTR_UNSPEC", "none"),
            ("MACSEC_OFFLOAD_ATTR_TYPE", "uint8"),
            ("MACSEC_OFFLOAD_ATTR_PAD", "none"),
        )
