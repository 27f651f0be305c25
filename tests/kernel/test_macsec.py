"""Keys come and go on a real kernel: rekeying, revoking, and what the kernel refuses."""

from __future__ import annotations

import errno

import pytest

from netconf import keys
from netconf.attach import inspection
from netconf.netlink import links, macsec
from tests.kernel.conftest import SECRET, MeshNode
from tests.kernel.test_attach import MakeContainer, befriend, opened, ping, secy, until


def test_rekeying_and_revoking(
    mesh_nodes: tuple[MeshNode, MeshNode], container: MakeContainer
) -> None:
    here, there = mesh_nodes
    first, second = container(), container()
    one, two = here.attach(first.request()), there.attach(second.request())
    befriend(here, first, one, two)
    befriend(there, second, two, one)
    until(lambda: ping(first, two.address), "the two containers ping each other")

    salt = keys.new_salt()
    sak = keys.derive_sak(SECRET, salt=salt, ca=one.network, sci=one.sci)
    named = keys.key_id(salt, one.sci)
    with opened(first) as (own_rtnl, own), opened(second) as (peer_rtnl, peer):
        (sender,), (receiver,) = macsec.dump(own), macsec.dump(peer)
        # The receiver can read the next key before the sender uses it.
        macsec.add_rx_sa(peer, receiver, one.sci, 1, sak, named)
        with pytest.raises(OSError) as refused:
            macsec.add_rx_sa(peer, receiver, one.sci, 1, sak, named)
        assert refused.value.errno == errno.EBUSY
        macsec.add_tx_sa(own, sender, 1, sak, named)
        macsec.set_encoding_sa(own_rtnl, sender, 1)
        assert ping(first, two.address), "nothing is lost at the change"
        macsec.del_tx_sa(own, sender, 0)
        macsec.del_rx_sa(peer, receiver, one.sci, 0)
        assert ping(first, two.address)
        assert secy(first).encoding_sa == 1
        assert set(secy(first).tx_sas) == {1}
        assert {an: sa.key_id for an, sa in secy(second).rx[one.sci].items()} == {1: named}
        assert secy(second).rx[one.sci][1].stats.in_ok > 0

        macsec.del_rx_sc(peer, receiver, one.sci)
        links.del_neighbour(peer_rtnl, receiver, one.address)
        links.del_neighbour(peer_rtnl, receiver, one.address)
        assert secy(second).rx == {}
        assert links.neighbours(peer_rtnl, receiver) == {}
        assert not ping(first, two.address)
        with pytest.raises(OSError) as gone:
            macsec.del_rx_sc(peer, receiver, one.sci)
        assert gone.value.errno == errno.ENODEV


def test_a_secy_of_many_channels_is_read_from_a_new_socket(
    mesh_nodes: tuple[MeshNode, MeshNode], container: MakeContainer
) -> None:
    here, _ = mesh_nodes
    one = container()
    made = here.attach(one.request())
    with opened(one) as (_, genl):
        (index,) = macsec.dump(genl)
        sak = bytes(16)
        for n in range(1, 61):
            sci = made.sci[:4] + n.to_bytes(4, "big")
            macsec.add_rx_sc(genl, index, sci)
            macsec.add_rx_sa(genl, index, sci, 0, sak, bytes(16))
    assert len(secy(one).rx) == 60


def test_a_secy_the_kernel_cannot_list_is_no_difference(
    mesh_nodes: tuple[MeshNode, MeshNode], container: MakeContainer
) -> None:
    here, _ = mesh_nodes
    one = container()
    made = here.attach(one.request())
    with opened(one) as (rtnl, genl):
        (index,) = macsec.dump(genl)
        for n in range(1, 301):
            sci = made.sci[:4] + n.to_bytes(4, "big")
            macsec.add_rx_sc(genl, index, sci)
            macsec.add_rx_sa(genl, index, sci, 0, bytes(16), bytes(16))
        assert macsec.dump(genl) == {}, "rule 6 of netconf.netlink.macsec has changed"
        assert inspection.inside(rtnl, genl, here.net, made) == []
