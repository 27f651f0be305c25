"""The names under which facts travel.

1. Records: ``noctule/<cluster>/node/<id>/<part>…`` and ``noctule/<cluster>/policy``.
2. A node is asked at ``noctule/<cluster>/ask/<id>``: outside its records, so that no
   subscription to records ever meets a reply.
3. Its liveliness token is ``noctule/<cluster>/alive/<id>``; a message put there says that
   the node will be back at once.
4. Every chunk is letters, digits, ``_``, ``.``, ``-``, starting with a letter or digit, so
   no key can hold a wildcard (``*``, ``$``) or zenoh's reserved ``@``, ``?``, ``#``.
"""

from __future__ import annotations

import msgspec

from daemon.model.naming import NAME
from netconf.errors import InvalidConfig


def check_name(field: str, name: str) -> str:
    """Return `name` if it can be one chunk of a key; InvalidConfig names `field`."""
    if not NAME.fullmatch(name):
        raise InvalidConfig(
            f"{field}: {name!r}: use letters, digits, '_', '.', '-', at most 64, "
            "starting with a letter or digit"
        )
    return name


class Keys(msgspec.Struct, frozen=True):
    """The keys of one cluster."""

    cluster: str

    @property
    def root(self) -> str:
        """What all keys of the cluster start with."""
        return f"noctule/{self.cluster}"

    @property
    def policy(self) -> str:
        """The one record of the policy authority."""
        return f"{self.root}/policy"

    def record(self, node: str, *parts: str) -> str:
        """A record of `node`, e.g. ``record("n1", "replica", "8f…")``."""
        return "/".join((self.root, "node", node, *parts))

    def ask(self, node: str) -> str:
        """Where `node` answers questions; ``*`` for any."""
        return f"{self.root}/ask/{node}"

    def alive(self, node: str) -> str:
        """The liveliness token of `node`; ``*`` for any."""
        return f"{self.root}/alive/{node}"

    def is_record(self, key: str) -> bool:
        """Tell whether `key` is the plain key of one record of this cluster."""
        if key == self.policy:
            return True
        head = f"{self.root}/node/"
        chunks = key[len(head) :].split("/")
        return (
            key.startswith(head)
            and len(chunks) >= 2
            and all(NAME.fullmatch(chunk) for chunk in chunks)
        )

    def node_alive(self, key: str) -> str | None:
        """The node whose liveliness token `key` is, if it is one."""
        head = self.alive("")
        name = key[len(head) :]
        return name if key.startswith(head) and NAME.fullmatch(name) else None
