"""The name servers of one node, and the one loop that serves them all.

1. An attachment is served if its state file is in phase ``ready`` and its namespace is still the
   one that was attached. The folder of state files is looked at four times a second, and read only
   if it changed. Only four fields of a file are read, so that containers keep their name servers
   under a daemon of another release.
2. Answers are made from ``names``, which the daemon writes. While that file is missing or
   unreadable, what was read last is used.
3. The daemon sends the name of a state file to ``resolver.sock``, and is told whether its
   attachment is served. It does so for each ADD, so that the first look-up of a container finds its
   name server listening. Only that one file is read, so that a thousand others do not delay an ADD.
4. The sockets in a namespace are closed within a second after it lost its path, or the path leads
   to another one; and within a quarter of a second after its state file is gone.
5. What fails for one attachment is logged and tried again; other attachments are not affected.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import selectors
import socket
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

import msgspec

from daemon.journal import Journal
from daemon.resolver.answer import Zone
from daemon.resolver.directory import Directory
from daemon.resolver.nameserver import TURN, Gone, NameServer, Turns
from daemon.resolver.protocol import NAMES, NOT_SERVED, SERVED, SOCKET
from netconf.errors import InvalidConfig, IOFailure, TryAgain, UnknownContainer
from netconf.namespace import identity

FOLLOW = 0.25
"""Seconds between looks at the files; an idle resolver does not wake more often. Only containers
that were attached without a daemon have to wait for it."""
LOOKS = 4
"""Looks in which every namespace is checked once. While a daemon runs, its own collector is faster
and removes the file; without one, a second's delay harms nobody."""
SETTLED = 20_000_000
"""Nanoseconds. A folder's modification time is that of the kernel's last tick, 1 to 10 ms before
the change. Two changes in one tick have the same time, so a younger time does not tell whether the
folder has changed since it was read."""


class StateFile(msgspec.Struct, frozen=True):
    """The fields that are read of a state file (`netconf.attach.attachment.Attachment`)."""

    netns: str
    netns_id: tuple[int, int]
    service: str
    phase: str


