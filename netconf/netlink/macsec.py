"""MACsec: making a SecY, adding and removing keys, reading everything back.

1. A SecY is made whole in one message: encryption, protection, strict validation, replay
   protection with `WINDOW`, the 24-byte form (end station, no explicit SCI). The kernel's
   defaults are unsafe, so `lacking` names whatever a SecY read back does not have.
2. Changes need a socket in the namespace where the SecY lives (`open`).
3. SCIs are 8 bytes in network byte order; keys are raw; key ids are 16 bytes.
4. An RX SA that is active cannot be deleted (EBUSY): deleting deactivates it first.
5. Every function raises OSError as the kernel gave it: EBUSY for an association number in
   use, ENODEV for no SecY (or no RX SC) there.
6. The kernel lists a SecY with all its channels in one message, and leaves out, without a word,
   one that does not fit. Its messages are 8 KiB until the socket has received something, about
   30 channels, and 32 KiB from then on: 131 channels of one SA each, on 6.12. So `open` lets each
   socket receive an answer first.

Source: drivers/net/macsec.c (macsec_dump_txsc), net/netlink/af_netlink.c (netlink_dump);
IEEE 802.1AE-2018.
"""

from __future__ import annotations

from typing import Any

import msgspec

from netconf import names
from netconf.namespace import Namespace
from netconf.netlink.socket import (
    NETLINK_GENERIC,
    NLMSG_NOOP,
    Netlink,
    NetlinkRequest,
    family_id,
)
from netconf.uapi import macsec as uapi
from netconf.uapi.macsec import macsecmsg
from netconf.uapi.messages import ifinfmsg, nla, nlmsg

WINDOW = 64
"""By how many frames a frame may arrive late (IEEE 802.1AE 10.6.5). The mesh reorders frames when a
route changes, and parallel decryption does too, so 0 would lose frames: it drops every reordered
one. 64 frames are 2.5 ms at 25,000 frames a second. It is not larger because the kernel keeps no
bitmap: it accepts a repeated frame within the window."""

RTM_NEWLINK = 16


class Stats(msgspec.Struct, frozen=True, kw_only=True):
    """Counted frames of one SA (enum macsec_sa_stats_attr).

    The ``in`` fields of a transmitting SA are 0, and so are the ``out`` fields of a receiving one.
    """

    in_ok: int = 0
    in_invalid: int = 0
    in_not_valid: int = 0
    in_not_using_sa: int = 0
    in_unused_sa: int = 0
    out_protected: int = 0
    out_encrypted: int = 0


class SA(msgspec.Struct, frozen=True, kw_only=True):
    """One secure association: a key in use, and the next packet number."""

    key_id: bytes
    pn: int
    active: bool
    stats: Stats


class SecY(msgspec.Struct, frozen=True, kw_only=True):
    """One MACsec device as the kernel reports it."""

    ifindex: int
    sci: bytes
    encrypt: bool
    protect: bool
    validate: int
    replay: bool
    window: int
    send_sci: bool
    end_station: bool
    encoding_sa: int
    icv_len: int
    cipher: int
    tx_sas: dict[int, SA]
    """By association number."""
    rx: dict[bytes, dict[int, SA]]
    """By the peer's SCI, then by association number."""


def link_data() -> list[tuple[str, Any]]:
    """Return the ``IFLA_INFO_DATA`` that makes a SecY with the settings of rule 1."""
    return [
        ("IFLA_MACSEC_PORT", names.SCI_PORT),
        ("IFLA_MACSEC_ICV_LEN", uapi.MACSEC_STD_ICV_LEN),
        ("IFLA_MACSEC_CIPHER_SUITE", uapi.MACSEC_CIPHER_ID_GCM_AES_128),
        ("IFLA_MACSEC_WINDOW", WINDOW),
        ("IFLA_MACSEC_ENCODING_SA", 0),
        ("IFLA_MACSEC_ENCRYPT", 1),
        ("IFLA_MACSEC_PROTECT", 1),
        ("IFLA_MACSEC_INC_SCI", 0),
        ("IFLA_MACSEC_ES", 1),
        ("IFLA_MACSEC_SCB", 0),
        ("IFLA_MACSEC_REPLAY_PROTECT", 1),
        ("IFLA_MACSEC_VALIDATION", uapi.MACSEC_VALIDATE_STRICT),
    ]


