"""What a restarted daemon starts from: the records it knew, and the policy in force.

1. The snapshot lies in the state folder, which dies with the namespaces at reboot; the policy
   also in the cache folder, which does not: a rebooted node enforces before it hears anyone.
2. Both are replaced whole and synced (`netconf.files`): a crash leaves the old or the new.
3. Everything is verified again when read, so neither file needs to be trusted, but for one thing:
   that it was accepted while its signer's certificate was in force (``Store.load``).
4. What was news since the last writing is written, and nothing is where nothing was: a manifest
   that says nothing new costs no file.
"""

from __future__ import annotations

from pathlib import Path

from daemon.model.store import Contents, Store
from netconf import files
from netconf.errors import DecodeFailure, IOFailure


class Snapshot:
    """The two files of one node."""

    def __init__(self, state: Path, cache: Path, store: Store) -> None:
        """`state` and `cache` are the folders of ``paths`` in node.yaml."""
        self._snapshot = state / "records"
        self._policy = cache / "policy"
        self._store = store
        self._written: bytes | None = None
        self._revision = -1

    def load(self) -> list[str]:
        """Offer what was saved to the store; return what could not be used, in words."""
        problems: list[str] = []
        if snapshot := _read(self._snapshot, problems):
            try:
                verdicts = self._store.load(snapshot)
            except DecodeFailure as error:
                problems.append(error.message)
            else:
                problems.extend(f"{v.key}: {v.outcome}" for v in verdicts if not v.changed)
        if policy := _read(self._policy, problems):
            verdict = self._store.offer(policy, None)
            if verdict.reason:
                problems.append(f"{self._policy}: {verdict.outcome}: {verdict.reason}")
        return problems

    def write(self, contents: Contents, policy: bytes | None, revision: int) -> None:
        """Save the records of that `revision` of the store, and the policy, each if it is
        another one than was saved last; IOFailure names the file.

        Blocks for as long as the disk does; not for two threads at a time.
        """
        if policy is not None and policy != self._written:
            _replace(self._policy, policy)
            self._written = policy
        if revision != self._revision:
            _replace(self._snapshot, contents.encode())
            self._revision = revision


def _replace(path: Path, content: bytes) -> None:
    """Replace the file at `path`, in a folder that is made if need be; IOFailure names it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise IOFailure(f"cannot write {path}: {error.strerror}") from error
    files.replace(path, content)


def _read(path: Path, problems: list[str]) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""
    except OSError as error:
        problems.append(f"cannot read {path}: {error.strerror}")
        return b""
