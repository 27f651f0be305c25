"""The files from which a restarted daemon starts: the records it held, and the policy in force.

1. The snapshot of all records lies in the state folder, which is lost at a reboot, as the
   namespaces are. The policy also lies in the cache folder, which survives a reboot, so that a
   rebooted node enforces it before it has heard of any peer.
2. Both files are replaced as a whole and synced to disk (`netconf.files`): after a crash there is
   the old or the new content.
3. Everything is verified again when it is read. So the files are trusted for one thing only: that
   each record was accepted while its signer's certificate was in force (``Store.load``).
4. The snapshot is written only if the store has had news since the last writing: a manifest that
   says nothing new causes no writing.
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
        """Offer the saved records to the store; return sentences about what could not be used."""
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
        """Write the records (`contents`, at that `revision` of the store) and the policy.

        Each is written only if it differs from what was written last. IOFailure names the file.
        Blocks while the disk does, and must not run in two threads at a time.
        """
        if policy is not None and policy != self._written:
            _replace(self._policy, policy)
            self._written = policy
        if revision != self._revision:
            _replace(self._snapshot, contents.encode())
            self._revision = revision


def _replace(path: Path, content: bytes) -> None:
    """Replace the file at `path`, and make its folder if it is missing; IOFailure names it."""
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
