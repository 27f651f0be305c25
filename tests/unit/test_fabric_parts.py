"""The pure parts of the fabric: keys, presence, answers, inbox, settings, access rules."""

from __future__ import annotations

import asyncio
import functools
import itertools
import json
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.fabric import Settings
from daemon.fabric.answer import MAX_REPLIES, Answer, split
from daemon.fabric.identity_files import Contents
from daemon.fabric.inbox import BURST, Inbox
from daemon.fabric.link_repair import PATIENCE, PAUSE, PAUSE_LIMIT, LinkRepair
from daemon.fabric.presence import LOSS_GRACE, PROMISE, RETURN_GRACE, Appearance, Presence
from daemon.fabric.zenoh_config import access_control, session_config
from daemon.model.keys import Keys
from netconf.errors import InvalidConfig

KEYS = Keys("c")


def settings(**changes: object) -> Settings:
    given_: dict[str, object] = {
        "cluster": "c",
        "node": "n1",
        "listen": ("tls/127.0.0.1:1",),
        "connect": ("tls/127.0.0.1:2", "tls/127.0.0.1:1"),
        "ca": "ca",
        "certificate": "crt",
        "key": "key",
    }
    return Settings(**(given_ | changes))  # type: ignore[arg-type]


# -- presence


def test_a_change_is_news_once() -> None:
    presence = Presence("n1")
    assert presence.appeared("n1") is Appearance.KNOWN
    assert presence.appeared("n2") is Appearance.NEWS
    assert presence.appeared("n2") is Appearance.KNOWN
    presence.vanished("n2", 10.0)
    presence.vanished("n2", 10.01)
    assert presence.next() == 10.0 + LOSS_GRACE
    assert presence.due(10.0) == []
    assert presence.due(10.0 + LOSS_GRACE) == ["n2"]
    assert presence.due(20.0) == []
    presence.vanished("n2", 21.0)
    assert presence.next() is None
    assert presence.appeared("n2") is Appearance.NEWS


def test_a_token_that_comes_back_in_time_was_never_gone() -> None:
    presence = Presence("n1")
    presence.appeared("n2")
    presence.vanished("n2", 1.0)
    assert presence.appeared("n2") is Appearance.RETURNED
    assert presence.appeared("n2") is Appearance.KNOWN
    assert presence.due(99.0) == []


def test_a_promise_buys_time_once() -> None:
    presence = Presence("n1")
    presence.appeared("n2")
    presence.promised("n2", 1.0)
    presence.vanished("n2", 1.1)
    assert presence.next() == 1.1 + RETURN_GRACE
    presence.appeared("n2")
    presence.vanished("n2", 1.2)
    assert presence.next() == 1.2 + LOSS_GRACE


def test_a_promise_may_come_late_and_grows_old() -> None:
    presence = Presence("n1")
    presence.appeared("n2")
    presence.vanished("n2", 1.0)
    presence.promised("n2", 1.01)
    assert presence.next() == 1.01 + RETURN_GRACE
    presence.appeared("n2")
    presence.promised("n2", 2.0)
    presence.vanished("n2", 2.1 + PROMISE)
    assert presence.next() == 2.1 + PROMISE + LOSS_GRACE
    presence.promised("n3", 3.0)  # of one who is not there: worth nothing
    presence.appeared("n3")
    presence.vanished("n3", 3.1)
    assert presence.next() == 3.1 + LOSS_GRACE


def test_after_reopening_everyone_has_to_show_up() -> None:
    presence = Presence("n1")
    for node in ("n2", "n3", "n4"):
        presence.appeared(node)
    assert presence.expel(frozenset({"n1", "n2", "n3"})) == ["n4"]
    presence.reopened(5.0)
    assert presence.appeared("n2") is Appearance.RETURNED
    assert presence.due(5.0 + RETURN_GRACE) == ["n3"]
    assert presence.alive == {"n2"}


# -- splits

NOBODY: frozenset[str] = frozenset()
N2 = frozenset({"n2"})


def test_a_link_without_a_token_is_given_some_time() -> None:
    watch = LinkRepair()
    assert watch.look(N2, N2, 0) == NOBODY
    assert watch.look(N2, NOBODY, 1) == NOBODY
    assert watch.look(N2, N2, 1.5) == NOBODY
    assert watch.look(N2, NOBODY, 2) == NOBODY
    assert watch.look(N2 | {"n3"}, NOBODY, 2 + PATIENCE) == N2


