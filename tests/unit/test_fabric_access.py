"""Nobody speaks for another: raw zenoh sessions attack a node, which must hear nothing of it.

Each attack ends with a true record of the attacker's own where it may speak: once that is
heard, whatever was sent before on the same link has arrived or been refused.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import re
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zenoh

from daemon.fabric import FabricError, Settings, zenoh_fabric
from daemon.fabric.interface import parse_endpoint
from daemon.fabric.zenoh_fabric import ZenohFabric
from daemon.model.keys import Keys
from tests.unit import fabric_kit
from tests.unit.fabric_kit import Authority, World, world

KEYS = Keys("test")
ALL = frozenset({"n1", "n2", "n3"})
DONE = (KEYS.record("n2", "done"), b"done")
LAST = itertools.count()
SURELY = zenoh.CongestionControl.BLOCK
"""What is sent without it may be dropped on a busy machine, and an attack would prove nothing."""


def attacker_config(settings: Settings, **changes: object) -> dict[str, Any]:
    """The configuration of a peer that holds itself to no rule of ours."""
    config: dict[str, Any] = json.loads(fabric_kit.config(settings))
    del config["access_control"]
    config["open"]["return_conditions"]["declares"] = True
    return config | changes


@contextlib.contextmanager
def attacker(settings: Settings) -> Iterator[Any]:
    """A raw session of whoever holds the certificate that `settings` name."""
    session = zenoh.open(zenoh.Config.from_json5(json.dumps(attacker_config(settings))))
    try:
        yield session
    finally:
        session.close()


@contextlib.asynccontextmanager
async def victim(folder: Path, nodes: frozenset[str] | None) -> AsyncIterator[World]:
    """A world in which n1 is open."""
    async with world("zenoh", folder) as made:
        await made.join("n1", nodes=nodes)
        yield made


async def done(w: World, session: Any) -> list[tuple[str, bytes]]:
    """Return what n1 has heard once the attacker's true record has come through."""
    heard = w.heard["n1"]
    # The link may still be coming up: repeat until the first is heard, then send the last.
    async with asyncio.timeout(10):
        while DONE not in heard.records:
            session.put(*DONE)
            await asyncio.sleep(0)
    last = (DONE[0], b"last %d" % next(LAST))
    session.put(*last, congestion_control=SURELY)
    await heard.until(lambda: last in heard.records)
    return [record for record in heard.records if record[0] != DONE[0]]


async def linked(w: World, session: Any) -> None:
    """Wait until the attacker is connected with n1, so that what it sends now arrives."""
    await done(w, session)


def test_a_node_cannot_put_or_delete_for_another(tmp_path: Path) -> None:
    async def run() -> None:
        async with victim(tmp_path, ALL) as w:
            with attacker(w.settings("n2")) as session:
                await linked(w, session)
                for key in (
                    KEYS.record("n3", "info"),
                    KEYS.record("n1", "info"),
                    KEYS.record("*", "info"),
                    KEYS.record("**"),
                    f"{KEYS.root}/**",
                    "**",
                    KEYS.alive("n3"),
                    KEYS.ask("n1"),
                ):
                    session.put(key, b"forged", congestion_control=SURELY)
                    session.delete(key)
                session.delete(KEYS.record("n2", "info"))
                session.delete(KEYS.policy)
                assert await done(w, session) == []
                assert w.fabrics["n1"].counters.rejected == 0  # zenoh stopped it all

    asyncio.run(run())


def test_wildcards_within_its_own_tree_are_refused_by_us(tmp_path: Path) -> None:
    async def run() -> None:
        async with victim(tmp_path, ALL) as w:
            with attacker(w.settings("n2")) as session:
                await linked(w, session)
                for key in ("*", "**", "replica/*", "replica/a$*", "info/@x"):
                    session.put(
                        KEYS.record("n2", *key.split("/")), b"wild", congestion_control=SURELY
                    )
                assert await done(w, session) == []
                # ``info/@x`` is verbatim for zenoh and not matched by our subscription.
                assert w.fabrics["n1"].counters.rejected == 4

    asyncio.run(run())


