"""The MACsec and batman-adv messages, byte by byte, as the kernel's headers have them."""

from __future__ import annotations

import struct
from typing import Any

from netconf.netlink import macsec
from netconf.uapi import batadv as batadvmsg
from netconf.uapi import macsec as macsecmsg
from netconf.uapi.messages import ifinfmsg, nlmsg

SCI = bytes.fromhex("024e0a4010050001")


def attribute(kind: int, payload: bytes) -> bytes:
    """One netlink attribute, padded."""
    head = struct.pack("=HH", 4 + len(payload), kind)
    return head + payload + bytes(-len(payload) % 4)


def encoded(message: nlmsg) -> bytes:
    """What follows the netlink header."""
    message["header"] = {"type": 0x20, "flags": 1, "sequence_number": 1, "pid": 0}
    message.encode()
    return bytes(message.data)[16:]


def decoded(message_class: type[nlmsg], payload: bytes) -> Any:
    """A message read from what follows the netlink header."""
    head = struct.pack("=IHHII", 16 + len(payload), 0x20, 0, 1, 0)
    message = message_class(head + payload)
    message.decode()
    return message


class Recorder:
    """Stands in for a socket: keeps what would be sent."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []

    def batch(self, requests: list[Any]) -> list[list[nlmsg]]:
        self.sent += [encoded(request.message) for request in requests]
        return [[] for _ in requests]


def test_add_rx_sa_on_the_wire(monkeypatch: Any) -> None:
    monkeypatch.setattr(macsec, "family_id", lambda *_: 0x20)
    socket: Any = Recorder()
    key, key_id = bytes(range(16)), bytes(range(16, 32))
    macsec.add_rx_sa(socket, 7, SCI, 2, key, key_id)
    (sent,) = socket.sent
    assert sent == (
        struct.pack("=BBH", 7, 1, 0)
        + attribute(1, struct.pack("=I", 7))
        + attribute(2, attribute(1, SCI))
        + attribute(
            3,
            attribute(1, b"\x02")
            + attribute(2, b"\x01")
            + attribute(3, struct.pack("=I", 1))
            + attribute(4, key)
            + attribute(5, key_id),
        )
    )


def test_deleting_an_rx_sa_deactivates_it_first(monkeypatch: Any) -> None:
    monkeypatch.setattr(macsec, "family_id", lambda *_: 0x20)
    socket: Any = Recorder()
    macsec.del_rx_sa(socket, 7, SCI, 3)
    commands = [sent[0] for sent in socket.sent]
    assert commands == [macsecmsg.MACSEC_CMD_UPD_RXSA, macsecmsg.MACSEC_CMD_DEL_RXSA]
    assert attribute(2, b"\x00") in socket.sent[0]


def test_a_secy_is_read_whole(monkeypatch: Any) -> None:
    sa = (
        attribute(1, b"\x01")
        + attribute(2, b"\x01")
        + attribute(3, struct.pack("=I", 77))
        + attribute(5, bytes(range(16)))
        + attribute(6, attribute(1, struct.pack("=I", 5)) + attribute(7, struct.pack("=I", 9)))
    )
    flags = {2: 1, 5: 16, 6: 1, 7: 1, 8: 1, 9: 2, 10: 1, 11: 0, 12: 1, 13: 0}
    secy = (
        attribute(1, SCI)
        + b"".join(attribute(kind, bytes([value])) for kind, value in flags.items())
        + attribute(3, struct.pack("=I", macsec.WINDOW))
        + attribute(4, struct.pack("=Q", macsecmsg.MACSEC_DEFAULT_CIPHER_ID))
    )
    peer = bytes.fromhex("024e0a4020060001")
    payload = (
        struct.pack("=BBH", 0, 1, 0)
        + attribute(1, struct.pack("=I", 4))
        + attribute(4, secy)
        + attribute(5, attribute(1, sa))
        + attribute(
            6,
            attribute(
                1, attribute(1, peer) + attribute(2, b"\x01") + attribute(3, attribute(1, sa))
            ),
        )
    )
    monkeypatch.setattr(macsec, "family_id", lambda *_: 0x20)

    class Answering:
        def dump(self, kind: int, message: nlmsg, most: int) -> list[nlmsg]:
            assert most == macsec.SECYS_MOST
            return [decoded(macsecmsg.macsecmsg, payload)]

    socket: Any = Answering()
    found = macsec.dump(socket)[4]
    stats = macsec.Stats(in_ok=5, out_encrypted=9)
    wanted = macsec.SA(key_id=bytes(range(16)), pn=77, active=True, stats=stats)
    assert found.sci == SCI
    assert found.tx_sas == {1: wanted}
    assert found.rx == {peer: {1: wanted}}
    assert (found.encoding_sa, found.end_station, found.send_sci) == (1, True, False)
    assert macsec.lacking(found) == []


def test_every_unsafe_default_is_named() -> None:
    bare = macsec.SecY(
        ifindex=1,
        sci=SCI,
        encrypt=False,
        protect=False,
        validate=1,
        replay=False,
        window=0,
        send_sci=True,
        end_station=False,
        encoding_sa=0,
        icv_len=8,
        cipher=0,
        tx_sas={},
        rx={},
    )
    assert len(macsec.lacking(bare)) == 9


def test_link_data_as_the_kernel_reads_it() -> None:
    message = ifinfmsg()
    info = [("IFLA_INFO_KIND", "macsec"), ("IFLA_INFO_DATA", {"attrs": macsec.link_data()})]
    message["attrs"] = [("IFLA_LINKINFO", {"attrs": info})]
    sent = encoded(message)
    for kind, payload in (
        (2, b"\x00\x01"),
        (4, struct.pack("=Q", macsecmsg.MACSEC_CIPHER_ID_GCM_AES_128)),
        (5, struct.pack("=I", macsec.WINDOW)),
        (7, b"\x01"),
        (9, b"\x00"),
        (10, b"\x01"),
        (12, b"\x01"),
        (13, b"\x02"),
    ):
        assert attribute(kind, payload) in sent


def test_packet_numbers_of_both_widths() -> None:
    for raw, number in ((struct.pack("=I", 9), 9), (struct.pack("=Q", 1 << 40), 1 << 40)):
        message = decoded(
            macsecmsg.macsecmsg,
            struct.pack("=BBH", 0, 1, 0) + attribute(3, attribute(3, raw)),
        )
        assert message.get_attr("MACSEC_ATTR_SA_CONFIG").get_attr("MACSEC_SA_ATTR_PN") == number


def test_numbers_agree_with_the_headers() -> None:
    def numbered(message_class: type[nlmsg], name: str) -> int:
        return [entry[0] for entry in message_class.nla_map].index(name)

    assert numbered(macsecmsg.macsec, "IFLA_MACSEC_OFFLOAD") == 15
    assert numbered(macsecmsg.macsecmsg, "MACSEC_ATTR_OFFLOAD") == 9
    assert numbered(macsecmsg.macsec_secy, "MACSEC_SECY_ATTR_SCB") == 13
    assert numbered(macsecmsg.macsec_sa, "MACSEC_SA_ATTR_SALT") == 9
    assert numbered(batadvmsg.batadvmsg, "BATADV_ATTR_TT_ADDRESS") == 16
    assert numbered(batadvmsg.batadvmsg, "BATADV_ATTR_TQ") == 25
    assert numbered(batadvmsg.batadvmsg, "BATADV_ATTR_THROUGHPUT") == 26
    assert numbered(batadvmsg.batadvmsg, "BATADV_ATTR_MULTICAST_FANOUT") == 60
