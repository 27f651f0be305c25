"""A certificate ends: what a running daemon believes, and what one that restarts then believes.

They are the same: every store here is compared with one that loads its snapshot.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from random import Random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.cluster.publisher import Publisher
from daemon.cluster.snapshot import Snapshot
from daemon.ctl import pki
from daemon.fabric import identity_files
from daemon.journal import Journal
from daemon.model.identity import Identity
from daemon.model.records import Body, Manifest, Withdrawn
from daemon.model.store import Store
from daemon.model.trust import DAY, Trust
from daemon.model.verdict import Outcome
from netconf.errors import InvalidConfig
from tests.unit.fabric_kit import Authority
from tests.unit.model_kit import (
    KEYS,
    NOW,
    attachment,
    filled,
    folder,
    identity,
    info,
    record,
    replica,
    store,
    trust,
)
from tests.unit.test_publisher import ATTACHMENT

END = NOW + pki.NODE_LIFE.total_seconds()
LATER = END + DAY


def restarted(running: Store) -> Store:
    """What a daemon believes that starts on the snapshot of `running`, whenever that is."""
    made = store()
    made.load(running.dump())
    return made


def test_what_counted_goes_on_counting_here_and_after_a_restart(tmp_path: Path) -> None:
    running = filled(record("n2", 2, replica("n2", 5)))
    assert running.offer(record("n2", 2, replica("n2", 5)), LATER).outcome is Outcome.KNOWN
    contents, policy = running.contents(), running.envelope(KEYS.policy)
    Snapshot(tmp_path, tmp_path, running).write(contents, policy, running.revision)
    after = store()
    assert Snapshot(tmp_path, tmp_path, after).load() == []
    assert [r.node for r in running.replicas()] == [r.node for r in after.replicas()] == ["n2"]
    assert after.dump() == running.dump()


@pytest.mark.parametrize("life", [lambda running: running, restarted])
def test_nothing_new_is_given_by_a_certificate_that_has_ended(
    life: Callable[[Store], Store],
) -> None:
    made = life(filled(record("n2", 2, replica("n2", 5))))
    for body in (replica("n2", 6), replica("n2", 5, service="api"), info("n2", mtu=1400)):
        verdict = made.offer(record("n2", 9, body), LATER)
        assert verdict.outcome is Outcome.BAD_CERTIFICATE, body
        assert verdict.reason
    assert [r.address for r in made.replicas()] == ["10.64.32.5"]
    assert made.infos()["n2"].mtu == 1468


@pytest.mark.parametrize("life", [lambda running: running, restarted])
def test_what_takes_away_is_believed_of_it_still(life: Callable[[Store], Store]) -> None:
    held = [record("n2", 2, replica("n2", number)) for number in (5, 6)]
    made = life(filled(*held))
    gone = Withdrawn(attachment=attachment(5))
    assert made.offer(record("n2", 3, gone), LATER).changed
    assert made.offer(record("n2", 4, Manifest(versions={"info": 1})), LATER).changed
    assert made.replicas() == ()


SAYS = ("info", "replica 5", "replica 6", "withdraw 5", "manifest")
"""What n2 may say next."""


def said(words: list[str]) -> list[bytes]:
    """Return the records of an n2 that says `words` in this order, as a publisher numbers them."""
    made: list[bytes] = []
    live = {"info": 1}
    for version, word in enumerate(words, start=2):
        body: Body
        kind, _, number = word.partition(" ")
        match kind:
            case "info":
                body = info("n2", mtu=1400 + version)
                live["info"] = version
            case "replica":
                body = replica("n2", int(number))
                live[f"replica/{body.attachment}"] = version
            case "withdraw":
                body = Withdrawn(attachment=attachment(int(number)))
                live.pop(f"replica/{body.attachment}", None)
            case _:
                body = Manifest(versions=dict(live))
        made.append(record("n2", version, body))
    return made


@given(
    st.lists(st.sampled_from(SAYS), max_size=8),
    st.randoms(use_true_random=False),
    st.lists(st.sampled_from([NOW - DAY, NOW, END, LATER]), min_size=8, max_size=8),
)
def test_running_and_restarted_agree_whatever_came_when(
    words: list[str], random: Random, times: list[float]
) -> None:
    """Records are lost and reordered, and arrive before, within and after the dates."""
    records = said(words)
    heard = random.sample(records, random.randint(0, len(records)))
    running = filled()
    for sealed, now in zip(heard, times, strict=False):
        running.offer(sealed, now)
    after = restarted(running)
    assert after.dump() == running.dump()
    assert after.replicas() == running.replicas()
    for sealed in records:
        assert after.offer(sealed, LATER) == running.offer(sealed, LATER)


def test_each_nodes_end_is_known() -> None:
    assert {node: dates.until for node, dates in filled().certificates().items()} == dict.fromkeys(
        ("n1", "n2", "n3"), END
    )


# --- renewal


def renewed(place: Path, now: float, node: str = "n1") -> Identity:
    """A new pair of `node` by the tests' CA."""
    place.mkdir()
    for name in ("ca.crt", "ca.key"):
        (place / name).write_bytes((folder() / name).read_bytes())
    pair = pki.issue(place, node, [], now)
    return Identity.load(pair[0], pair[1])


