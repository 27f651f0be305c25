"""The whole executable in this process: stdin, environment and the daemon's answers, to stdout.

1. Descriptors 0 and 1 are files here, the daemon's end of the socket is a thread; the socket's
   path is the one thing that is not left to chance, because DEL works in its folder.
2. Without a daemon the executable does the work: in a folder where nothing ever was.
3. The plugin that ``ipam.type`` names is a script that says what the case has for it.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from random import Random
from typing import Any
from unittest import mock

from cni import client, config, delete, environment, main
from tests.fuzz.mutate import Mutator
from tests.fuzz.target import Case, Target, judged, require
from tests.fuzz.targets import cni_documents, cni_environment

ATTACHED: dict[str, Any] = {
    "addresses": ["10.64.16.5/12"], "routes": ["10.80.0.0/16"], "mac": "02:4e:0a:40:10:05",
    "mtu": 1394, "nameserver": "127.0.0.78", "service": "web",
    "host": [{"name": "vh0123456789ab", "mac": "0a:4e:0a:40:10:05", "mtu": 1418}],
}  # fmt: skip
LEASE: dict[str, Any] = {
    "cniVersion": "1.1.0", "ips": [{"address": "10.64.16.5/20"}], "routes": [],
    "dns": {"nameservers": ["192.0.2.9"]},
}  # fmt: skip
REFUSED: dict[str, Any] = {"code": 101, "msg": "addresses.slice: all in use", "details": ""}


class Daemon:
    """Takes each connection, reads what comes, and answers what the case says."""

    def __init__(self, path: Path) -> None:
        self.answer = b""
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve, name="daemon")
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                request = connection.recv(1 << 20)
                if request:  # empty: somebody only wanted to know whether we live
                    connection.sendall(self.answer)

    def close(self) -> None:
        """Stop listening; the thread ends."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()


@contextmanager
def target(folder: Path) -> Iterator[Target]:
    """Offer the target, with a daemon's socket in `folder` and a state folder beside."""
    variables: dict[bytes, bytes] = {}
    here, absent = folder / "d.sock", folder / "absent.sock"
    with ExitStack() as stack:
        standard = [stack.enter_context(_replaced(number, folder)) for number in (0, 1, 2)]
        stack.enter_context(mock.patch.object(environment, "environ", variables))
        for module in (config, delete):
            stack.enter_context(mock.patch.object(module, "SOCKET", str(here)))
        said, script = folder / "said", folder / "ipam"
        script.write_text(f"#!/bin/sh\nread -r code <{said}\ntail -n +2 {said}\nexit $code\n")
        script.chmod(0o755)
        said.touch()
        stack.callback(script.unlink)
        stack.callback(said.unlink)
        stack.enter_context(mock.patch.object(client, "DYING", 0.01))
        daemon = Daemon(here)
        stack.callback(daemon.close)
        stack.callback(here.unlink)
        before = set(folder.iterdir())

        def run(case: Case) -> str:
            variables.clear()
            variables.update(case.get("variables", {}))
            if b"CNI_PATH" in variables:
                plugins = variables[b"CNI_PATH"].replace(b"/nowhere/bin", bytes(folder))
                variables[b"CNI_PATH"] = plugins
            said.write_bytes(case.get("lease", b""))
            daemon.answer = case.get("answer", b"")
            # STATUS without a daemon tries the kernel out, which is no matter of input.
            status = variables.get(b"CNI_COMMAND") == b"STATUS"
            path = here if case.get("listens", True) or status else absent
            became = _called(standard, _led(case.get("stdin", b""), path), daemon.answer)
            left = sorted(set(folder.iterdir()) - before)
            for one in left:
                shutil.rmtree(one) if one.is_dir() else one.unlink()
            require(not left, f"nothing is left in the folder: {left}")
            return became

        yield Target(draw, run)


@contextmanager
def _replaced(number: int, folder: Path) -> Iterator[int]:
    """Put an empty file in place of a standard stream; it has no name that could be left."""
    saved, file = os.dup(number), os.memfd_create(f"fuzz {number}")
    os.dup2(file, number)
    os.close(file)
    try:
        yield number
    finally:
        os.dup2(saved, number)
        os.close(saved)


def draw(random: Random) -> Case:
    """Return variables, stdin, and what the daemon answers, if there is one."""
    mutator = Mutator(random, cni_documents.WORDS)
    document = {**cni_documents.document(random), "socket": "SOCKET"}
    return {
        "variables": cni_environment.draw(random),
        "stdin": cni_documents.stdin(mutator, document),
        "listens": random.random() < 0.8,
        "answer": _answer(mutator),
        "lease": random.choice((b"0\n", b"1\n")) + _lease(mutator),
    }


def _lease(mutator: Mutator) -> bytes:
    said = mutator.tree(mutator.random.choice((LEASE, REFUSED)))
    return (
        mutator.text(json.dumps(said).encode())
        if mutator.random.random() < 0.2
        else (json.dumps(said).encode())
    )


def _answer(mutator: Mutator) -> bytes:
    random = mutator.random
    status = random.choice((200, 200, 200, 403, 422, 500, random.randrange(1000)))
    body = json.dumps(mutator.tree(ATTACHED if status == 200 else REFUSED)).encode()
    answer = f"HTTP/1.1 {status} x\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
    return mutator.text(answer) if random.random() < 0.3 else answer


def _led(stdin: bytes, path: Path) -> bytes:
    """Return `stdin` with the socket at `path`, unless it is too damaged to lead anywhere."""
    try:
        value = json.loads(stdin)
    except (ValueError, RecursionError):
        return stdin
    named = value.get("socket") if isinstance(value, dict) else None
    if isinstance(named, str) and (named == "SOCKET" or named.startswith("/")):
        return json.dumps({**value, "socket": str(path)}).encode()
    return stdin


def _called(standard: list[int], stdin: bytes, answer: bytes) -> str:
    """Call ``main`` and judge what a runtime sees; it may be what the daemon's `answer` says."""
    for number in standard:
        os.ftruncate(number, 0)
        os.lseek(number, 0, os.SEEK_SET)
    os.write(0, stdin)
    os.lseek(0, 0, os.SEEK_SET)
    status = main.main()
    said = os.pread(1, 1 << 20, 0).decode()
    if status == 0:
        shown = json.loads(said) if said else {}
        require("code" not in shown, "success shows no error")
        return "success" if shown else "silent success"
    require(status == 1, "the exit code is 0 or 1")
    error = json.loads(said)
    require(set(error) == {"cniVersion", "code", "msg", "details"}, "an error has these fields")
    if json.dumps(error["msg"]).encode() in answer or error["msg"].startswith("ipam: ipam: "):
        require(type(error["code"]) is int and error["code"] > 0 and error["msg"], "an error")
        return "relayed"
    return judged(error["code"], error["msg"], error["details"])