def test_a_token_cannot_be_forged_nor_taken_back(tmp_path: Path) -> None:
    async def run() -> None:
        async with victim(tmp_path, ALL) as w:
            heard = w.heard["n1"]
            with attacker(w.settings("n2")) as session:
                await linked(w, session)
                live = session.liveliness()
                forged = live.declare_token(KEYS.alive("n3"))
                wild = live.declare_token(KEYS.alive("*"))
                await done(w, session)
                assert heard.changes == []
                await w.join("n3", nodes=ALL)
                await heard.until(lambda: heard.alive)
                assert heard.changes == [("n3", True)]
                forged.undeclare()
                wild.undeclare()
                session.put(KEYS.alive("n3"), b"back at once", congestion_control=SURELY)
                await done(w, session)
                true = live.declare_token(KEYS.alive("n2"))
                await heard.until(lambda: "n2" in heard.alive)
                true.undeclare()
                await heard.until(lambda: "n2" not in heard.alive)
                assert heard.changes == [("n3", True), ("n2", True), ("n2", False)]

    asyncio.run(run())


def test_nobody_answers_for_another(tmp_path: Path) -> None:
    async def run() -> None:
        async with victim(tmp_path, ALL) as w:
            with attacker(w.settings("n2")) as session:
                await linked(w, session)

                def lie(query: Any) -> None:
                    with query:
                        query.reply(KEYS.ask("n3"), b"lie", attachment=b"\0\0\0\1")

                callback = zenoh.handlers.Callback(lie, indirect=False)
                for key in (KEYS.ask("n3"), KEYS.ask("*"), "**"):
                    session.declare_queryable(key, callback)
                await done(w, session)
                with pytest.raises(FabricError, match="n3: it is not connected"):
                    await w.fabrics["n1"].ask("n3", b"?", 5)
                # Even when asked itself, it cannot reply under n3's key.
                session.declare_queryable(KEYS.ask("n2"), callback)
                await done(w, session)
                with pytest.raises(FabricError):
                    await w.fabrics["n1"].ask("n2", b"?", 1)
                await w.join("n3", nodes=ALL)
                await w.heard["n1"].until(lambda: "n3" in w.heard["n1"].alive)
                assert await w.fabrics["n1"].ask("n3", b"true", 5) == [b"true"]

    asyncio.run(run())


def test_who_is_not_listed_neither_speaks_nor_hears(tmp_path: Path) -> None:
    async def run() -> None:
        async with victim(tmp_path, frozenset({"n1", "n2"})) as w:
            heard: list[tuple[str, bytes]] = []
            note = zenoh.handlers.Callback(
                lambda s: heard.append((str(s.key_expr), s.payload.to_bytes())), indirect=False
            )
            with attacker(w.settings("n3")) as stranger, attacker(w.settings("n2")) as friend:
                stranger.declare_subscriber("**", note)
                stranger.liveliness().declare_subscriber(KEYS.alive("*"), note, history=True)
                stranger.liveliness().declare_token(KEYS.alive("n3"))
                stranger.declare_queryable(KEYS.ask("n3"), note)
                friends: list[str] = []
                friend.declare_subscriber(
                    KEYS.policy,
                    zenoh.handlers.Callback(lambda s: friends.append(s), indirect=False),
                )
                await linked(w, friend)
                for key in (KEYS.record("n3", "info"), KEYS.policy):
                    stranger.put(key, b"stranger", congestion_control=SURELY)
                async with asyncio.timeout(10):
                    while not friends:
                        w.fabrics["n1"].publish(KEYS.policy, b"for those listed")
                        await asyncio.sleep(0)
                with pytest.raises(FabricError):
                    await w.fabrics["n1"].ask("n3", b"?", 1)
                assert await done(w, friend) == []
                assert w.heard["n1"].changes == []
                # The stranger is told by its friend n2, who has no rules, but not by n1.
                assert (KEYS.policy, b"for those listed") not in heard
                assert (KEYS.alive("n1"), b"") not in heard

    asyncio.run(run())