def test_a_peer_that_shows_no_token_is_tried_less_and_less() -> None:
    watch = LinkRepair()
    step = PATIENCE / 2
    tries = [i * step for i in range(4000) if watch.look(N2, NOBODY, i * step)]
    pauses = [round(b - a, 3) for a, b in itertools.pairwise(tries)]
    assert pauses[:3] == pytest.approx([PAUSE, 2 * PAUSE, 4 * PAUSE], rel=0.1)
    assert max(pauses) <= PAUSE_LIMIT + step
    # Once all is well, the next case is not made to wait.
    assert watch.look(N2, N2, 5000) == NOBODY
    watch.look(N2, NOBODY, 5001)
    assert watch.look(N2, NOBODY, 5001 + PATIENCE) == N2


def test_a_peer_that_hides_its_token_again_and_again_costs_the_others_little() -> None:
    watch = LinkRepair()
    hour = [second / 2 for second in range(7200)]
    # Gone for 1.5 s, back for half a second.
    tries = [now for now in hour if watch.look(N2, N2 if now % 2 == 0 else NOBODY, now)]
    assert 0 < len(tries) <= 50
    # Another peer's split is mended at once all the same.
    watch.look(frozenset({"n3"}), NOBODY, 3600.0)
    assert watch.look(frozenset({"n3"}), NOBODY, 3600.0 + PATIENCE) == {"n3"}


def test_who_is_split_now_and_then_is_mended_each_time() -> None:
    watch = LinkRepair()
    for number in range(30):
        gone = number * 120.0
        assert watch.look(N2, NOBODY, gone) == NOBODY
        assert watch.look(N2, NOBODY, gone + PATIENCE) == N2
        assert watch.look(N2, N2, gone + PATIENCE + 1) == NOBODY


# -- answers


@given(st.lists(st.binary(max_size=20), max_size=20), st.randoms())
def test_an_answer_survives_any_order(replies: list[bytes], order: object) -> None:
    parts = list(split(replies)) * 2
    order.shuffle(parts)  # type: ignore[attr-defined]
    answer = Answer()
    for place, payload in parts:
        answer.add(place, payload)
    assert answer.whole
    assert answer.replies() == replies


def test_a_part_of_an_answer_is_none() -> None:
    answer = Answer()
    assert not answer.whole
    first, second = split([b"a", b"b"])
    answer.add(*second)
    assert not answer.whole
    for place in (b"", b"\0", b"\0\0\0\3", b"\0\2\0\2"):
        with pytest.raises(ValueError, match="reply"):
            answer.add(place, b"")
    answer.add(*first)
    assert answer.whole


def test_an_answer_is_bounded() -> None:
    with pytest.raises(ValueError, match="more than"):
        list(split([b""] * (MAX_REPLIES + 1)))
    with pytest.raises(ValueError, match="does not fit"):
        Answer().add(b"\0\0\xff\xff", b"")


# -- inbox


def fill(inbox: Inbox, *items: tuple[str, Callable[[], None]]) -> None:
    """Put `items`, each of a source, from another thread while the loop is held."""
    thread = threading.Thread(target=lambda: [inbox.put(call, source) for source, call in items])
    thread.start()
    thread.join()


def test_the_inbox_keeps_order_across_bursts() -> None:
    async def run() -> None:
        inbox = Inbox(asyncio.get_running_loop())
        heard: list[int] = []
        count = 3 * BURST
        fill(inbox, *(("n2", functools.partial(heard.append, i)) for i in range(count)))
        async with asyncio.timeout(5):
            while len(heard) < count:
                await asyncio.sleep(0)
        assert heard == list(range(count))
        inbox.put(lambda: heard.append(-1))
        inbox.close()
        await asyncio.sleep(0)
        assert heard == list(range(count))

    asyncio.run(run())