class Speaker:
    """A publisher over a store, at a time that a test moves."""

    def __init__(self, known: Store) -> None:
        self.store = known
        self.now = NOW
        self.published: list[bytes] = []
        self.publisher = Publisher(
            identity("n1"),
            known,
            lambda _, sealed: self.published.append(sealed),
            Journal(),
            clock=lambda: self.now,
        )
        self.publisher.resume()


def test_after_a_renewal_everything_is_signed_anew_and_survives_restarts(tmp_path: Path) -> None:
    speaker, peer = Speaker(filled()), filled()
    speaker.publisher.replica(ATTACHMENT)
    speaker.publisher.withdraw(attachment(9))
    for sealed in speaker.published:
        peer.offer(sealed, NOW)
    speaker.published.clear()
    speaker.now = END - DAY
    new = renewed(tmp_path / "new", speaker.now)
    speaker.publisher.renew(new, info("n1", certificate=new.pem), [ATTACHMENT])
    assert all(peer.offer(sealed, LATER).changed for sealed in speaker.published)
    for known in (peer, restarted(peer), speaker.store, restarted(speaker.store)):
        assert [r.attachment for r in known.replicas()] == [ATTACHMENT.id]
        assert known.certificates()["n1"].until > LATER
        assert known.dump() == restarted(known).dump()
    # With the former key nobody speaks for the node any more.
    former = record("n1", 2**62, replica("n1", 7))
    assert peer.offer(former, LATER).outcome is Outcome.BAD_SIGNATURE


def test_what_could_not_be_said_meanwhile_is_said_then(tmp_path: Path) -> None:
    """A container that came after the end was closed; the renewal opens it."""
    speaker = Speaker(filled())
    speaker.now = LATER
    speaker.publisher.replica(ATTACHMENT)
    assert speaker.store.replicas() == ()
    new = renewed(tmp_path / "new", LATER)
    speaker.publisher.renew(new, info("n1", certificate=new.pem), [ATTACHMENT])
    assert [r.attachment for r in speaker.store.replicas()] == [ATTACHMENT.id]


def test_a_container_that_goes_after_the_end_leaves_its_own_nodes_slots() -> None:
    speaker = Speaker(filled())
    speaker.publisher.replica(ATTACHMENT)
    assert len(speaker.store.replicas()) == 1
    speaker.now = LATER
    speaker.publisher.withdraw(ATTACHMENT.id)
    assert speaker.store.replicas() == ()


def test_a_ca_that_is_believed_no_longer_takes_its_nodes_along(tmp_path: Path) -> None:
    """As after a restart with the same CA file."""
    both = Trust.load(folder() / "ca.crt", folder() / "authority.crt")
    pki.init(tmp_path, "lab", NOW)
    other = Trust.load(tmp_path / "ca.crt", None)
    made = filled(record("n2", 2, replica("n2", 5)))
    made.rely_on([*both.roots, *other.roots])
    assert len(made.infos()) == 3
    made.rely_on(other.roots)
    assert (made.infos(), made.replicas(), made.certificates()) == ({}, (), {})
    assert made.policy() is not None  # the authority is believed for its own sake
    after = Store("lab", trust().with_roots(other.roots))
    after.load(filled(record("n2", 2, replica("n2", 5))).dump())
    assert after.dump() == made.dump()


# --- the fabric's session


def test_a_session_is_not_opened_on_files_that_others_would_refuse(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    settings = authority.settings("n1", 7447, [])
    assert identity_files.load(settings)
    other = authority.settings("n2", 7447, [])
    for source, name in ((other.certificate, "n1.crt"), (other.key, "n1.key")):
        (tmp_path / name).write_bytes(Path(source).read_bytes())
    with pytest.raises(InvalidConfig, match='it is of "n2", and this node is "n1"'):
        identity_files.load(settings)
    for name in ("n1.crt", "n1.key"):
        (tmp_path / name).unlink()
    pki.issue(tmp_path, "n1", [], time.time() + 7 * DAY)
    with pytest.raises(InvalidConfig, match=r"in force from .* only"):
        identity_files.load(settings)


def test_one_that_has_ended_is_shown_all_the_same(tmp_path: Path) -> None:
    """A daemon that runs can say so, serve what it has, and follow the renewal."""
    settings = Authority(tmp_path / "now").settings("n1", 7447, [])
    long_ago = time.time() - 2 * pki.NODE_LIFE.total_seconds()
    pki.init(tmp_path / "then", "test", long_ago)
    certificate, key = pki.issue(tmp_path / "then", "n1", [], long_ago)
    ended = msgspec.structs.replace(
        settings, ca=str(tmp_path / "then" / "ca.crt"), certificate=str(certificate), key=str(key)
    )
    assert identity_files.load(ended)