def test_another_cluster_and_long_messages_are_not_heard(tmp_path: Path) -> None:
    async def run() -> None:
        async with victim(tmp_path, None) as w:
            with attacker(w.settings("n2")) as session:
                await linked(w, session)
                session.put(Keys("other").policy, b"foreign", congestion_control=SURELY)
                session.put(KEYS.policy, bytes(60_001), congestion_control=SURELY)
                session.put(
                    KEYS.policy, bytes(200_000), congestion_control=SURELY
                )  # zenoh drops what is reassembled
                session.put("noctule/**", b"wild", congestion_control=SURELY)
                session.put(
                    KEYS.record("n3", "info"), b"signed by n3, one hopes", congestion_control=SURELY
                )
                assert await done(w, session) == [
                    (KEYS.record("n3", "info"), b"signed by n3, one hopes")
                ]
                assert w.fabrics["n1"].counters.rejected >= 1

    asyncio.run(run())


def test_no_link_joins_the_session_of_another(tmp_path: Path) -> None:
    """n3 dials n1 under n2's zenoh id, while n1's session with n2 has no dialled link."""

    async def run() -> None:
        async with world("zenoh", tmp_path) as w:
            await w.join("n2", nodes=ALL, connect=())
            await w.join("n1", nodes=ALL)
            await w.heard["n1"].until(lambda: w.heard["n1"].alive)
            with attacker(w.settings("n4")) as spy:
                links: set[str] = set()
                async with asyncio.timeout(10):
                    while len(links) < 2:
                        links = {str(link.zid) for link in spy.info.links()}
                        await asyncio.sleep(0)
            for zid in links:
                # A peer as n2 is: a client would be told apart before any proof is asked.
                config = client_config(w.settings("n3")) | {"id": zid, "mode": "peer"}
                with pytest.raises(zenoh.ZError):
                    await asyncio.to_thread(zenoh.open, zenoh.Config.from_json5(json.dumps(config)))

    asyncio.run(run())


@pytest.mark.parametrize("flaw", ["no certificate", "another authority"])
@pytest.mark.parametrize("nodes", [None, ALL])
def test_strangers_do_not_get_in(tmp_path: Path, flaw: str, nodes: frozenset[str] | None) -> None:
    async def run() -> None:
        async with victim(tmp_path / "ours", nodes) as w:
            config = client_config(w.settings("n2"))
            # The authority's own good certificate gets in: the test would notice otherwise.
            (
                await asyncio.to_thread(zenoh.open, zenoh.Config.from_json5(json.dumps(config)))
            ).close()
            tls = config["transport"]["link"]["tls"]
            if flaw == "no certificate":
                tls |= {
                    "enable_mtls": False,
                    "connect_certificate_base64": None,
                    "connect_private_key_base64": None,
                }
            else:
                certificate, key = Authority(tmp_path / "theirs").issue("n2")
                stranger = msgspec.structs.replace(
                    w.settings("n2"), certificate=str(certificate), key=str(key)
                )
                theirs = json.loads(fabric_kit.config(stranger))["transport"]["link"]["tls"]
                shown = ("connect_certificate_base64", "connect_private_key_base64")
                tls |= {field: theirs[field] for field in shown}
            with pytest.raises(zenoh.ZError):
                await asyncio.to_thread(zenoh.open, zenoh.Config.from_json5(json.dumps(config)))

    asyncio.run(run())


def client_config(settings: Settings) -> dict[str, Any]:
    """A client, since opening one fails when it cannot connect."""
    connect = {"endpoints": [settings.connect[0]], "timeout_ms": 500, "exit_on_failure": True}
    config = attacker_config(settings, mode="client", connect=connect)
    config["listen"] = {"endpoints": []}
    config["open"]["return_conditions"]["declares"] = False
    return config


