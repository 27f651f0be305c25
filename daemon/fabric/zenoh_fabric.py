"""The fabric over zenoh: one session at a time, replaced when what it was opened with changes.

1. zenoh calls back in its own threads; every callback passes through the inbox into the loop.
2. Each callback carries the number of its session (the generation). Callbacks of a session that
   has been replaced are ignored.
3. Before a node replaces its session it announces that it will be back at once; see ``presence``.
4. If a link carries no token, the session is replaced; see ``link_repair``.
5. Calls of zenoh that may block run in threads of three kinds: for the session, for questions and
   for answers. So peers that read slowly cannot keep the session from being replaced.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import zenoh

from daemon.fabric.answer import split
from daemon.fabric.identity_files import Contents, load
from daemon.fabric.inbox import Inbox
from daemon.fabric.inquiry import Inquiry
from daemon.fabric.interface import (
    MAX_PAYLOAD,
    Counters,
    FabricError,
    FabricTimeoutError,
    Listener,
    NotOpenError,
    Settings,
)
from daemon.fabric.link_repair import CHECK, LinkRepair
from daemon.fabric.presence import Appearance, Presence
from daemon.fabric.zenoh_session import Handlers, Session
from daemon.journal import Journal
from daemon.model.keys import Keys, check_name
from daemon.news import News
from daemon.process.tasks import Tasks
from daemon.process.workers import Workers
from netconf.errors import InvalidConfig, NoctuleError

log = logging.getLogger(__name__)

ANSWERS_WAITING = 256
"""Questions that may be in work at the same time; further ones are dropped, and the asker tries
again."""

QUESTIONS = "?"
"""The inbox's source of all questions. It is no node's name, because zenoh does not tell who
asks."""

RETRY = 2.0
"""Seconds before a session that could not be reopened is tried again."""

GOODBYE = b"back at once"
"""The payload that a node puts at its liveliness key before it reopens its session."""


class ZenohFabric:
    """`daemon.fabric.Fabric` over a zenoh peer session."""

    def __init__(
        self, settings: Settings, journal: Journal | None = None, workers: Workers | None = None
    ) -> None:
        """`settings` say where and as whom to join. There is no I/O before `open`.

        Of `workers` the pools `fabric`, `ask` and `answer` are used.
        """
        self._workers = workers or Workers()
        self._settings = settings
        self._journal = journal or Journal()
        self._keys = Keys(settings.cluster)
        self._counters = Counters()
        self._session: Session | None = None
        self._generation = 0
        self._opened = False
        self._identity = Contents(b"", b"", b"")
        """The files' contents with which sessions are opened."""
        self._news = News()
        self._changing = asyncio.Lock()
        self._presence = Presence(settings.node)
        self._doubt_timer: asyncio.TimerHandle | None = None
        self._answers: set[asyncio.Task[None]] = set()
        self._tasks = Tasks(self._journal)

    @property
    def counters(self) -> Counters:
        """What was sent, received and refused."""
        return self._counters

    async def open(self, listener: Listener) -> None:
        """Join the fabric; see `Fabric.open` for the errors."""
        async with self._changing:
            if self._opened:
                raise FabricError("the fabric is open already")
            self._identity = await self._workers.fabric.run(load, self._settings)
            self._listener = listener
            self._loop = asyncio.get_running_loop()
            self._inbox = Inbox(self._loop, dropped=self._overflow)
            await self._start()
            self._opened = True
            self._tasks = Tasks(self._journal)
            self._tasks.forever("fabric links", self._watch_links)

    def publish(self, key: str, value: bytes) -> None:
        """Send a record to all nodes; it is dropped where a link is congested or missing."""
        if not self._keys.is_record(key):
            raise FabricError(f"key {key!r} is not a record's key under {self._keys.root}")
        if len(value) > MAX_PAYLOAD:
            raise FabricError(f"{key}: {len(value)} bytes are more than {MAX_PAYLOAD}")
        if self._session is not None and self._session.put(key, value):
            self._counters.published += 1
        else:
            self._counters.unsent += 1

    async def ask(self, node: str, question: bytes, timeout: float) -> list[bytes]:
        """Ask `node` and wait for its whole answer, at most `timeout` seconds."""
        key = self._keys.ask(check_name("node", node))
        if len(question) > MAX_PAYLOAD:
            raise FabricError(f"a question of {len(question)} bytes is more than {MAX_PAYLOAD}")
        session = self._session
        if session is None:
            raise FabricError(f"cannot ask {node}: the fabric is not open")
        inquiry = Inquiry(node, asyncio.get_running_loop())
        cancel = zenoh.CancellationToken()
        # zenoh's own time limit ends after ours, and only frees what the query holds.
        get = functools.partial(
            session.get, key, question, timeout + 1.0, inquiry.reply, inquiry.end, cancel
        )
        try:
            async with asyncio.timeout(timeout):
                await self._workers.ask.run(get)
                return await inquiry.answer
        except FabricError:
            raise
        except TimeoutError:
            raise FabricTimeoutError(f"{node} did not answer within {timeout:g} s") from None
        finally:
            inquiry.answer.cancel()
            if not inquiry.ended:
                # Cancelling waits for zenoh's callbacks, so it must not run in the loop.
                threading.Thread(target=cancel.cancel, daemon=True).start()

    async def reconfigure(self, endpoints: Sequence[str], nodes: frozenset[str] | None) -> bool:
        """Reopen with other endpoints, nodes or certificates; True if there was a change."""
        async with self._changing:
            if not self._opened:
                raise NotOpenError("the fabric is not open")
            wanted = msgspec.structs.replace(
                self._settings, connect=tuple(sorted(set(endpoints))), nodes=nodes
            )
            identity = await self._reread()
            if (
                self._session is not None
                and identity == self._identity
                and wanted.nodes == self._settings.nodes
                and set(wanted.connect) == set(self._settings.connect)
            ):
                return False
            self._settings, self._identity = wanted, identity
            await self._reopen()
            return True

    async def close(self) -> None:
        """Leave the fabric; peers see our token vanish at once. Always returns."""
        async with self._changing:
            if not self._opened:
                return
            self._opened = False
            self._inbox.close()
            await self._tasks.close()
            for task in self._answers:
                task.cancel()
            if self._doubt_timer is not None:
                self._doubt_timer.cancel()
            await self._stop(returning=False)

    async def _reread(self) -> Contents:
        """Return what is in the identity's files; what is in use if they do not fit (yet)."""
        try:
            return await self._workers.fabric.run(load, self._settings, self._identity)
        except InvalidConfig as error:
            for why in self._news.tell(self._loop.time(), [error.message]):
                self._journal.warning("identity not reread", error=why, details=error.details)
            return self._identity

    # -- sessions ---------------------------------------------------------------------------

    async def _start(self) -> None:
        """Open a session with `_settings`. If that fails there is no session."""
        self._generation += 1
        heard = (self._sample, self._promise, self._token, self._question)
        handlers = Handlers(*(functools.partial(call, self._generation) for call in heard))
        opening = asyncio.ensure_future(
            self._workers.fabric.run(Session, self._settings, self._identity, handlers)
        )
        try:
            self._session = await asyncio.shield(opening)
        except asyncio.CancelledError:
            opening.add_done_callback(_close_late)
            raise

    async def _reopen(self) -> None:
        """Replace the session, if any."""
        await self._stop(returning=True)
        if self._settings.nodes is not None:
            for node in self._presence.expel(self._settings.nodes):
                self._tell(self._listener.on_alive, node, False)
        await self._start()
        self._counters.reopened += 1

    async def _watch_links(self) -> None:
        """Reopen the session when a link carries no token, or when there is none."""
        watch = LinkRepair()
        pause = CHECK
        while True:
            await asyncio.sleep(pause)
            async with self._changing:
                try:
                    await self._mend(watch)
                    pause = CHECK
                except FabricError as error:
                    for why in self._news.tell(self._loop.time(), [error.message]):
                        self._journal.warning("fabric not open", waiting=why, details=error.details)
                    pause = RETRY

    async def _mend(self, watch: LinkRepair) -> None:
        """Look once; reopen if need be."""
        if self._session is None:
            await self._reopen()
            return
        linked = await self._workers.fabric.run(self._session.linked)
        if self._settings.nodes is not None:
            linked &= self._settings.nodes
        linked -= {self._settings.node}
        if split := watch.look(linked, self._presence.alive, self._loop.time()):
            log.warning("fabric links without a token, reopening: %s", ", ".join(sorted(split)))
            self._counters.splits += 1
            await self._reopen()

    async def _stop(self, *, returning: bool) -> None:
        """Close the session, if any; `returning` tells the peers that it will be replaced."""
        session, self._session = self._session, None
        self._generation += 1  # callbacks of the old session are ignored from now on
        if session is None:
            return
        if returning:
            self._presence.reopened(self._loop.time())
            self._watch_doubts()
            session.put(self._keys.alive(self._settings.node), GOODBYE)
        await session.close()

    # -- in zenoh's threads -----------------------------------------------------------------

    def _sample(self, generation: int, sample: Any) -> None:
        key, payload = str(sample.key_expr), sample.payload
        if (
            sample.kind != zenoh.SampleKind.PUT
            or len(payload) > MAX_PAYLOAD
            or not self._keys.is_record(key)
        ):
            self._counters.rejected += 1
            return
        call = functools.partial(self._heard, generation, key, payload.to_bytes())
        # Where nodes are pinned, zenoh lets each put under its own keys only, so the key tells
        # the sender. The policy, which all may put, has a queue of its own.
        self._inbox.put(call, self._keys.owner(key))

    def _promise(self, generation: int, sample: Any) -> None:
        node = self._keys.node_alive(str(sample.key_expr))
        if node is None or sample.kind != zenoh.SampleKind.PUT:
            self._counters.rejected += 1
        else:
            self._inbox.put(functools.partial(self._promised, generation, node), node)

    def _token(self, generation: int, sample: Any) -> None:
        node = self._keys.node_alive(str(sample.key_expr))
        if node is None:
            self._counters.rejected += 1
            return
        alive = sample.kind == zenoh.SampleKind.PUT
        self._inbox.put(functools.partial(self._seen, generation, node, alive), bounded=False)

    def _question(self, generation: int, query: Any) -> None:
        payload = query.payload
        if payload is None or len(payload) > MAX_PAYLOAD:
            self._counters.rejected += 1
            query.drop()
        else:
            call = functools.partial(self._asked, generation, query, payload.to_bytes())
            self._inbox.put(call, QUESTIONS, instead=query.drop)

    def _overflow(self) -> None:
        self._counters.overflowed += 1

    # -- in the loop's thread ---------------------------------------------------------------

    def _heard(self, generation: int, key: str, value: bytes) -> None:
        if generation == self._generation:
            self._counters.received += 1
            self._tell(self._listener.on_record, key, value)

    def _promised(self, generation: int, node: str) -> None:
        if generation == self._generation:
            self._presence.promised(node, self._loop.time())
            self._watch_doubts()

    def _seen(self, generation: int, node: str, alive: bool) -> None:
        if generation != self._generation:
            return
        if not alive:
            self._presence.vanished(node, self._loop.time())
        else:
            match self._presence.appeared(node):
                case Appearance.NEWS:
                    self._tell(self._listener.on_alive, node, True)
                case Appearance.RETURNED:
                    self._tell(self._listener.on_returned, node)
        self._watch_doubts()

    def _watch_doubts(self) -> None:
        """Have `_settle_doubts` called when the next doubt is due."""
        if self._doubt_timer is not None:
            self._doubt_timer.cancel()
        due = self._presence.next()
        self._doubt_timer = None if due is None else self._loop.call_at(due, self._settle_doubts)

    def _settle_doubts(self) -> None:
        for node in self._presence.due(self._loop.time()):
            self._tell(self._listener.on_alive, node, False)
        self._watch_doubts()

    def _asked(self, generation: int, query: Any, question: bytes) -> None:
        if generation != self._generation or len(self._answers) >= ANSWERS_WAITING:
            self._counters.overflowed += generation == self._generation
            query.drop()
            return
        task = self._loop.create_task(self._answer(query, question))
        self._answers.add(task)
        task.add_done_callback(self._answers.discard)

    async def _answer(self, query: Any, question: bytes) -> None:
        try:
            try:
                replies = await self._listener.on_ask(question)
                if any(len(reply) > MAX_PAYLOAD for reply in replies):
                    raise ValueError(f"a reply has more than {MAX_PAYLOAD} bytes")
                send = functools.partial(_reply, query, list(split(replies)))
            except NoctuleError as error:  # the question was refused; tell the asker why
                self._counters.rejected += 1
                send = functools.partial(query.reply_err, error.message[:200].encode())
            except Exception:
                log.exception("cannot answer a question of %d bytes", len(question))
                send = functools.partial(query.reply_err, b"the answer failed there")
            with contextlib.suppress(zenoh.ZError):  # the asker is gone
                await self._workers.answer.run(send)
        finally:
            query.drop()

    def _tell(self, hear: Callable[..., None], *words: Any) -> None:
        """Call the listener; an exception is logged, and must not stop later callbacks."""
        try:
            hear(*words)
        except Exception:
            log.exception("listener failed on %s", words[0])


def _reply(query: Any, parts: list[tuple[bytes, bytes]]) -> None:
    """Send all parts of an answer; blocks while the link is congested."""
    key = query.key_expr
    for place, payload in parts:
        query.reply(key, payload, attachment=place, express=True)


def _close_late(opening: asyncio.Future[Session]) -> None:
    """Close a session whose opener was cancelled meanwhile."""
    if not opening.cancelled() and opening.exception() is None:
        opening.result().close_soon()