def test_a_call_that_fails_stops_nothing(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        inbox = Inbox(asyncio.get_running_loop())
        heard = asyncio.Event()

        def fail() -> None:
            raise ZeroDivisionError

        async with asyncio.timeout(5):
            inbox.put(fail)
            inbox.put(heard.set)
            await heard.wait()
            heard.clear()
            inbox.put(heard.set)
            await heard.wait()

    asyncio.run(run())
    (line,) = (record for record in caplog.records if record.name == "daemon.fabric.inbox")
    assert line.exc_info is not None


def test_a_flood_pushes_out_only_itself() -> None:
    async def run() -> None:
        dropped: list[None] = []
        inbox = Inbox(asyncio.get_running_loop(), 100, lambda: dropped.append(None))
        heard: list[tuple[str, int]] = []
        ended: list[int] = []

        def said(source: str, number: int) -> tuple[str, Callable[[], None]]:
            return source, functools.partial(heard.append, (source, number))

        fill(inbox, *(said("liar", i) for i in range(5000)))
        fill(inbox, *(said(f"n{i % 4}", i // 4) for i in range(80)))
        inbox.put(lambda: None, "liar", instead=lambda: ended.append(1))
        inbox.put(lambda: heard.append(("token", 0)), bounded=False)
        async with asyncio.timeout(5):
            while len(heard) < 101:
                await asyncio.sleep(0)
        # All of everybody else's, in order; of the liar's the oldest that there is room for.
        for node in ("n0", "n1", "n2", "n3"):
            assert [i for source, i in heard if source == node] == list(range(20))
        assert [i for source, i in heard if source == "liar"] == list(range(20))
        assert len(dropped) == 5000 - 20 + 1
        assert ended == [1]
        # Neither a token nor anybody's first word waits for what the liar said before.
        assert heard[0] == ("token", 0)
        assert {source for source, _ in heard[1:6]} == {"liar", "n0", "n1", "n2", "n3"}

    asyncio.run(run())


def test_an_inbox_outlives_its_loop_quietly() -> None:
    loop = asyncio.new_event_loop()
    inbox = Inbox(loop)
    loop.close()
    inbox.put(lambda: None)


# -- settings and access


@pytest.mark.parametrize(
    ("field", "value", "names"),
    [
        ("cluster", "a/b", "cluster: 'a/b'"),
        ("node", "n*", "node: 'n\\*'"),
        ("node", "", "node: ''"),
        ("nodes", frozenset({"n2", "@x"}), "nodes: '@x'"),
        ("listen", ("tls/a:" + "9" * 5000,), "the port must be 1 to 65535"),
        ("listen", ("tcp/1.2.3.4:1",), "fabric.listen: 'tcp/1.2.3.4:1' is not of the form"),
        (
            "connect",
            ("tls/::1:1",),
            r"fabric.connect: .*as tls/\[ADDRESS\]:PORT",
        ),
        ("connect", ("tls/a:99999",), "fabric.connect: .*1 to 65535"),
    ],
)
def test_settings_name_what_is_wrong(field: str, value: object, names: str) -> None:
    with pytest.raises(InvalidConfig, match=names):
        settings(**{field: value})


def test_nobody_but_us_has_our_name() -> None:
    access = access_control(settings(nodes=frozenset({"n1", "n2"})))
    assert [subject.id for subject in access.subjects] == ["n2"]
    assert access.default_permission == "deny"


def test_no_rule_lets_a_node_touch_anothers_keys() -> None:
    access = access_control(settings(nodes=frozenset({"n1", "n2", "n3"})))
    rules = {rule.id: rule for rule in access.rules}
    speaking = {"put", "reply", "declare_queryable", "liveliness_token", "delete"}
    for grant in access.policies:
        (subject,) = grant.subjects
        for rule in (rules[name] for name in grant.rules):
            if "ingress" in rule.flows and speaking & set(rule.messages):
                for key in rule.key_exprs:
                    assert key == KEYS.policy or subject in key.split("/")
                    assert "delete" not in rule.messages


def test_alone_means_that_nobody_is_let_in() -> None:
    access = access_control(settings(nodes=frozenset({"n1"})))
    assert (access.subjects, access.policies, access.enabled) == ((), (), True)


def test_a_node_does_not_dial_itself() -> None:
    config = json.loads(session_config(settings(), Contents(b"", b"", b"")))
    assert config["connect"]["endpoints"] == ["tls/127.0.0.1:2"]


def test_only_the_interface_is_known_to_the_daemon() -> None:
    """Nothing outside the adapter imports zenoh."""
    root = Path(__file__).parents[2] / "daemon"
    users = sorted(p.name for p in root.rglob("*.py") if "import zenoh\n" in p.read_text())
    assert users == ["zenoh_fabric.py", "zenoh_session.py"]
