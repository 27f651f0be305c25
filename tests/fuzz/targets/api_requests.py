"""Bytes on the daemon's socket: the real application, behind a service that takes notes."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

from daemon.api.server import Api
from daemon.journal import Journal
from tests.fuzz.mutate import Mutator
from tests.fuzz.target import Case, Target, judged, logged, require
from tests.fuzz.targets.api_bodies import BODIES, WORDS, body
from tests.unit.test_api import Recording

TARGETS: tuple[tuple[str, str, int | None], ...] = (
    ("POST", "/v1/attach", 0), ("POST", "/v1/detach", 0), ("POST", "/v1/check", 0),
    ("POST", "/v1/gc", 1), ("POST", "/v1/policy", 2), ("POST", "/v1/ready", 3),
    ("GET", "/v1/policy", None),
    ("GET", "/v1/status", None), ("GET", "/v1/verify", None), ("GET", "/", None),
)  # fmt: skip
HEADERS = (
    "Transfer-Encoding: chunked", "Content-Length: 0", "Content-Length: 5", "Content-Length: -1",
    "Content-Length: 99999999999999999999", "Expect: 100-continue", "Expect: x", "Upgrade: h2c",
    "Connection: upgrade", "Content-Encoding: gzip", "Content-Encoding: br",
    "Content-Type: ;charset=x",
    "Content-Type: multipart/form-data", "Range: bytes=0-", "Host:", "X: " + "a" * 9000,
    "Cookie: a=b",
    "Accept-Encoding: gzip", ": x", "X", "X : y", "Te: \x7f",
)  # fmt: skip
ROUNDS = 40
"""Turns of the loop in which a request that is whole has long been answered."""


@contextmanager
def target(folder: Path) -> Iterator[Target]:
    """Offer the target: an Api that listens in `folder` and a loop to run it."""
    service, path = Recording(), folder / "noctuled.sock"
    with logged() as lines, asyncio.Runner() as runner:
        api = Api(service, path, Journal())
        runner.run(api.open())

        def run(case: Case) -> str:
            service.asked.clear()
            lines.clear()
            answer = runner.run(_exchange(path, _bytes(case)))
            require(not lines, f"nothing is logged as an error: {lines}")
            return _judge(answer, service.asked)

        try:
            yield Target(draw, run)
        finally:
            runner.run(api.close())


def draw(random: Random) -> Case:
    """Return a request, taken apart."""
    mutator = Mutator(random, WORDS)
    method, path, which = random.choice(TARGETS)
    content = b"" if which is None else body(mutator, BODIES[which][1])
    headers = ["Host: noctuled", f"Content-Length: {len(content)}"]
    if random.random() < 0.2:
        headers[random.randrange(2) :] = random.sample(HEADERS, random.randint(1, 3))
    if random.random() < 0.1:
        method = random.choice(("PUT", "HEAD", "OPTIONS", "CONNECT", "get", "", "PRI"))
    if random.random() < 0.1:
        path = random.choice((mutator.word(path), path + "/", path + "?x=%00", "*", "http://[x/"))
    case = {"line": f"{method} {path} HTTP/1.1", "headers": headers, "body": content}
    if random.random() < 0.1:
        case["raw"] = mutator.text(_bytes(case))
    return case


def _bytes(case: Case) -> bytes:
    if "raw" in case:
        return bytes(case["raw"])
    lines = [case.get("line", ""), *case.get("headers", []), "Connection: close", "", ""]
    return "\r\n".join(lines).encode(errors="surrogatepass") + bytes(case.get("body", b""))


async def _exchange(path: Path, request: bytes) -> bytes:
    """Send `request`, let the daemon work, hang up, and return what it said until it hung up."""
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_UNIX) as client:
        client.setblocking(False)
        await loop.sock_connect(client, str(path))
        await loop.sock_sendall(client, request)
        for _ in range(ROUNDS):
            await asyncio.sleep(0)
        client.shutdown(socket.SHUT_WR)
        answer = b""
        while part := await loop.sock_recv(client, 1 << 16):
            answer += part
        return answer


def _judge(answer: bytes, asked: list[tuple[str, Any]]) -> str:
    if not answer:
        require(not asked, "who is asked is answered")
        return "no answer"
    head, _, content = answer.partition(b"\r\n\r\n")
    status = int(head.split()[1])
    if status == 100:
        return _judge(content, asked)
    require(100 < status < 500, f"a status that blames the request: {answer[:300]!r}")
    ours = b"application/json" in head
    if status == 200:
        require(ours and len(asked) == 1, "one request, one question to the service")
        return "200"
    require(not asked or "undo" in dict(asked), "what is refused changes nothing")
    if ours and content:
        error = json.loads(content)
        return f"{status} {judged(error['code'], error['msg'], error['details'])}"
    return f"{status} from aiohttp"
