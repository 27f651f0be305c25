"""The daemon's socket: a real one, with real HTTP on both ends."""

from __future__ import annotations

import asyncio
import base64
import http.client
import json
import os
import socket
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest

from daemon.api.messages import (
    AttachAnswer,
    GCRequest,
    PolicyApplied,
    PolicyState,
    ReadyRequest,
    Status,
    Verification,
)
from daemon.api.server import Api, peer_uid
from daemon.journal import Journal
from netconf.attach.attachment import AttachRequest, HostInterface
from netconf.errors import AddressesExhausted, IOFailure
from tests.unit.test_show import EMPTY

T = TypeVar("T")
LIMIT = 10.0
ANSWER = AttachAnswer(
    addresses=["10.64.16.5/12"], routes=["10.80.0.0/16"], mac="02:4e:0a:40:10:05", mtu=1444,
    nameserver="127.0.0.78",
    service="web", host=[HostInterface(name="vhx", mac="0a:4e:0a:40:10:05", mtu=1468)],
)  # fmt: skip
REQUEST: dict[str, Any] = {
    "container": "c0ffee",
    "ifname": "eth0",
    "netns": "/run/netns/x",
    "network": "mesh",
    "services": [{"name": "web", "from": "service"}],
    "key_file": "/run/key",
    "address": None,
    "mac": None,
}

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root may use the socket")


class Recording:
    """A service that writes down what it is asked, and answers or fails as it is told."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, Any]] = []
        self.error: Exception | None = None
        self.began = asyncio.Event()
        self.go = asyncio.Event()
        self.go.set()
        self.undone = asyncio.Event()

    def _note(self, verb: str, what: Any = None) -> None:
        self.asked.append((verb, what))
        if self.error is not None:
            raise self.error

    async def attach(self, request: AttachRequest) -> AttachAnswer:
        self.began.set()
        await self.go.wait()
        self._note("attach", request)
        return ANSWER

    async def undo(self, request: AttachRequest, answer: AttachAnswer) -> None:
        self._note("undo", request)
        self.undone.set()

    async def detach(self, request: AttachRequest) -> None:
        self._note("detach", request)

    async def check(self, request: AttachRequest) -> None:
        self._note("check", request)

    async def collect(self, request: GCRequest) -> None:
        self._note("gc", request)

    async def can_attach(self, request: ReadyRequest) -> None:
        self._note("ready", request)

    async def status(self) -> Status:
        self._note("status")
        return EMPTY

    async def verify(self) -> Verification:
        self._note("verify")
        return Verification(node="n1", attachments=1, differences=["one"])

    def policy_state(self) -> PolicyState:
        self._note("policy")
        return PolicyState(cluster="lab", vips="10.80.0.0/16", version=3, envelope="")

    async def apply_policy(self, envelope: bytes, *, wait: bool) -> PolicyApplied:
        self._note("apply" if wait else "publish", envelope)
        return PolicyApplied(version=4, live={"n1": 1.5}, silent=["n2"])


class Connection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("noctuled", timeout=LIMIT)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(LIMIT)
        self.sock.connect(str(self._path))


def send(path: Path, method: str, target: str, body: bytes | None = None) -> tuple[int, Any]:
    connection = Connection(path)
    try:
        connection.request(method, target, body)
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def serving(folder: Path, run: Callable[[Recording, Path], Awaitable[T]]) -> T:
    """Return what `run` makes of a service at a socket."""

    async def main() -> T:
        service = Recording()
        path = folder / "run" / "noctuled.sock"
        api = Api(service, path, Journal())
        await api.open()
        try:
            async with asyncio.timeout(LIMIT):
                return await run(service, path)
        finally:
            await api.close()
            assert not path.exists()

    return asyncio.run(main())


def asked(
    folder: Path, method: str, target: str, body: Any = None, error: Exception | None = None
) -> tuple[int, Any, list[tuple[str, Any]]]:
    """Send one request; return the status, the answer, and what the service was asked."""
    content = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()

    async def run(service: Recording, path: Path) -> tuple[int, Any, list[tuple[str, Any]]]:
        service.error = error
        status, answer = await asyncio.to_thread(send, path, method, target, content)
        return status, answer, service.asked

    return serving(folder, run)


def test_the_kernel_names_the_peers_user() -> None:
    here, there = socket.socketpair(socket.AF_UNIX)
    with here, there:
        assert peer_uid(here) == os.geteuid()


def test_another_user_is_recognised() -> None:
    """The credentials are those of the moment of connecting, so a child that changed is seen."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"\0noctule-test-{os.getpid()}")
        listener.listen()
        child = os.fork()
        if child == 0:
            os.setresuid(65534, 65534, 65534)
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(listener.getsockname())
            os._exit(0)
        accepted, _ = listener.accept()
        with accepted:
            assert peer_uid(accepted) == 65534
        assert os.waitpid(child, 0)[1] == 0


