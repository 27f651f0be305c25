"""HTTP + JSON on the unix socket: for the CNI executable and for ``noctulectl``.

1. Only root may speak: the socket has mode 0600, and SO_PEERCRED is checked on each request.
2. A request that is not of the right shape changes nothing and is answered with code 6 or 7.
   Fields that are not known here are ignored. If `requires` names one of them, the answer is code
   2, except for a DEL, which is always served: a container must be removable.
3. An error is answered as ``{"code", "msg", "details"}`` with the CNI code.
"""

from __future__ import annotations

import base64
import logging
import os
import socket
import struct
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Protocol, TypeVar

import msgspec
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from daemon.api.messages import (
    AttachAnswer,
    GCRequest,
    PolicyApplied,
    PolicyRequest,
    PolicyState,
    ReadyRequest,
    Status,
    Verification,
)
from daemon.journal import Journal
from netconf.attach.attachment import AttachRequest
from netconf.errors import DecodeFailure, InvalidConfig, IOFailure, NoctuleError, Unsupported

T = TypeVar("T", bound=msgspec.Struct)

_UCRED = struct.Struct("3i")
MAX_BODY = 1 << 20
"""Bytes of a request's body. A GC that lists 4,000 attachments takes a third of it."""


class Service(Protocol):
    """The calls that the API passes on to the daemon; all may raise NoctuleError."""

    async def attach(self, request: AttachRequest) -> AttachAnswer:
        """ADD."""

    async def undo(self, request: AttachRequest, answer: AttachAnswer) -> None:
        """Undo an ADD whose `answer` could not be delivered, unless a newer ADD replaced it."""

    async def detach(self, request: AttachRequest) -> None:
        """DEL."""

    async def check(self, request: AttachRequest) -> None:
        """CHECK."""

    async def collect(self, request: GCRequest) -> None:
        """GC."""

    async def can_attach(self, request: ReadyRequest) -> None:
        """STATUS."""

    async def status(self) -> Status:
        """Return what this node knows of itself, its peers and their replicas."""

    async def verify(self) -> Verification:
        """Read the kernel back and return where it differs from the plan."""

    def policy_state(self) -> PolicyState:
        """Return the policy in force, as a signer needs it."""

    async def apply_policy(self, envelope: bytes, *, wait: bool) -> PolicyApplied:
        """Accept and publish a policy record; with `wait`, wait until the nodes have applied it."""


def peer_uid(transport_socket: socket.socket) -> int:
    """Return the user id at the other end of a unix socket (unix(7), SO_PEERCRED)."""
    credentials = transport_socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    _, uid, _ = _UCRED.unpack(credentials)
    return int(uid)


