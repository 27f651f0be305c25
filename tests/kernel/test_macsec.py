"""Keys come and go on a real kernel: rekeying, revoking, and what the kernel refuses."""

from __future__ import annotations

import errno

import pytest

from netconf import keys
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
