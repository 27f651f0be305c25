"""The state folder of a node: one small file for each attachment, in ``/run``.

1. Attach writes the file *before* it touches the kernel, and detach removes it last. So after a
   crash there is always a file that tells a second call what to finish. Files are replaced by
   rename, so a reader never sees half of one.
2. The file's name holds what allocation needs: ``attachments/<id>@<address>.json``. Listing the
   folder gives every address in use, and there is no separate index that could disagree.
3. Three locks, none of which survives its holder:
   ``lock`` (flock): the daemon holds it shared for each operation, an executable that
   works without the daemon holds it exclusively (`shared`, `exclusive`);
   ``operations`` (open file description lock on the byte numbered by the attachment id):
   one operation at a time per attachment (`holding`);
   ``allocation`` (flock): held while a file is written or removed.
4. Every write happens under the lock ``allocation``. So a temporary file found while holding it was
   left by a writer that crashed, and is removed. ``last`` (the address handed out last, only a
   hint) is overwritten in place, without a temporary file: one short write happens whole or not
   at all.
5. Nothing is fsynced: at a reboot the folder is lost, and so are the namespaces it describes.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import msgspec

from netconf import files
from netconf.attach import allocation, locks
from netconf.attach.attachment import Attachment, AttachRequest, NodeNet
from netconf.errors import DecodeFailure, InvalidConfig, IOFailure, NotAvailable

_OCTET = "(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_FILE = re.compile(rf"([0-9a-f]{{12}})@({_OCTET}(?:\.{_OCTET}){{3}})\.json")
"""The name of an attachment's file (rule 2). Files with other names in the folder are ignored."""

_LAST = len("255.255.255.255")
"""Length of the file ``last`` in characters. Shorter addresses are padded to it, so that each write
covers the whole of the one before."""

PATIENCE_SECONDS = 10.0
"""How long an operation waits for a lock before it raises TryAgain. Runtimes wait longer for an
answer (containerd and kubelet: minutes), so the reason still reaches them."""

Record = TypeVar("Record", bound=msgspec.Struct)


def folder_of(socket: str | Path) -> Path:
    """Return the state folder of the daemon whose socket's path this is.

    It is the socket's own folder, unless the daemon left a link beside the socket (`lead`).
    """
    link = Path(f"{socket}.state")
    return link.readlink() if link.is_symlink() else Path(socket).parent


def kept(folder: Path) -> bool:
    """Tell whether `folder` is a state folder.

    Callers ask before they use `State`, which would make a new folder at a mistaken path.
    """
    return (folder / "attachments").is_dir()


def lead(socket: str | Path, folder: str | Path) -> None:
    """Leave a link beside a daemon's socket that leads to its state `folder`; IOFailure.

    No link is needed, and an old one is removed, where `folder` is the socket's own folder.
    """
    link = Path(f"{socket}.state")
    with _reading(f"link {link} to {folder}"):
        link.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if Path(folder) == link.parent:
            link.unlink(missing_ok=True)
        elif folder_of(socket) != Path(folder):
            beside = Path(f"{link}.new")
            beside.unlink(missing_ok=True)
            beside.symlink_to(folder)
            beside.replace(link)