class Api:
    """The listening socket, for as long as the daemon lives."""

    def __init__(self, service: Service, path: Path, journal: Journal) -> None:
        """Requests go to `service`; `open` makes the socket at `path`."""
        self._service = service
        self._path = path
        self._journal = journal
        self._runner: web.AppRunner | None = None

    async def open(self) -> None:
        """Listen. The caller holds the node's lock, so a socket file found here is stale.

        IOFailure if the path cannot be listened at.
        """
        app = web.Application(client_max_size=MAX_BODY, middlewares=[self._guard])
        app.add_routes(
            [
                web.post("/v1/attach", self._attach),
                web.post("/v1/detach", self._detach),
                web.post("/v1/check", self._check),
                web.post("/v1/gc", self._gc),
                web.post("/v1/ready", self._ready),
                web.post("/v1/policy", self._apply_policy),
                web.get("/v1/policy", self._policy),
                web.get("/v1/status", self._status),
                web.get("/v1/verify", self._verify),
            ]
        )
        log = logging.getLogger("aiohttp.server")
        log.addFilter(_is_news)
        self._runner = web.AppRunner(app, access_log=None, handle_signals=False, logger=log)
        await self._runner.setup()
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        previous = os.umask(0o177)
        try:
            listener.bind(str(self._path))
        except OSError as error:
            listener.close()
            raise IOFailure(f"paths.socket: cannot listen at {self._path}: {error}") from error
        finally:
            os.umask(previous)
        # A thousand containers may start at once; the kernel cuts this to somaxconn.
        await web.SockSite(self._runner, listener, backlog=1024).start()

    async def close(self) -> None:
        """Stop listening, let running requests end, and remove the socket file."""
        if self._runner is not None:
            self._path.unlink(missing_ok=True)
            await self._runner.cleanup()

    @web.middleware
    async def _guard(
        self,
        request: web.Request,
        handler: Callable[[web.Request], Awaitable[web.StreamResponse]],
    ) -> web.StreamResponse:
        transport = request.transport
        peer = transport.get_extra_info("socket") if transport else None
        if peer is None or peer_uid(peer) != 0:
            return _problem(403, 4, "only root may use this socket")
        try:
            return await handler(request)
        except NoctuleError as error:
            return _problem(422, error.code, error.message, error.details)
        except web.HTTPException as error:
            where = f"{request.method} {request.rel_url.raw_path}"
            return _problem(error.status, 6, f"{where}: {error.reason}")
        except Exception as error:
            self._journal.error("request failed", exc=error, path=request.path)
            return _problem(500, 999, f"noctuled failed: {error!r}; its log has the traceback")

    async def _attach(self, request: web.Request) -> web.Response:
        wanted = await _body(request, AttachRequest)
        answer = await self._service.attach(wanted)
        if request.transport is None or request.transport.is_closing():
            # The caller is gone and did not get the result, so it may never call DEL: undo the ADD.
            await self._service.undo(wanted, answer)
        return _answer(answer)

    async def _detach(self, request: web.Request) -> web.Response:
        await self._service.detach(await _body(request, AttachRequest, whatever=True))
        return _answer({})

    async def _check(self, request: web.Request) -> web.Response:
        await self._service.check(await _body(request, AttachRequest))
        return _answer({})

    async def _gc(self, request: web.Request) -> web.Response:
        await self._service.collect(await _body(request, GCRequest))
        return _answer({})

    async def _ready(self, request: web.Request) -> web.Response:
        await self._service.can_attach(await _body(request, ReadyRequest))
        return _answer({})

    async def _policy(self, request: web.Request) -> web.Response:
        return _answer(self._service.policy_state())

    async def _apply_policy(self, request: web.Request) -> web.Response:
        body = await _body(request, PolicyRequest)
        try:
            envelope = base64.b64decode(body.envelope, validate=True)
        except ValueError as error:
            raise DecodeFailure(f"envelope: not base64: {error}") from error
        wait = request.query.get("wait") != "0"
        return _answer(await self._service.apply_policy(envelope, wait=wait))

    async def _status(self, request: web.Request) -> web.Response:
        return _answer(await self._service.status())

    async def _verify(self, request: web.Request) -> web.Response:
        return _answer(await self._service.verify())


def _is_news(record: logging.LogRecord) -> bool:
    """Filter for aiohttp's log: drop its tracebacks about requests that are not valid HTTP."""
    problem = record.exc_info[1] if record.exc_info else None
    return not isinstance(problem, HttpProcessingError | web.RequestPayloadError)


async def _body(request: web.Request, kind: type[T], *, whatever: bool = False) -> T:
    try:
        data = await request.read()
    except (ConnectionError, web.RequestPayloadError, HttpProcessingError) as error:
        raise DecodeFailure(f"request: its body did not arrive whole: {error}") from error
    return decode_body(data, kind, whatever=whatever)


def decode_body(data: bytes, kind: type[T], *, whatever: bool = False) -> T:
    """Return the request in `data`, decoded as a `kind`.

    Raises DecodeFailure if it is not JSON, InvalidConfig if it does not have the right shape, and
    Unsupported if its `requires` names a field that is not known here. With `whatever` (a DEL),
    `requires` is not looked at.
    """
    try:
        found = msgspec.json.decode(data, type=kind)
    except msgspec.ValidationError as error:
        raise InvalidConfig(f"request: {error}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise DecodeFailure(f"request: not JSON: {error}") from error
    unknown = sorted(set(getattr(found, "requires", ())) - set(kind.__struct_fields__))
    if unknown and not whatever:
        raise Unsupported(
            f"{unknown[0]}: this noctuled does not know it, and may not leave it out; upgrade "
            "noctule on this node, or remove it from the network configuration",
            details=f"required and not known: {', '.join(unknown)}",
        )
    return found


def _answer(value: object) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), content_type="application/json")


def _problem(status: int, code: int, message: str, details: str = "") -> web.Response:
    body = msgspec.json.encode({"code": code, "msg": message, "details": details})
    return web.Response(status=status, body=body, content_type="application/json")