_FIXED = (
    "IFLA_MACSEC_PORT",
    "IFLA_MACSEC_ICV_LEN",
    "IFLA_MACSEC_CIPHER_SUITE",
    "IFLA_MACSEC_ENCODING_SA",
)
"""Attributes that `settings_request` leaves out. The kernel refuses to change the first three
(macsec_changelink). The last says which SA transmits, which changes with each rekey."""

CHANGEABLE = (
    "encrypt on",
    "protect on",
    "validate strict",
    "replay on",
    f"window {WINDOW}",
    "send_sci off",
    "end_station on",
)
"""Those of the settings named by `lacking` that `settings_request` can repair."""


SECYS_MOST = 256
"""A container has one of ours; whoever is in it may make more, each with long lists."""


def lacking(secy: SecY) -> list[str]:
    """Return the settings of rule 1 that a SecY does not have; empty if it has all."""
    ciphers = (uapi.MACSEC_DEFAULT_CIPHER_ID, uapi.MACSEC_CIPHER_ID_GCM_AES_128)
    wanted = {
        "encrypt on": secy.encrypt,
        "protect on": secy.protect,
        "validate strict": secy.validate == uapi.MACSEC_VALIDATE_STRICT,
        "replay on": secy.replay,
        f"window {WINDOW}": secy.window == WINDOW,
        "send_sci off": not secy.send_sci,
        "end_station on": secy.end_station,
        "cipher gcm-aes-128": secy.cipher in ciphers,
        f"icvlen {uapi.MACSEC_STD_ICV_LEN}": secy.icv_len == uapi.MACSEC_STD_ICV_LEN,
    }
    return [name for name, held in wanted.items() if not held]


def open(netns: Namespace | None = None) -> Netlink:
    """Open a generic netlink socket in `netns`, or in the thread's own namespace.

    It is ready to list SecYs with many channels (rule 6). OSError.
    """
    genl = Netlink(NETLINK_GENERIC, netns)
    try:
        genl.request(NLMSG_NOOP, nlmsg())
    except BaseException:
        genl.close()
        raise
    return genl


def add_rx_sc(genl: Netlink, ifindex: int, sci: bytes) -> None:
    """Accept frames of a peer: make an active RX SC for its `sci`. EEXIST if there is one."""
    rxsc = [("MACSEC_RXSC_ATTR_SCI", _number(sci)), ("MACSEC_RXSC_ATTR_ACTIVE", 1)]
    _change(genl, _message(uapi.MACSEC_CMD_ADD_RXSC, ifindex, rxsc=rxsc))


def del_rx_sc(genl: Netlink, ifindex: int, sci: bytes) -> None:
    """Accept no more frames of a peer: delete its RX SC with all SAs. ENODEV if there is none."""
    rxsc = [("MACSEC_RXSC_ATTR_SCI", _number(sci))]
    _change(genl, _message(uapi.MACSEC_CMD_DEL_RXSC, ifindex, rxsc=rxsc))


def add_rx_sa(genl: Netlink, ifindex: int, sci: bytes, an: int, key: bytes, key_id: bytes) -> None:
    """Install the SAK with which a peer transmits under association number `an` (0–3)."""
    rxsc = [("MACSEC_RXSC_ATTR_SCI", _number(sci))]
    _change(
        genl,
        _message(uapi.MACSEC_CMD_ADD_RXSA, ifindex, rxsc=rxsc, sa=_sa(an, key, key_id, pn=1)),
    )