class State:
    """The state folder of one node."""

    def __init__(self, directory: str | Path) -> None:
        """Use the folder `directory`, and make it if it is missing; IOFailure."""
        self.directory = Path(directory)
        self._folder = self.directory / "attachments"
        with _reading(f"make the state folder {self.directory}"):
            self.directory.mkdir(mode=0o755, parents=True, exist_ok=True)
            self._folder.mkdir(mode=0o700, exist_ok=True)

    # -- locks ---------------------------------------------------------------------------

    @contextmanager
    def shared(self, timeout: float = PATIENCE_SECONDS) -> Iterator[None]:
        """Hold the node's lock with the daemon's other operations; TryAgain."""
        with locks.shared(self.directory / "lock", timeout):
            yield

    @contextmanager
    def exclusive(self, timeout: float = PATIENCE_SECONDS) -> Iterator[None]:
        """Hold the node's lock alone; TryAgain after `timeout` seconds."""
        with locks.exclusive(self.directory / "lock", timeout):
            yield

    @contextmanager
    def holding(self, attachment: str, timeout: float = PATIENCE_SECONDS) -> Iterator[None]:
        """Exclude all other operations on an attachment; TryAgain after `timeout` seconds.

        Not re-entrant: the same thread must not take it twice.
        """
        with locks.byte(self.directory / "operations", int(attachment, 16), timeout):
            yield

    # -- the node ------------------------------------------------------------------------

    def write_node(self, node: NodeNet) -> None:
        """Write `node` to ``node.json``, for an executable that works without the daemon."""
        with self._writing():
            self._write(self.directory / "node.json", node)

    def read_node(self) -> NodeNet:
        """Return what `write_node` wrote; NotAvailable if there is no such file."""
        path = self.directory / "node.json"
        if not path.exists():
            raise NotAvailable(
                f"{path} is missing: noctuled has not run on this node yet; start it"
            )
        return self._read(path, NodeNet)

    # -- attachments ---------------------------------------------------------------------

    def allocate(
        self, request: AttachRequest, node: NodeNet, *, netns_id: tuple[int, int], salt: bytes
    ) -> Attachment:
        """Reserve an address and write the attachment's file, in phase ``adding``.

        InvalidConfig if the requested address or MAC cannot be had or the attachment
        exists; AddressesExhausted if the slice is full, NodeFull if the node is.
        """
        with self._writing():
            taken = self._taken()
            if request.id in taken:
                raise InvalidConfig(
                    f"{request.ifname} of container {request.container} is attached to "
                    f"{request.network} already; detach it first"
                )
            address = allocation.choose(request, node, set(taken.values()), self._last())
            attachment = Attachment(
                id=request.id,
                network=request.network,
                container=request.container,
                ifname=request.ifname,
                netns=request.netns,
                netns_id=netns_id,
                service=request.service,
                key_file=request.key_file,
                address=address,
                salt=salt.hex(),
                an=0,
                mtu=node.mtu,
                phase="adding",
                runtime=request.runtime,
                bandwidth=request.bandwidth,
                ula=node.ula,
            )
            self._write(self._path(attachment), attachment)
            self._remember(address)
        return attachment

    def save(self, attachment: Attachment) -> None:
        """Write an attachment's file anew: another phase, salt or association number."""
        with self._writing():
            self._write(self._path(attachment), attachment)

    def remove(self, attachment: Attachment) -> None:
        """Remove an attachment's file: its address is free again. Repeatable."""
        path = self._path(attachment)
        with self._writing():
            path.with_suffix(".tmp").unlink(missing_ok=True)
            path.unlink(missing_ok=True)

    def sweep(self, attachment: str) -> None:
        """Remove temporary files of a crashed writer, for an attachment that has no state file."""
        with self._writing():
            for path in self._folder.glob(f"{attachment}@*.tmp"):
                path.unlink(missing_ok=True)

    def get(self, attachment: str) -> Attachment | None:
        """Return one attachment by id, or None.

        If its file cannot be read, the phase is ``unreadable`` and only id and address are set,
        which is enough to detach it.
        """
        for name in self._listed():
            if name.startswith(f"{attachment}@") and _said(name):
                return self._attachment(attachment, name)
        return None

    def ids(self) -> set[str]:
        """Return the id of every attachment. Only the folder is listed; no file is opened."""
        return set(self._names())

    def taken(self) -> set[str]:
        """Return the address of every attachment. Only the folder is listed; no file is opened."""
        return {said[1] for said in map(_said, self._listed()) if said}

    def all(self) -> list[Attachment]:
        """Return every attachment, sorted by id; unreadable files as `get` returns them."""
        found = [self._attachment(*item) for item in sorted(self._names().items())]
        return [attachment for attachment in found if attachment is not None]

    def _names(self) -> dict[str, str]:
        """Return the state files' names by id; temporary files are left out."""
        return {said[0]: name for name in self._listed() if (said := _said(name))}

    def _listed(self) -> list[str]:
        with _reading(f"list {self._folder}"):
            return os.listdir(self._folder)  # noqa: PTH208 -- strings are enough

    def _attachment(self, attachment: str, name: str) -> Attachment | None:
        try:
            found = self._read(self._folder / name, Attachment)
        except FileNotFoundError:
            return None
        except DecodeFailure:
            return _by_name(attachment, name)
        # Allocation and removal use the file's name; contents that disagree with it are damaged.
        return found if self._path(found).name == name else _by_name(attachment, name)

    def _taken(self) -> dict[str, str]:
        """Return the address by id of all attachments, and remove temporary files (rule 4).

        The caller holds the lock ``allocation``.
        """
        taken = {}
        for name in self._listed():
            if said := _said(name):
                taken[said[0]] = said[1]
            elif name.endswith(".tmp"):
                (self._folder / name).unlink(missing_ok=True)
        return taken

    def _last(self) -> str:
        try:
            return (self.directory / "last").read_bytes()[:_LAST].decode("ascii", "replace").strip()
        except OSError:
            return ""

    def _remember(self, address: str) -> None:
        last = os.open(self.directory / "last", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            os.write(last, address.ljust(_LAST).encode())
        finally:
            os.close(last)

    # -- files ---------------------------------------------------------------------------

    def _path(self, attachment: Attachment) -> Path:
        return self._folder / f"{attachment.id}@{attachment.address}.json"

    @contextmanager
    def _writing(self) -> Iterator[None]:
        with (
            locks.exclusive(self.directory / "allocation", PATIENCE_SECONDS),
            _reading(f"write to {self.directory}"),
        ):
            yield

    def _write(self, path: Path, record: msgspec.Struct) -> None:
        content = msgspec.json.encode(record)
        files.replace(path, content, mode=0o644, sync=False, beside=path.with_suffix(".tmp"))

    @staticmethod
    def _read(path: Path, record: type[Record]) -> Record:
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            raise
        except OSError as error:
            raise IOFailure(f"cannot read {path}: {error.strerror}") from error
        try:
            return msgspec.json.decode(data, type=record)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise DecodeFailure(
                f"{path} is not a state file of this version; remove it and what it names",
                details=str(error),
            ) from error


@functools.lru_cache(maxsize=4096)  # each ADD lists the folder twice, the collector constantly
def _said(name: str) -> tuple[str, str] | None:
    """Return the attachment id and address in a file's name; None if it is no state file's."""
    match = _FILE.fullmatch(name)
    return (match[1], match[2]) if match else None


def _by_name(attachment: str, name: str) -> Attachment:
    """Return an attachment that has only the id and the address in an unreadable file's name.

    That is enough to remove its links and free its address.
    """
    return Attachment(
        id=attachment,
        network="",
        container="",
        ifname="",
        netns="",
        netns_id=(0, 0),
        service="",
        key_file="",
        address=name.partition("@")[2].removesuffix(".json"),
        salt="",
        an=0,
        mtu=0,
        phase="unreadable",
    )


@contextmanager
def _reading(operation: str) -> Iterator[None]:
    """Turn an OSError inside into an IOFailure that names the `operation`."""
    try:
        yield
    except OSError as error:
        raise IOFailure(
            f"cannot {operation}: {error.strerror or error}", details=str(error)
        ) from error