def test_nobody_but_root_may_open_the_socket(tmp_path: Path) -> None:
    async def run(service: Recording, path: Path) -> tuple[int, int]:
        return path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777

    assert serving(tmp_path, run) == (0o600, 0o700)


def test_a_user_who_got_at_the_socket_is_refused_by_credentials() -> None:
    async def run(service: Recording, path: Path) -> bytes:
        for place in (path.parent.parent, path.parent, path):
            place.chmod(0o777)
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.setresuid(65534, 65534, 65534)
            try:
                os.write(writing, repr(send(path, "GET", "/v1/status")).encode())
            finally:
                os._exit(0)
        os.close(writing)
        with os.fdopen(reading, "rb") as pipe:
            answer = await asyncio.to_thread(pipe.read)
        os.waitpid(child, 0)
        assert service.asked == []
        return answer

    with tempfile.TemporaryDirectory() as folder:
        answer = serving(Path(folder), run)
    assert answer.startswith(b"(403, {'code': 4, 'msg': 'only root may use this")


def test_an_attach_reaches_the_service_and_its_answer_the_caller(tmp_path: Path) -> None:
    status, answer, calls = asked(tmp_path, "POST", "/v1/attach", REQUEST)
    assert (status, answer["addresses"]) == (200, ["10.64.16.5/12"])
    assert set(answer) == {"addresses", "routes", "mac", "mtu", "nameserver", "service", "host"}
    ((verb, request),) = calls
    assert (verb, request.container, request.services[0].origin) == ("attach", "c0ffee", "service")
    assert request.address is None


@pytest.mark.parametrize("verb", ["detach", "check"])
def test_detach_and_check_answer_an_empty_object(tmp_path: Path, verb: str) -> None:
    status, answer, calls = asked(tmp_path, "POST", f"/v1/{verb}", REQUEST)
    assert (status, answer, calls[0][0]) == (200, {}, verb)


def test_ready_asks_about_the_secret(tmp_path: Path) -> None:
    body = {"key_file": "/run/mesh.key"}
    status, answer, ((verb, request),) = asked(tmp_path, "POST", "/v1/ready", body)
    assert (status, answer, verb, request.key_file) == (200, {}, "ready", "/run/mesh.key")


def test_gc_names_containers_as_cni_does(tmp_path: Path) -> None:
    body = {
        "network": "mesh",
        "valid": [{"containerID": "a", "ifname": "eth0"}],
        "runtime": "podman",
    }
    status, _, calls = asked(tmp_path, "POST", "/v1/gc", body)
    assert status == 200
    assert (calls[0][1].valid[0].container, calls[0][1].runtime) == ("a", "podman")


def test_what_the_daemon_knows_is_answered_in_its_shapes(tmp_path: Path) -> None:
    assert asked(tmp_path, "GET", "/v1/status")[1]["counters"]["denied"] == []
    assert asked(tmp_path, "GET", "/v1/verify")[1]["differences"] == ["one"]
    assert asked(tmp_path, "GET", "/v1/policy")[1]["version"] == 3


def test_a_policy_arrives_as_it_was_signed(tmp_path: Path) -> None:
    sealed = bytes(range(256))
    body = {"envelope": base64.b64encode(sealed).decode()}
    status, answer, calls = asked(tmp_path, "POST", "/v1/policy", body)
    assert (status, calls) == (200, [("apply", sealed)])
    assert answer == {"version": 4, "live": {"n1": 1.5}, "silent": ["n2"], "nodes": []}
    assert asked(tmp_path, "POST", "/v1/policy?wait=0", body)[2] == [("publish", sealed)]


@pytest.mark.parametrize(
    ("target", "body", "code", "message"),
    [
        ("/v1/attach", {**REQUEST, "colour": "red", "requires": ["colour"]}, 2, "colour: "),
        ("/v1/check", {**REQUEST, "requires": ["mac", "zone", "colour"]}, 2, "colour: "),
        ("/v1/gc", {"network": "mesh", "valid": [], "requires": ["only"]}, 2, "only: "),
        ("/v1/attach", {**REQUEST, "container": 7}, 7, "$.container"),
        ("/v1/attach", {"container": "a"}, 7, "missing required field `ifname`"),
        ("/v1/attach", {**REQUEST, "services": [{"name": "a", "x": 1}]}, 7, "`from`"),
        ("/v1/attach", {**REQUEST, "bandwidth": {"ingress_rate": -1}}, 7, "bandwidth.ingress_rate"),
        ("/v1/attach", {**REQUEST, "bandwidth": {"rate": 1}}, 7, "unknown field `rate`"),
        ("/v1/ready", {}, 7, "key_file"),
        ("/v1/attach", b"{", 6, "not JSON"),
        ("/v1/attach", b"\xff\xfe", 6, "not JSON"),
        ("/v1/detach", b"", 6, "not JSON"),
        ("/v1/gc", {"network": "mesh", "valid": [{"container": "a", "ifname": "e"}]}, 7, "valid"),
        ("/v1/policy", {"envelope": "%%%"}, 6, "not base64"),
        ("/v1/policy", {"envelope": "A"}, 6, "not base64"),
        ("/v1/policy", {"envelope": "é"}, 6, "not base64"),
        ("/v1/policy", [], 7, "object"),
    ],
)
def test_a_request_of_the_wrong_shape_changes_nothing(
    tmp_path: Path, target: str, body: Any, code: int, message: str
) -> None:
    status, answer, calls = asked(tmp_path, "POST", target, body)
    assert (status, answer["code"], calls) == (422, code, [])
    assert message in answer["msg"]


