"""The contract of ``daemon.fabric.interface``, kept by the memory fabric and by zenoh alike."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from daemon.fabric import MAX_PAYLOAD, FabricError, FabricRefusedError, FabricTimeoutError
from daemon.model.keys import Keys
from tests.unit.fabric_kit import Recorder, World, world

KEYS = Keys("test")
ALL = frozenset({"n1", "n2", "n3"})

Scenario = Callable[[World], Awaitable[None]]


def on_both(scenario: Scenario) -> Callable[[str, Path], None]:
    """Make a test of `scenario` that runs on each kind of fabric."""

    @pytest.mark.parametrize("kind", ["memory", "zenoh"])
    def test(kind: str, tmp_path: Path) -> None:
        async def run() -> None:
            async with world(kind, tmp_path) as made:
                await scenario(made)

        asyncio.run(run())

    functools.update_wrapper(test, scenario)
    del test.__wrapped__  # type: ignore[attr-defined]  # pytest would ask for a fixture «w»
    return test


@on_both
async def test_every_change_is_heard_once_and_never_of_oneself(w: World) -> None:
    await w.join_all("n1", "n2")
    await w.join("n3")
    await w.heard["n3"].until(lambda: w.heard["n3"].alive == {"n1", "n2"})
    await w.heard["n1"].until(lambda: "n3" in w.heard["n1"].alive)
    await w.fabrics["n2"].close()
    await w.heard["n1"].until(lambda: "n2" not in w.heard["n1"].alive)
    await w.heard["n3"].until(lambda: "n2" not in w.heard["n3"].alive)
    assert w.heard["n1"].changes == [("n2", True), ("n3", True), ("n2", False)]
    assert sorted(w.heard["n3"].changes) == [("n1", True), ("n2", False), ("n2", True)]


@on_both
async def test_a_nodes_records_reach_all_others_in_order(w: World) -> None:
    await w.join_all("n1", "n2", "n3")
    sent = [(KEYS.record("n1", "replica", f"{i:03}"), b"%d" % i * 50) for i in range(100)]
    for key, value in sent:
        w.fabrics["n1"].publish(key, value)
    w.fabrics["n1"].publish(KEYS.policy, b"policy")
    for node in ("n2", "n3"):
        heard = w.heard[node]
        await heard.until(lambda heard=heard: len(heard.records) == 101)
        # The policy is nobody's own and need not wait for what one node says.
        assert [record for record in heard.records if record[0] != KEYS.policy] == sent
        assert (KEYS.policy, b"policy") in heard.records
    assert not w.heard["n1"].records
    assert w.fabrics["n1"].counters.published == 101
    assert w.fabrics["n2"].counters.received == 101


@on_both
async def test_a_record_may_be_as_long_as_promised(w: World) -> None:
    await w.join_all("n1", "n2")
    w.fabrics["n1"].publish(KEYS.policy, bytes(MAX_PAYLOAD))
    await w.heard["n2"].until(lambda: w.heard["n2"].records)
    assert len(w.heard["n2"].records[0][1]) == MAX_PAYLOAD
    with pytest.raises(FabricError, match=f"{MAX_PAYLOAD + 1} bytes are more than"):
        w.fabrics["n1"].publish(KEYS.policy, bytes(MAX_PAYLOAD + 1))


@on_both
async def test_only_plain_keys_of_this_cluster_are_published(w: World) -> None:
    fabric = await w.join("n1")
    for key in (
        "noctule/test/node/*/info",
        "noctule/test/node/n1/**",
        "noctule/test/node/n1/$*",
        "noctule/test/node/n1",
        "noctule/test/node/n1/",
        "noctule/test/node/n1//info",
        "noctule/test/alive/n1",
        "noctule/test/ask/n1",
        "noctule/test/policy/x",
        "noctule/other/policy",
        "@/session",
        "",
    ):
        with pytest.raises(FabricError, match="not a record's key"):
            fabric.publish(key, b"")


@on_both
async def test_publishing_alone_or_closed_is_no_error(w: World) -> None:
    fabric = await w.join("n1")
    fabric.publish(KEYS.policy, b"nobody hears")
    await fabric.close()
    fabric.publish(KEYS.policy, b"nobody hears")
    assert fabric.counters.unsent == 1


@on_both
async def test_an_answer_is_whole_and_in_order(w: World) -> None:
    replies = [bytes([i]) * size for i, size in enumerate((0, 1, MAX_PAYLOAD, 300, MAX_PAYLOAD))]

    async def answer(question: bytes) -> list[bytes]:
        return replies if question == b"all" else []

    await w.join("n1")
    await w.join("n2", listener=Recorder(answer))
    await w.heard["n1"].until(lambda: w.heard["n1"].alive == {"n2"})
    # Once a node is alive it can be asked, without waiting for anything else.
    assert await w.fabrics["n1"].ask("n2", b"all", 5) == replies
    assert await w.fabrics["n1"].ask("n2", b"none", 5) == []
    assert w.heard["n2"].questions == [b"all", b"none"]


@on_both
async def test_only_the_node_asked_answers(w: World) -> None:
    await w.join_all("n1", "n2", "n3")
    asked = [w.fabrics["n1"].ask(node, node.encode(), 5) for node in ("n2", "n3") * 5]
    answers = await asyncio.gather(*asked)
    assert answers == [[b"n2"], [b"n3"]] * 5
    assert w.heard["n2"].questions == [b"n2"] * 5
    assert w.heard["n3"].questions == [b"n3"] * 5


@on_both
async def test_whoever_cannot_answer_says_so(w: World) -> None:
    async def fail(question: bytes) -> list[bytes]:
        if question == b"long":
            return [bytes(MAX_PAYLOAD + 1)]
        raise RuntimeError("a listener's mistake")

    await w.join("n1")
    await w.join("n2", listener=Recorder(fail))
    await w.heard["n1"].until(lambda: w.heard["n1"].alive)
    for question in (b"long", b"bad"):
        with pytest.raises(FabricError, match="n2: the answer failed there") as raised:
            await w.fabrics["n1"].ask("n2", question, 5)
        assert isinstance(raised.value, FabricRefusedError)


@on_both
async def test_who_is_not_there_is_not_waited_for(w: World) -> None:
    await w.join_all("n1", "n2")
    async with asyncio.timeout(5):
        with pytest.raises(FabricError, match="n3: it is not connected") as raised:
            await w.fabrics["n1"].ask("n3", b"?", 60)
    assert not isinstance(raised.value, (TimeoutError, FabricRefusedError))


@on_both
async def test_a_slow_answer_times_out(w: World) -> None:
    never = asyncio.Event()

    async def wait(question: bytes) -> list[bytes]:
        await never.wait()
        return []

    await w.join("n1")
    await w.join("n2", listener=Recorder(wait))
    await w.heard["n1"].until(lambda: w.heard["n1"].alive)
    with pytest.raises(FabricTimeoutError, match=r"n2 did not answer within 0\.05 s"):
        await w.fabrics["n1"].ask("n2", b"?", 0.05)


@on_both
async def test_a_listeners_mistake_stops_nothing(w: World) -> None:
    await w.join_all("n1", "n2")
    w.heard["n2"].fail = True
    for value in (b"1", b"2"):
        w.fabrics["n1"].publish(KEYS.policy, value)
    await w.heard["n2"].until(lambda: len(w.heard["n2"].records) == 2)


@on_both
async def test_nothing_new_reopens_nothing(w: World) -> None:
    fabric = await w.join("n1")
    connect = list(w.settings("n1").connect)
    w.authority.issue("n1")  # settings() made a new certificate: take it in first
    await fabric.reconfigure(connect, None)
    before = fabric.counters.reopened
    assert not await fabric.reconfigure(connect[::-1], None)
    assert fabric.counters.reopened == before


@on_both
async def test_reopening_is_not_dying(w: World) -> None:
    await w.join_all("n1", "n2", "n3")
    before = {node: list(heard.changes) for node, heard in w.heard.items()}
    fabric = w.fabrics["n2"]
    for nodes in (ALL, None, ALL):
        assert await fabric.reconfigure(w.settings("n2").connect, nodes)
        # Everyone is found again: a record gets through in both directions.
        await exchange(w, "n1", "n2")
        await exchange(w, "n3", "n2")
    assert {node: heard.changes for node, heard in w.heard.items()} == before
    # But whoever stayed is told of, since what was said meanwhile is lost.
    for node, others in {"n1": {"n2"}, "n2": {"n1", "n3"}, "n3": {"n2"}}.items():
        heard = w.heard[node]
        await heard.until(lambda heard=heard, others=others: others <= set(heard.returned))
        assert set(heard.returned) == others


async def exchange(w: World, one: str, other: str) -> None:
    """Ask in both directions until it works: sessions need a moment to find each other."""
    for asker, asked in ((one, other), (other, one)):
        async with asyncio.timeout(10):
            while True:
                try:
                    assert await w.fabrics[asker].ask(asked, b"hello", 1) == [b"hello"]
                    break
                except FabricError:
                    await asyncio.sleep(0)


@on_both
async def test_endpoints_learned_later_are_used(w: World) -> None:
    first = f"tls/127.0.0.1:{w.ports[0]}"
    await w.join("n1", connect=())
    await w.join("n2", connect=(first,))
    await w.join("n3", connect=(first,))
    await w.heard["n1"].until(lambda: w.heard["n1"].alive == {"n2", "n3"})
    await w.heard["n3"].until(lambda: w.heard["n3"].alive == {"n1"})
    second = f"tls/127.0.0.1:{w.ports[1]}"
    assert await w.fabrics["n3"].reconfigure([first, second], None)
    await w.heard["n3"].until(lambda: w.heard["n3"].alive == {"n1", "n2"})
    await w.heard["n2"].until(lambda: w.heard["n2"].alive == {"n1", "n3"})


@on_both
async def test_who_is_no_longer_listed_is_gone_and_mute(w: World) -> None:
    await w.join_all("n1", "n2", "n3", nodes=ALL)
    assert await w.fabrics["n1"].reconfigure(w.settings("n1").connect, frozenset({"n1", "n2"}))
    await w.heard["n1"].until(lambda: w.heard["n1"].alive == {"n2"})
    await exchange(w, "n1", "n2")
    w.fabrics["n3"].publish(KEYS.record("n3", "info"), b"still here")
    w.fabrics["n2"].publish(KEYS.record("n2", "info"), b"and here")
    await w.heard["n1"].until(lambda: w.heard["n1"].records)
    with pytest.raises(FabricError):
        await w.fabrics["n3"].ask("n1", b"?", 1)
    assert w.heard["n1"].records == [(KEYS.record("n2", "info"), b"and here")]
    assert w.heard["n1"].changes.count(("n3", False)) == 1


@on_both
async def test_a_listed_node_speaks_only_for_itself(w: World) -> None:
    await w.join_all("n1", "n2", nodes=ALL)
    w.fabrics["n2"].publish(KEYS.record("n3", "info"), b"forged")
    w.fabrics["n2"].publish(KEYS.record("n1", "info"), b"forged")
    w.fabrics["n2"].publish(KEYS.policy, b"signed elsewhere")
    w.fabrics["n2"].publish(KEYS.record("n2", "info"), b"true")
    await w.heard["n1"].until(lambda: len(w.heard["n1"].records) >= 2)
    assert w.heard["n1"].records == [
        (KEYS.policy, b"signed elsewhere"),
        (KEYS.record("n2", "info"), b"true"),
    ]


@on_both
async def test_closing_is_final_and_may_be_repeated(w: World) -> None:
    await w.join_all("n1", "n2")
    fabric = w.fabrics["n1"]
    await asyncio.gather(fabric.close(), fabric.close())
    await fabric.close()
    heard = list(w.heard["n1"].records), list(w.heard["n1"].changes)
    w.fabrics["n2"].publish(KEYS.policy, b"too late")
    await w.heard["n2"].until(lambda: not w.heard["n2"].alive)
    assert (w.heard["n1"].records, w.heard["n1"].changes) == heard
    with pytest.raises(FabricError):
        await fabric.ask("n2", b"?", 1)
    with pytest.raises(FabricError, match="not open"):
        await fabric.reconfigure([], None)


@on_both
async def test_opening_twice_is_refused(w: World) -> None:
    fabric = await w.join("n1")
    with pytest.raises(FabricError, match="open already"):
        await fabric.open(Recorder())