@pytest.mark.parametrize("flaw", ["another authority", "another address"])
def test_an_impostor_is_not_joined(tmp_path: Path, flaw: str) -> None:
    """n1 dials n2's endpoint, where somebody else listens."""

    async def run() -> None:
        async with world("zenoh", tmp_path / "ours") as w:
            impostor = w.settings("n2")
            if flaw == "another authority":
                theirs = Authority(tmp_path / "theirs")
                certificate, key = theirs.issue("n2")
                impostor = msgspec.structs.replace(
                    impostor, certificate=str(certificate), key=str(key), connect=()
                )
            else:
                certificate, key = w.authority.issue("n2", address="127.0.0.9")
                impostor = msgspec.structs.replace(
                    impostor, certificate=str(certificate), key=str(key), connect=()
                )
            with attacker(impostor) as session:
                session.liveliness().declare_token(KEYS.alive("n2"))
                await w.join("n1")
                await w.join("n3")  # n3 is met: n1 had the time to meet n2 as well
                await w.heard["n1"].until(lambda: w.heard["n1"].alive)
                assert w.heard["n1"].alive == {"n3"}
                assert not session.info.peers_zid()

    asyncio.run(run())


def test_a_new_certificate_is_shown_and_a_bad_one_changes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def why() -> str:
        """Return why the log says that the files were not used, if it says so once."""
        told = [r for r in caplog.records if r.getMessage() == "identity not reread"]
        caplog.clear()
        return ", ".join(str(vars(record)["fields"]["error"]) for record in told)

    async def run() -> None:
        async with victim(tmp_path, None) as w:
            fabric, settings = w.fabrics["n1"], w.settings("n1")
            connect = settings.connect
            old = await shown(settings)
            w.authority.issue("n1")
            assert await fabric.reconfigure(connect, None)
            new = await shown(settings)
            assert new != old
            Path(settings.key).write_bytes(Path(w.authority.issue("n3")[1]).read_bytes())
            for _ in range(3):
                assert not await fabric.reconfigure(connect, None)
            assert re.fullmatch(r"fabric\.identity\.key: [^,]* is not the unenc[^,]*", why())
            Path(settings.key).unlink()
            # Other endpoints are followed all the same, with the certificate in use.
            assert await fabric.reconfigure(connect[:1], None)
            assert re.fullmatch(r"fabric\.identity\.key: cannot read [^,]*", why())
            assert await shown(settings) == new

    async def shown(settings: Settings) -> bytes:
        return await asyncio.to_thread(served_certificate, settings)

    asyncio.run(run())


def served_certificate(settings: Settings) -> bytes:
    """Return the DER certificate that the node of `settings` shows to who dials it."""
    context = ssl.create_default_context(cafile=settings.ca)
    with (
        socket.create_connection(parse_endpoint(settings.listen[0]), timeout=5) as raw,
        context.wrap_socket(raw, server_hostname="127.0.0.1") as tls,
    ):
        return tls.getpeercert(binary_form=True) or b""


def test_a_taken_port_is_named(tmp_path: Path) -> None:
    async def run() -> None:
        async with victim(tmp_path, None) as w:
            endpoint = w.settings("n1").listen
            other = msgspec.structs.replace(w.settings("n2"), listen=endpoint, connect=())
            fabric = ZenohFabric(other)
            with pytest.raises(FabricError, match=r"fabric\.listen: cannot open tls/127"):
                await fabric.open(w.heard["n1"])

    asyncio.run(run())


def test_a_session_that_could_not_be_reopened_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> None:
        async with world("zenoh", tmp_path) as w:
            await w.join_all("n1", "n2")
            with monkeypatch.context() as patch:
                patch.setattr(zenoh_fabric, "Session", refuse)
                with pytest.raises(FabricError, match="port is taken"):
                    await w.fabrics["n1"].reconfigure(w.settings("n1").connect, ALL)
            async with asyncio.timeout(10):
                while not w.heard["n2"].records:
                    w.fabrics["n1"].publish(KEYS.policy, b"back")
                    await asyncio.sleep(0)
            assert w.fabrics["n1"].counters.unsent
            await w.heard["n1"].until(lambda: w.heard["n1"].alive == {"n2"})

    def refuse(*_: object) -> None:
        raise FabricError("the port is taken")

    asyncio.run(run())