def test_an_error_carries_its_cni_code_and_details(tmp_path: Path) -> None:
    error = AddressesExhausted("the slice is full; widen it", details="1 of 1")
    status, answer, _ = asked(tmp_path, "POST", "/v1/attach", REQUEST, error)
    assert (status, answer) == (
        422,
        {"code": 101, "msg": "the slice is full; widen it", "details": "1 of 1"},
    )


def test_a_bug_is_an_answer_too(tmp_path: Path) -> None:
    status, answer, _ = asked(tmp_path, "GET", "/v1/status", error=KeyError("oops"))
    assert (status, answer["code"]) == (500, 999)
    assert "oops" in answer["msg"]


def test_a_body_too_large_is_refused(tmp_path: Path) -> None:
    status, answer, calls = asked(tmp_path, "POST", "/v1/attach", b" " * ((1 << 20) + 1))
    assert (status, answer["code"], calls) == (413, 6, [])


def test_a_gc_of_four_thousand_is_not_too_large(tmp_path: Path) -> None:
    valid = [{"containerID": f"{i:064x}", "ifname": "eth0"} for i in range(4000)]
    assert asked(tmp_path, "POST", "/v1/gc", {"network": "mesh", "valid": valid})[0] == 200


@pytest.mark.parametrize(("method", "target"), [("GET", "/v1/nothing"), ("GET", "/v1/attach")])
def test_unknown_places_and_methods_are_refused(tmp_path: Path, method: str, target: str) -> None:
    status, answer, calls = asked(tmp_path, method, target)
    assert (status in (404, 405), answer["code"], calls) == (True, 6, [])
    assert answer["msg"].startswith(f"{method} {target}: ")


@pytest.mark.parametrize(
    "sent",
    [
        b"POST /v1/attach HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n{",
        b"POST /v1/attach HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n"
        b"Content-Encoding: gzip\r\n\r\nabcde",
        b"GET /v1/attach HTTP/1.1\r\nContent-Length: x\r\n\r\n",
        b"no HTTP at all\r\n\r\n",
    ],
)
def test_a_damaged_request_is_no_traceback_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, sent: bytes
) -> None:
    async def run(service: Recording, path: Path) -> list[tuple[str, Any]]:
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(sent)
        writer.write_eof()
        await reader.read()
        writer.close()
        return service.asked

    assert serving(tmp_path, run) == []
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_an_add_whose_caller_is_gone_is_undone(tmp_path: Path) -> None:
    async def run(service: Recording, path: Path) -> list[tuple[str, Any]]:
        service.go.clear()
        connection = Connection(path)
        body = json.dumps(REQUEST)
        await asyncio.to_thread(connection.request, "POST", "/v1/attach", body)
        await service.began.wait()
        connection.close()
        # A second caller's answer proves that the loop has seen the first one go.
        await asyncio.to_thread(send, path, "GET", "/v1/policy")
        service.go.set()
        await service.undone.wait()
        return service.asked

    calls = [(verb, what) for verb, what in serving(tmp_path, run) if verb != "policy"]
    assert [verb for verb, _ in calls] == ["attach", "undo"]
    assert calls[0][1] == calls[1][1]


def test_an_add_whose_caller_waits_is_kept(tmp_path: Path) -> None:
    assert [verb for verb, _ in asked(tmp_path, "POST", "/v1/attach", REQUEST)[2]] == ["attach"]


def test_a_stale_socket_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "run" / "noctuled.sock"
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    assert asked(tmp_path, "GET", "/v1/policy")[0] == 200


def test_a_place_where_no_socket_can_be_names_the_field(tmp_path: Path) -> None:
    async def main() -> None:
        api = Api(Recording(), tmp_path / ("s" * 120), Journal())
        try:
            with pytest.raises(IOFailure, match=r"^paths\.socket: cannot listen"):
                await api.open()
        finally:
            await api.close()

    asyncio.run(main())


def test_the_umask_is_as_it_was(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        asked(tmp_path, "GET", "/v1/policy")
        assert os.umask(0o022) == 0o022
    finally:
        os.umask(before)
