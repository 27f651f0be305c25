"""The keys of records, questions and tokens on the fabric, which routes messages by them.

1. Records: ``noctule/<cluster>/policy`` and ``noctule/<cluster>/node/<id>/`` followed by
   ``info``, ``manifest`` or ``replica/<attachment>``.
2. A node is asked at ``noctule/<cluster>/ask/<id>``. That is outside its records, so that
   subscribers to records get no replies.
3. Its liveliness token is ``noctule/<cluster>/alive/<id>``. A message that the node puts at this
   key says that its token will vanish and come back at once.
4. Every chunk is letters, digits, ``_``, ``.``, ``-``, starting with a letter or digit, so
   no key can hold a wildcard (``*``, ``$``) or zenoh's reserved ``@``, ``?``, ``#``.
5. The fabric carries records of kinds that this release does not know (`is_record`), so that it
   need not change when a release adds one. The store reads only the kinds of rule 1 (`parse`).
"""

from __future__ import annotations

from typing import Literal

import msgspec

from daemon.naming import NAME
from netconf.errors import DecodeFailure, InvalidConfig


def check_name(field: str, name: str) -> str:
    """Return `name` if it can be one chunk of a key; InvalidConfig names `field`."""
    if not NAME.fullmatch(name):
        raise InvalidConfig(
            f"{field}: {name!r} is not a name; use letters, digits, '_', '.' and '-', at most "
            "64, a letter or digit first"
        )
    return name


class Key(msgspec.Struct, frozen=True):
    """A record's key, taken apart."""

    kind: Literal["policy", "info", "manifest", "replica", "other"]
    """``other``: of a kind that a later release may know."""
    node: str = ""
    attachment: str = ""

    @property
    def within(self) -> str:
        """The key within its node's subtree, as manifests list it."""
        return f"replica/{self.attachment}" if self.kind == "replica" else self.kind


class Keys:
    """The keys of one cluster."""

    def __init__(self, cluster: str) -> None:
        """Raises InvalidConfig for a `cluster` that cannot be part of a key."""
        self.cluster = check_name("cluster", cluster)
        self.root = f"noctule/{cluster}"
        """What all keys of the cluster start with."""
        self.policy = f"{self.root}/policy"
        """The one record of the policy authority."""

    def record(self, node: str, *parts: str) -> str:
        """Return the key of a record of `node`, e.g. for ``record("n1", "replica", "8f…")``."""
        return "/".join((self.root, "node", node, *parts))

    def info(self, node: str) -> str:
        """Return the key of the info of `node`: who and where it is."""
        return self.record(node, "info")

    def manifest(self, node: str) -> str:
        """Return the key of the manifest of `node`: which records it has."""
        return self.record(node, "manifest")

    def replica(self, node: str, attachment: str) -> str:
        """Return the key of one container of `node`; `attachment` is its id, 12 hex digits."""
        return self.record(node, "replica", attachment)

    def ask(self, node: str) -> str:
        """Return the key at which `node` answers questions; ``*`` for any node."""
        return f"{self.root}/ask/{node}"

    def alive(self, node: str) -> str:
        """Return the key of the liveliness token of `node`; ``*`` for any node."""
        return f"{self.root}/alive/{node}"

    def is_record(self, key: str) -> bool:
        """Tell whether `key` is the plain key of one record of this cluster (rule 5)."""
        return key == self.policy or self.owner(key) != ""

    def below(self, key: str) -> str:
        """Return a record's full `key` without the cluster's root and the slash after it."""
        return key[len(self.root) + 1 :]

    def owner(self, key: str) -> str:
        """Return the node under whose subtree the record key `key` lies; "" for none."""
        head = f"{self.root}/node/"
        chunks = key[len(head) :].split("/")
        plain = (
            key.startswith(head)
            and len(chunks) >= 2
            and all(NAME.fullmatch(chunk) for chunk in chunks)
        )
        return chunks[0] if plain else ""

    def node_alive(self, key: str) -> str | None:
        """Return the node whose liveliness token `key` is, if it is one."""
        head = self.alive("")
        name = key[len(head) :]
        return name if key.startswith(head) and NAME.fullmatch(name) else None

    def parse(self, key: str) -> Key | None:
        """Take a record's `key` apart.

        Returns None for another cluster's key. Raises DecodeFailure for text that is not a key,
        which includes wildcards (``*``, ``$``, ``?``, ``#``).
        """
        parts = key.split("/")
        if any(NAME.fullmatch(part) is None for part in parts):
            raise DecodeFailure(f"record: {key!r} is not a key")
        if parts[:2] != ["noctule", self.cluster]:
            return None
        match parts[2:]:
            case ["policy"]:
                return Key("policy")
            case ["node", node, "info"]:
                return Key("info", node)
            case ["node", node, "manifest"]:
                return Key("manifest", node)
            case ["node", node, "replica", attachment]:
                return Key("replica", node, attachment)
            case ["node", node, _, *_]:
                return Key("other", node)
        raise DecodeFailure(f"record: {key!r} is not a key")
