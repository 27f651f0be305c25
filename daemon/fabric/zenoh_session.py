"""One zenoh session: opened with all of its declarations, and closed in any case.

1. Callbacks are direct (``indirect=False``). Otherwise zenoh-python starts a Python thread for
   each, and such a thread keeps the interpreter from exiting.
2. Calls that can block (open, close, get) run in other threads than the loop's. ``put`` may run in
   the loop's thread, because it drops messages instead of blocking.
3. A session that is still open when the interpreter exits is closed then, within `CLOSE_LIMIT`.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import logging
import threading
import weakref
from collections.abc import Callable
from typing import Any

import msgspec
import zenoh

from daemon.fabric.identity_files import Contents
from daemon.fabric.interface import FabricError, Settings
from daemon.fabric.zenoh_config import session_config
from daemon.model.keys import Keys

log = logging.getLogger(__name__)

CLOSE_LIMIT = 3.0
"""Seconds given to a session to close; it takes 2 ms, or 50 with a peer that is busy."""

_open_sessions: weakref.WeakSet[Session] = weakref.WeakSet()


class Handlers(msgspec.Struct, frozen=True):
    """The callbacks of a session, which are called in zenoh's threads."""

    record: Callable[[Any], None]
    """Called with each sample under a node's records or the policy."""
    promise: Callable[[Any], None]
    """Called with each sample that is put at a liveliness key."""
    token: Callable[[Any], None]
    """Called with each token that appears (PUT; also those already there) or vanishes (DELETE)."""
    question: Callable[[Any], None]
    """Called with each query for this node."""


class Session:
    """An open session of this node."""

    def __init__(self, settings: Settings, identity: Contents, handlers: Handlers) -> None:
        """Open as `identity`, whatever is in the files that `settings` name by now.

        Blocks for some milliseconds. FabricError if nothing can be listened on.
        """
        try:
            config = zenoh.Config.from_json5(session_config(settings, identity))
            self._session: Any = zenoh.open(config)
        except zenoh.ZError as error:
            raise FabricError(
                f"fabric.listen: cannot open {', '.join(settings.listen)}: is another daemon "
                "there, or the address not this node's?",
                details=str(error),
            ) from error
        _open_sessions.add(self)
        try:
            self._declare(Keys(settings.cluster), settings.node, handlers)
        except BaseException:
            self.close_soon()
            raise

    def _declare(self, keys: Keys, node: str, handlers: Handlers) -> None:
        """Declare everything; the token last, since it says that this node can be asked."""
        remote = zenoh.Locality.REMOTE
        self._session.declare_queryable(
            keys.ask(node), _direct(handlers.question), allowed_origin=remote
        )
        for key, handler in (
            (f"{keys.root}/node/**", handlers.record),
            (keys.policy, handlers.record),
            (keys.alive("*"), handlers.promise),
        ):
            self._session.declare_subscriber(key, _direct(handler), allowed_origin=remote)
        liveliness = self._session.liveliness()
        liveliness.declare_subscriber(keys.alive("*"), _direct(handlers.token), history=True)
        # zenoh undeclares the token when this object is collected, so keep it with the session.
        self._token = liveliness.declare_token(keys.alive(node))

    def put(self, key: str, value: bytes) -> bool:
        """Send to all connected peers, dropping where a link is congested; False on failure."""
        try:
            # Not express: that would make a batch of each record, which fills the queue, so that
            # a burst of 100 records would lose some.
            self._session.put(key, value, congestion_control=zenoh.CongestionControl.DROP)
        except zenoh.ZError:
            return False
        return True

    def get(
        self,
        key: str,
        question: bytes,
        timeout: float,
        reply: Callable[[Any], None],
        end: Callable[[], None],
        cancel: zenoh.CancellationToken,
    ) -> None:
        """Send a question; `reply` and `end` are called in zenoh's threads.

        Blocks while a link is congested; `timeout` is in seconds. FabricError if it cannot be sent.
        """
        try:
            self._session.get(
                key,
                zenoh.handlers.Callback(reply, end, indirect=False),
                payload=question,
                consolidation=zenoh.ConsolidationMode.NONE,
                congestion_control=zenoh.CongestionControl.BLOCK,
                timeout=timeout,
                cancellation_token=cancel,
            )
        except zenoh.ZError as error:
            raise FabricError("the question could not be sent", details=str(error)) from error

    def linked(self) -> frozenset[str]:
        """Return the common names of the peers' certificates on all links."""
        try:
            links = self._session.info.links()
        except zenoh.ZError:
            return frozenset()
        return frozenset(link.auth_identifier for link in links if link.auth_identifier)

    async def close(self) -> None:
        """Close, and wait at most `CLOSE_LIMIT` seconds until that is done."""
        loop = asyncio.get_running_loop()
        closed = asyncio.Event()
        self.close_soon(lambda: loop.call_soon_threadsafe(closed.set))
        try:
            await asyncio.wait_for(closed.wait(), CLOSE_LIMIT)
        except TimeoutError:
            log.warning("fabric session did not close within %g s", CLOSE_LIMIT)

    def close_soon(self, done: Callable[[], object] = lambda: None) -> None:
        """Close in a daemon thread, which does not delay the exit if it hangs; then call `done`."""
        _open_sessions.discard(self)

        def run() -> None:
            try:
                self._session.close()
            except zenoh.ZError as error:
                log.warning("fabric session: %s", error)
            with contextlib.suppress(RuntimeError):  # the loop is closed
                done()

        threading.Thread(target=run, name="fabric-close", daemon=True).start()


def _direct(handler: Callable[[Any], None]) -> Any:
    return zenoh.handlers.Callback(handler, indirect=False)


@atexit.register
def _close_all() -> None:
    for session in list(_open_sessions):
        closed = threading.Event()
        session.close_soon(closed.set)
        closed.wait(CLOSE_LIMIT)
