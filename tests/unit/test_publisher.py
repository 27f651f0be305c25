"""What a node says of itself: versions that only grow, and a store that believes it."""

from __future__ import annotations

import asyncio
import time

import msgspec

from daemon.cluster.publisher import Publisher
from daemon.journal import Journal
from daemon.model import records
from daemon.model.keys import Key
from daemon.model.records import Manifest, NodeInfo
from daemon.model.store import Store
from netconf.attach.attachment import Attachment
from tests.unit.model_kit import KEYS, NOW, filled, identity, info, store

ATTACHMENT = Attachment(
    id="0000000000aa",
    network="mesh",
    container="c0ffee",
    ifname="eth0",
    netns="/run/netns/x",
    netns_id=(1, 2),
    service="web",
    key_file="/run/key",
    address="10.64.16.5",
    salt="11" * 32,
    an=0,
    mtu=1468,
    phase="ready",
)


class Speaker:
    """Statements over a real store, and everything they published."""

    def __init__(self, known: Store) -> None:
        self.store = known
        self.published: list[tuple[str, bytes]] = []
        self.statements = Publisher(
            identity("n1"), known, self._publish, Journal(), clock=lambda: NOW
        )
        self.statements.resume()

    def _publish(self, key: str, sealed: bytes) -> None:
        self.published.append((key, sealed))

    @property
    def versions(self) -> list[int]:
        return [records.decode(sealed).version for _, sealed in self.published]


def test_a_replica_is_said_held_and_withdrawn() -> None:
    speaker = Speaker(filled())
    sealed = speaker.statements.replica(ATTACHMENT)
    key = KEYS.replica("n1", ATTACHMENT.id)
    assert speaker.published == [(key, sealed)]
    assert speaker.statements.replicas() == {ATTACHMENT.id}
    held = speaker.store.replica("n1", ATTACHMENT.id)
    assert held is not None
    assert (held.address, held.salts) == ("10.64.16.5", {0: b"\x11" * 32})
    speaker.statements.withdraw(ATTACHMENT.id)
    assert speaker.statements.replicas() == set()
    assert speaker.published[-1][0] == key


def test_others_believe_what_is_published() -> None:
    speaker = Speaker(store())
    speaker.statements.info(info("n1"))
    speaker.statements.replica(ATTACHMENT)
    speaker.statements.manifest()
    other = store()
    assert all(other.offer(sealed, NOW).changed for _, sealed in speaker.published)
    assert other.behind("n1") == []


def test_versions_grow_within_a_life() -> None:
    speaker = Speaker(filled())
    for _ in range(50):
        speaker.statements.replica(ATTACHMENT)
        speaker.statements.withdraw(ATTACHMENT.id)
    assert speaker.versions == sorted(set(speaker.versions))


def test_versions_grow_across_a_restart_even_if_the_clock_went_back() -> None:
    before = Speaker(filled())
    ahead = time.time_ns() + 10**18  # the clock was wrong by thirty years
    asyncio.run(before.statements.overtake(ahead))
    before.statements.replica(ATTACHMENT)
    remembered = store()
    remembered.load(before.store.dump())
    after = Speaker(remembered)
    after.statements.withdraw(ATTACHMENT.id)
    assert after.versions[0] > max(before.versions) > ahead
    assert after.statements.replicas() == set()


def test_what_peers_remember_is_overtaken_after_the_state_was_lost() -> None:
    before = Speaker(filled())
    asyncio.run(before.statements.overtake(time.time_ns() + 10**18))
    before.statements.replica(ATTACHMENT)
    peer = store()
    peer.load(before.store.dump())
    after = Speaker(store())
    after.statements.info(info("n1"))
    after.statements.replica(msgspec.structs.replace(ATTACHMENT, salt="22" * 32))
    assert not any(peer.offer(sealed, NOW).changed for _, sealed in after.published)
    after.published.clear()
    asyncio.run(after.statements.overtake(peer.highest("n1")))
    assert all(peer.offer(sealed, NOW).changed for _, sealed in after.published)
    found = peer.replica("n1", ATTACHMENT.id)
    assert found is not None
    assert found.salts == {0: b"\x22" * 32}


def test_the_loop_goes_on_while_all_records_are_signed_anew() -> None:
    async def scene() -> None:
        speaker = Speaker(filled())
        several = [msgspec.structs.replace(ATTACHMENT, id=f"{number:012x}") for number in range(50)]
        for one in several:
            speaker.statements.replica(one)
        ahead = max(speaker.versions) + 10**18
        speaker.published.clear()
        overtaking = asyncio.ensure_future(speaker.statements.overtake(ahead))
        await asyncio.sleep(0)
        assert 0 < len(speaker.published) < len(several)
        speaker.statements.withdraw(several[-1].id)
        await overtaking
        assert speaker.statements.replicas() == {one.id for one in several[:-1]}
        manifest = speaker.store.manifest_of("n1")
        assert manifest == speaker.store.manifest("n1")

    asyncio.run(scene())


def test_a_peer_that_lies_cannot_use_up_the_versions() -> None:
    for lie in (records.MAX_VERSION, 2**64 - 1, 2**200):
        speaker = Speaker(filled())
        asyncio.run(speaker.statements.overtake(lie))
        speaker.statements.replica(ATTACHMENT)
        assert speaker.statements.replicas() == {ATTACHMENT.id}


def test_what_changed_while_the_daemon_was_away_is_not_said_yet() -> None:
    speaker = Speaker(filled())
    assert not speaker.statements.said(ATTACHMENT)
    speaker.statements.replica(ATTACHMENT)
    assert speaker.statements.said(ATTACHMENT)
    # Neither the MTU nor the namespace is part of the record; salt, address and service are.
    replace = msgspec.structs.replace
    assert speaker.statements.said(replace(ATTACHMENT, mtu=1300, netns_id=(1, 3)))
    for change in ({"salt": "22" * 32}, {"address": "10.64.16.6"}, {"service": "api"}, {"an": 1}):
        assert not speaker.statements.said(replace(ATTACHMENT, **change))


def test_an_answer_holds_everything_with_a_manifest_that_is_true() -> None:
    speaker = Speaker(filled())
    speaker.statements.replica(ATTACHMENT)
    answer = [records.decode(sealed) for sealed in speaker.statements.everything()]
    assert {e.key for e in answer} >= {
        KEYS.policy,
        KEYS.info("n1"),
        KEYS.manifest("n1"),
        KEYS.replica("n1", ATTACHMENT.id),
    }
    other = filled()
    other.sync(speaker.statements.everything(), NOW)
    assert other.behind("n1") == []
    manifest = next(e for e in answer if e.key == KEYS.manifest("n1"))
    body = records.open_body(Key("manifest", "n1"), manifest)
    assert isinstance(body, Manifest)
    assert set(body.versions) == {"info", f"replica/{ATTACHMENT.id}"}
    assert manifest.version > max(body.versions.values())


def test_again_publishes_what_an_answer_holds() -> None:
    speaker = Speaker(filled())
    speaker.statements.replica(ATTACHMENT)
    speaker.published.clear()
    speaker.statements.again()
    assert {key for key, _ in speaker.published} == {
        records.decode(sealed).key for sealed in speaker.statements.everything()
    }


def test_the_store_judges_this_node_like_any_other() -> None:
    speaker = Speaker(filled())
    speaker.statements.info(info("n2"))  # n1's signature under n1's key, but of n2
    infos: dict[str, NodeInfo] = speaker.store.infos()
    assert infos["n2"] == info("n2")
    assert infos["n1"] == info("n1")