class Server:
    """All name servers of one state folder; a context manager that closes them."""

    def __init__(self, folder: Path, journal: Journal) -> None:
        """Lock the state folder and listen for the daemon; `serve` does the rest.

        TryAgain if another resolver has the folder; InvalidConfig or IOFailure if it cannot be
        used.
        """
        self._folder = folder
        self._journal = journal
        self._selector = selectors.DefaultSelector()
        self._turns = Turns()
        self._found: dict[str, tuple[str, int]] = {}
        """By attachment: its file's name and inode; each change replaces the file, so the inode."""
        self._wanted: dict[str, StateFile] = {}
        self._served: dict[str, NameServer] = {}
        self._complained: set[str] = set()
        self._looked = 0
        self._stamp = 0
        self._directory: Directory | None = None
        self._directory_file: tuple[int, int] | None = None
        self._zones: dict[str, Zone] = {}
        self._open = contextlib.ExitStack()
        with contextlib.ExitStack() as opened:
            opened.callback(self._selector.close)
            self._lock(opened)
            self._asked = self._listen(opened)
            self._open = opened.pop_all()

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for attachment in self._served.values():
            attachment.close()
        self._open.close()

    def serve(
        self,
        stop: socket.socket,
        ready: Callable[[], None] = lambda: None,
        alive: Callable[[], None] = lambda: None,
    ) -> None:
        """Serve until `stop` can be read.

        Calls `ready` once when all present attachments are served, and `alive` every `FOLLOW`
        seconds.
        """
        stopping = False

        def end() -> None:
            nonlocal stopping
            stopping = True

        self._selector.register(stop, selectors.EVENT_READ, (None, end))
        self._selector.register(self._asked, selectors.EVENT_READ, (None, self._answer_daemon))
        self._follow_names()
        self._follow_files()
        self._journal.info("ready", served=len(self._served))
        ready()
        turn = follow = time.monotonic()
        while not stopping:
            due = min(turn, follow) if self._turns.awaited else follow
            for key, _ in self._selector.select(max(0.0, due - time.monotonic())):
                self._handle(*key.data)
            now = time.monotonic()
            if now >= turn:
                self._turns.next()
                turn = now + TURN
            if now >= follow:
                self._follow()
                follow = now + FOLLOW
                alive()

    def _handle(self, attachment: NameServer | None, handler: Callable[[], None]) -> None:
        if attachment is not None and (attachment.closed or attachment.waiting):
            return
        began = time.thread_time()
        try:
            handler()
        except Exception as error:
            # This is a bug. Close the name server that provoked it for a while; the others go on.
            self._journal.error("resolver", exc=error)
            if attachment is not None:
                attachment.close()
        if attachment is not None:
            attachment.spend(time.thread_time() - began)

    # --- what changes

    def _follow(self) -> None:
        self._follow_names()
        try:
            stamp = self._folder.joinpath("attachments").stat().st_mtime_ns
        except OSError:
            stamp = 0
        if stamp != self._stamp:
            self._follow_files()
            self._stamp = stamp if time.time_ns() - stamp > SETTLED else 0
        self._looked = (self._looked + 1) % LOOKS
        self._look(self._looked)

    def _follow_names(self) -> None:
        path = self._folder / NAMES
        try:
            status = path.stat()
            if (status.st_ino, status.st_mtime_ns) == self._directory_file:
                return
            data = path.read_bytes()
            self._directory_file = (status.st_ino, status.st_mtime_ns)
            directory = msgspec.json.decode(data, type=Directory)
            services = {state.service for state in self._wanted.values()}
            zones = {service: Zone(directory.of(service)) for service in services}
        except FileNotFoundError:
            return
        except OSError as error:
            self._complain(NAMES, str(error))
            return
        except (ValueError, RecursionError) as error:
            self._journal.error("names", path=str(path), error=str(error))
            return
        self._directory, self._zones = directory, zones
        for number, attachment in self._served.items():
            attachment.zone = zones[self._wanted[number].service]

    def _follow_files(self) -> None:
        """Read the changed state files; serve attachments that are ready, and close all others."""
        try:
            with os.scandir(self._folder / "attachments") as entries:
                found = {
                    entry.name.partition("@")[0]: (entry.name, entry.inode())
                    for entry in entries
                    if entry.name.endswith(".json")
                }
        except FileNotFoundError:
            found = {}
        except OSError as error:
            self._journal.error("attachments", error=str(error))
            return
        for number in (self._found.keys() | self._complained) - found.keys():
            self._drop(number)
        for number, file in found.items():
            if self._found.get(number) != file:
                self._read(number, file)

    def _read(self, number: str, file: tuple[str, int]) -> None:
        try:
            data = (self._folder / "attachments" / file[0]).read_bytes()
            state = msgspec.json.decode(data, type=StateFile)
        except FileNotFoundError:
            return
        except (OSError, ValueError, RecursionError) as error:
            self._complain(number, str(error))
            return
        if state.phase != "ready":
            self._drop(number)
            return
        before = self._wanted.get(number)
        if before is not None and before != state:
            self._drop(number)
        self._found[number] = file
        self._wanted[number] = state
        self._open_up(number, state)

    def _look(self, part: int) -> None:
        """Check a part of the attachments: close those that are gone, reopen those that closed."""
        now = time.monotonic()
        for number in list(self._wanted)[part::LOOKS]:
            state, attachment = self._wanted[number], self._served.get(number)
            if attachment is not None and identity(state.netns) != state.netns_id:
                self._shut(number)
            elif attachment is not None and not attachment.closed:
                attachment.hurry(now)
            else:
                self._shut(number)
                self._open_up(number, state)

    def _open_up(self, number: str, state: StateFile) -> None:
        if number in self._served:
            return
        try:
            self._served[number] = NameServer(
                state.netns, state.netns_id, self._zone(state.service), self._selector, self._turns
            )
        except (Gone, UnknownContainer):
            return  # the daemon takes the attachment down and removes the file
        except OSError as error:
            self._complain(number, str(error))
        else:
            self._complained.discard(number)

    def _shut(self, number: str) -> None:
        attachment = self._served.pop(number, None)
        if attachment is not None:
            attachment.close()

    def _drop(self, number: str) -> None:
        self._shut(number)
        self._found.pop(number, None)
        self._wanted.pop(number, None)
        self._complained.discard(number)

    def _zone(self, service: str) -> Zone | None:
        if self._directory is None:
            return None
        if service not in self._zones:
            self._zones[service] = Zone(self._directory.of(service))
        return self._zones[service]

    def _complain(self, number: str, error: str) -> None:
        """Log an error once for each file, because serving it is tried again and again."""
        if number not in self._complained:
            self._complained.add(number)
            self._journal.error("not served", file=number, error=error)

    # --- what the daemon asks

    def _answer_daemon(self) -> None:
        try:
            asked, client = self._asked.recvfrom(100)
        except BlockingIOError:
            return
        name = Path(asked.decode(errors="replace")).name
        number = name.partition("@")[0]
        try:
            inode = (self._folder / "attachments" / name).stat().st_ino
        except (OSError, ValueError):
            self._drop(number)
        else:
            self._read(number, (name, inode))
        with contextlib.suppress(OSError):
            self._asked.sendto(SERVED if number in self._served else NOT_SERVED, client)

    # --- the folder

    def _lock(self, opened: contextlib.ExitStack) -> None:
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            lock = os.open(
                self._folder / "resolver.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
            )
        except OSError as error:
            raise IOFailure(f"paths.state: cannot use {self._folder}: {error.strerror}") from error
        opened.callback(os.close, lock)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise TryAgain(
                f"paths.state: another noctule-resolver runs on {self._folder}; stop it, or give "
                "this one its own"
            ) from error

    def _listen(self, opened: contextlib.ExitStack) -> socket.socket:
        path = self._folder / SOCKET
        path.unlink(missing_ok=True)
        asked = opened.enter_context(
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        )
        before = os.umask(0o177)
        try:
            asked.bind(str(path))
        except OSError as error:
            raise InvalidConfig(
                f"paths.state: no socket can be made at {path}: {error}; a unix socket's path "
                "has at most 107 bytes"
            ) from error
        finally:
            os.umask(before)
        opened.callback(path.unlink, missing_ok=True)
        return asked