def del_rx_sa(genl: Netlink, ifindex: int, sci: bytes, an: int) -> None:
    """Remove a peer's SAK, active or not."""
    rxsc = [("MACSEC_RXSC_ATTR_SCI", _number(sci))]
    number = ("MACSEC_SA_ATTR_AN", an)
    idle = [number, ("MACSEC_SA_ATTR_ACTIVE", 0)]
    _change(
        genl,
        _message(uapi.MACSEC_CMD_UPD_RXSA, ifindex, rxsc=rxsc, sa=idle),
        _message(uapi.MACSEC_CMD_DEL_RXSA, ifindex, rxsc=rxsc, sa=[number]),
    )


def add_tx_sa(genl: Netlink, ifindex: int, an: int, key: bytes, key_id: bytes, pn: int = 1) -> None:
    """Install a SAK to transmit with, `pn` being the first packet number.

    No triple of (key, SCI, packet number) may ever be used twice, so `key` must be new or `pn` must
    be above every number used with it.
    """
    _change(genl, _message(uapi.MACSEC_CMD_ADD_TXSA, ifindex, sa=_sa(an, key, key_id, pn=pn)))


def del_tx_sa(genl: Netlink, ifindex: int, an: int) -> None:
    """Remove a transmitting SAK that is no longer in use since `set_encoding_sa` chose another."""
    number = ("MACSEC_SA_ATTR_AN", an)
    idle = [number, ("MACSEC_SA_ATTR_ACTIVE", 0)]
    _change(
        genl,
        _message(uapi.MACSEC_CMD_UPD_TXSA, ifindex, sa=idle),
        _message(uapi.MACSEC_CMD_DEL_TXSA, ifindex, sa=[number]),
    )


def set_encoding_sa(rtnl: Netlink, ifindex: int, an: int) -> None:
    """Transmit with the SA under `an` from the next frame on."""
    rtnl.batch([encoding_sa_request(ifindex, an)])


def encoding_sa_request(ifindex: int, an: int) -> NetlinkRequest:
    """Return the request that `set_encoding_sa` sends."""
    return _link_request(ifindex, [("IFLA_MACSEC_ENCODING_SA", an)])


def settings_request(ifindex: int) -> NetlinkRequest:
    """Give an existing SecY every setting of rule 1 that can be changed (`CHANGEABLE`)."""
    return _link_request(ifindex, [item for item in link_data() if item[0] not in _FIXED])


def _link_request(ifindex: int, settings: list[tuple[str, Any]]) -> NetlinkRequest:
    message = ifinfmsg()
    message["index"] = ifindex
    data = {"attrs": settings}
    info = {"attrs": [("IFLA_INFO_KIND", "macsec"), ("IFLA_INFO_DATA", data)]}
    message["attrs"] = [("IFLA_LINKINFO", info)]
    return NetlinkRequest(RTM_NEWLINK, message)


def dump(genl: Netlink) -> dict[int, SecY]:
    """Return all SecYs of the socket's namespace by ifindex.

    One with more channels than fit a message is missing (rule 6). OSError EOVERFLOW if there are
    more than `SECYS_MOST`.
    """
    question = macsecmsg()
    question["cmd"] = uapi.MACSEC_CMD_GET_TXSC
    question["version"] = uapi.MACSEC_GENL_VERSION
    answers = genl.dump(family_id(genl, uapi.MACSEC_GENL_NAME), question, SECYS_MOST)
    found = [_secy(answer) for answer in answers]
    return {secy.ifindex: secy for secy in found}


def _number(sci: bytes) -> int:
    return int.from_bytes(sci, "big")


def _sa(an: int, key: bytes, key_id: bytes, *, pn: int) -> list[tuple[str, Any]]:
    return [
        ("MACSEC_SA_ATTR_AN", an),
        ("MACSEC_SA_ATTR_ACTIVE", 1),
        ("MACSEC_SA_ATTR_PN", pn),
        ("MACSEC_SA_ATTR_KEY", key),
        ("MACSEC_SA_ATTR_KEYID", key_id),
    ]


