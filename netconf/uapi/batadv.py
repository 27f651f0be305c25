"""batman-adv as pyroute2 would declare it: the link kind and the generic netlink family.

1. Names, numbers and order are those of include/uapi/linux/batman_adv.h.
2. This module only declares; `netconf.netlink.batadv` sends and receives.
"""

from __future__ import annotations

from netconf.uapi.messages import genlmsg, nla, register_link_kind

BATADV_NL_NAME = "batadv"
BATADV_NL_VERSION = 1

BATADV_CMD_GET_MESH = 1
BATADV_CMD_TP_METER = 2
BATADV_CMD_TP_METER_CANCEL = 3
BATADV_CMD_GET_ROUTING_ALGOS = 4
BATADV_CMD_GET_HARDIF = 5
BATADV_CMD_GET_TRANSTABLE_LOCAL = 6
BATADV_CMD_GET_TRANSTABLE_GLOBAL = 7
BATADV_CMD_GET_ORIGINATORS = 8
BATADV_CMD_GET_NEIGHBORS = 9
BATADV_CMD_GET_GATEWAYS = 10
BATADV_CMD_GET_BLA_CLAIM = 11
BATADV_CMD_GET_BLA_BACKBONE = 12
BATADV_CMD_GET_DAT_CACHE = 13
BATADV_CMD_GET_MCAST_FLAGS = 14
BATADV_CMD_SET_MESH = 15
BATADV_CMD_SET_HARDIF = 16
BATADV_CMD_GET_VLAN = 17
BATADV_CMD_SET_VLAN = 18

BATADV_TT_CLIENT_DEL = 1 << 0
BATADV_TT_CLIENT_ROAM = 1 << 1
BATADV_TT_CLIENT_WIFI = 1 << 4
BATADV_TT_CLIENT_ISOLA = 1 << 5
BATADV_TT_CLIENT_NOPURGE = 1 << 8
BATADV_TT_CLIENT_NEW = 1 << 9
BATADV_TT_CLIENT_PENDING = 1 << 10
BATADV_TT_CLIENT_TEMP = 1 << 11


class batadv(nla):
    """``IFLA_INFO_DATA`` of a link of kind ``batadv``: enum batadv_ifla_attrs."""

    prefix = "IFLA_"
    nla_map = (
        ("IFLA_BATADV_UNSPEC", "none"),
        ("IFLA_BATADV_ALGO_NAME", "asciiz"),
    )


register_link_kind("batadv", batadv)


class batadvmsg(genlmsg):
    """A message of the family ``batadv``: enum batadv_nl_attrs."""

    prefix = "BATADV_ATTR_"
    nla_map = (
        ("BATADV_ATTR_UNSPEC", "none"),
        ("BATADV_ATTR_VERSION", "asciiz"),
        ("BATADV_ATTR_ALGO_NAME", "asciiz"),
        ("BATADV_ATTR_MESH_IFINDEX", "uint32"),
        ("BATADV_ATTR_MESH_IFNAME", "asciiz"),
        ("BATADV_ATTR_MESH_ADDRESS", "l2addr"),
        ("BATADV_ATTR_HARD_IFINDEX", "uint32"),
        ("BATADV_ATTR_HARD_IFNAME", "asciiz"),
        ("BATADV_ATTR_HARD_ADDRESS", "l2addr"),
        ("BATADV_ATTR_ORIG_ADDRESS", "l2addr"),
        ("BATADV_ATTR_TPMETER_RESULT", "uint8"),
        ("BATADV_ATTR_TPMETER_TEST_TIME", "uint32"),
        ("BATADV_ATTR_TPMETER_BYTES", "uint64"),
        ("BATADV_ATTR_TPMETER_COOKIE", "uint32"),
        ("BATADV_ATTR_PAD", "none"),
        ("BATADV_ATTR_ACTIVE", "flag"),
        ("BATADV_ATTR_TT_ADDRESS", "l2addr"),
        ("BATADV_ATTR_TT_TTVN", "uint8"),
        ("BATADV_ATTR_TT_LAST_TTVN", "uint8"),
        ("BATADV_ATTR_TT_CRC32", "uint32"),
        ("BATADV_ATTR_TT_VID", "uint16"),
        ("BATADV_ATTR_TT_FLAGS", "uint32"),
        ("BATADV_ATTR_FLAG_BEST", "flag"),
        ("BATADV_ATTR_LAST_SEEN_MSECS", "uint32"),
        ("BATADV_ATTR_NEIGH_ADDRESS", "l2addr"),
        ("BATADV_ATTR_TQ", "uint8"),
        ("BATADV_ATTR_THROUGHPUT", "uint32"),
        ("BATADV_ATTR_BANDWIDTH_UP", "uint32"),
        ("BATADV_ATTR_BANDWIDTH_DOWN", "uint32"),
        ("BATADV_ATTR_ROUTER", "l2addr"),
        ("BATADV_ATTR_BLA_OWN", "flag"),
        ("BATADV_ATTR_BLA_ADDRESS", "l2addr"),
        ("BATADV_ATTR_BLA_VID", "uint16"),
        ("BATADV_ATTR_BLA_BACKBONE", "l2addr"),
        ("BATADV_ATTR_BLA_CRC", "uint16"),
        ("BATADV_ATTR_DAT_CACHE_IP4ADDRESS", "ip4addr"),
        ("BATADV_ATTR_DAT_CACHE_HWADDRESS", "l2addr"),
        ("BATADV_ATTR_DAT_CACHE_VID", "uint16"),
        ("BATADV_ATTR_MCAST_FLAGS", "uint32"),
        ("BATADV_ATTR_MCAST_FLAGS_PRIV", "uint32"),
        ("BATADV_ATTR_VLANID", "uint16"),
        ("BATADV_ATTR_AGGREGATED_OGMS_ENABLED", "uint8"),
        ("BATADV_ATTR_AP_ISOLATION_ENABLED", "uint8"),
        ("BATADV_ATTR_ISOLATION_MARK", "uint32"),
        ("BATADV_ATTR_ISOLATION_MASK", "uint32"),
        ("BATADV_ATTR_BONDING_ENABLED", "uint8"),
        ("BATADV_ATTR_BRIDGE_LOOP_AVOIDANCE_ENABLED", "uint8"),
        ("BATADV_ATTR_DISTRIBUTED_ARP_TABLE_ENABLED", "uint8"),
        ("BATADV_ATTR_FRAGMENTATION_ENABLED", "uint8"),
        ("BATADV_ATTR_GW_BANDWIDTH_DOWN", "uint32"),
        ("BATADV_ATTR_GW_BANDWIDTH_UP", "uint32"),
        ("BATADV_ATTR_GW_MODE", "uint8"),
        ("BATADV_ATTR_GW_SEL_CLASS", "uint32"),
        ("BATADV_ATTR_HOP_PENALTY", "uint8"),
        ("BATADV_ATTR_LOG_LEVEL", "uint32"),
        ("BATADV_ATTR_MULTICAST_FORCEFLOOD_ENABLED", "uint8"),
        ("BATADV_ATTR_NETWORK_CODING_ENABLED", "uint8"),
        ("BATADV_ATTR_ORIG_INTERVAL", "uint32"),
        ("BATADV_ATTR_ELP_INTERVAL", "uint32"),
        ("BATADV_ATTR_THROUGHPUT_OVERRIDE", "uint32"),
        ("BATADV_ATTR_MULTICAST_FANOUT", "uint32"),
    )