def _message(
    command: int,
    ifindex: int,
    *,
    rxsc: list[tuple[str, Any]] | None = None,
    sa: list[tuple[str, Any]] | None = None,
) -> macsecmsg:
    message = macsecmsg()
    message["cmd"] = command
    message["version"] = uapi.MACSEC_GENL_VERSION
    attrs: list[tuple[str, Any]] = [("MACSEC_ATTR_IFINDEX", ifindex)]
    if rxsc is not None:
        attrs.append(("MACSEC_ATTR_RXSC_CONFIG", {"attrs": rxsc}))
    if sa is not None:
        attrs.append(("MACSEC_ATTR_SA_CONFIG", {"attrs": sa}))
    message["attrs"] = attrs
    return message


def _change(genl: Netlink, *messages: macsecmsg) -> None:
    family = family_id(genl, uapi.MACSEC_GENL_NAME)
    genl.batch([NetlinkRequest(family, message) for message in messages])


def _secy(answer: nlmsg) -> SecY:
    secy = answer.get_attr("MACSEC_ATTR_SECY")
    return SecY(
        ifindex=answer.get_attr("MACSEC_ATTR_IFINDEX"),
        sci=secy.get_attr("MACSEC_SECY_ATTR_SCI").to_bytes(8, "big"),
        encrypt=bool(secy.get_attr("MACSEC_SECY_ATTR_ENCRYPT")),
        protect=bool(secy.get_attr("MACSEC_SECY_ATTR_PROTECT")),
        validate=secy.get_attr("MACSEC_SECY_ATTR_VALIDATE"),
        replay=bool(secy.get_attr("MACSEC_SECY_ATTR_REPLAY")),
        window=secy.get_attr("MACSEC_SECY_ATTR_WINDOW", 0),
        send_sci=bool(secy.get_attr("MACSEC_SECY_ATTR_INC_SCI")),
        end_station=bool(secy.get_attr("MACSEC_SECY_ATTR_ES")),
        encoding_sa=secy.get_attr("MACSEC_SECY_ATTR_ENCODING_SA"),
        icv_len=secy.get_attr("MACSEC_SECY_ATTR_ICV_LEN"),
        cipher=secy.get_attr("MACSEC_SECY_ATTR_CIPHER_SUITE"),
        tx_sas=_sas(answer.get_attr("MACSEC_ATTR_TXSA_LIST")),
        rx={
            channel.get_attr("MACSEC_RXSC_ATTR_SCI").to_bytes(8, "big"): _sas(
                channel.get_attr("MACSEC_RXSC_ATTR_SA_LIST")
            )
            for channel in answer.get_attr("MACSEC_ATTR_RXSC_LIST") or ()
        },
    )


def _sas(nested: list[nla] | None) -> dict[int, SA]:
    return {
        sa.get_attr("MACSEC_SA_ATTR_AN"): SA(
            key_id=sa.get_attr("MACSEC_SA_ATTR_KEYID"),
            pn=sa.get_attr("MACSEC_SA_ATTR_PN"),
            active=bool(sa.get_attr("MACSEC_SA_ATTR_ACTIVE")),
            stats=_stats(sa.get_attr("MACSEC_SA_ATTR_STATS")),
        )
        for sa in nested or ()
    }


def _stats(nested: nla | None) -> Stats:
    if nested is None:
        return Stats()
    prefix = "MACSEC_SA_STATS_ATTR_"
    return Stats(
        in_ok=nested.get_attr(prefix + "IN_PKTS_OK", 0),
        in_invalid=nested.get_attr(prefix + "IN_PKTS_INVALID", 0),
        in_not_valid=nested.get_attr(prefix + "IN_PKTS_NOT_VALID", 0),
        in_not_using_sa=nested.get_attr(prefix + "IN_PKTS_NOT_USING_SA", 0),
        in_unused_sa=nested.get_attr(prefix + "IN_PKTS_UNUSED_SA", 0),
        out_protected=nested.get_attr(prefix + "OUT_PKTS_PROTECTED", 0),
        out_encrypted=nested.get_attr(prefix + "OUT_PKTS_ENCRYPTED", 0),
    )
