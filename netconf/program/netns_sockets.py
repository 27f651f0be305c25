"""The open sockets of one attachment: what the programmer reaches into a container with.

1. Three sockets (nftables, MACsec, rtnetlink) made in the container's namespace, and the
   index of its SecY; using them needs no ``setns``.
2. They stay open between changes: a change then costs microseconds, while closing a
   netfilter socket after a delete waits 10 to 20 ms for the kernel to free elements.
3. Open sockets keep a namespace alive after its container. `identity` is compared before
   each use, and the daemon closes the handles of a namespace that lost its path within a
   second or two.
4. Flows are cut rarely: the socket for that is opened when it is needed (`abort`).
"""

from __future__ import annotations

import contextlib
import errno
import threading
from collections.abc import Iterator, Sequence

from netconf.errors import UnknownContainer
from netconf.namespace import Namespace
from netconf.netlink import links, macsec, sock_diag
from netconf.netlink.socket import doing
from netconf.nft.encoding import TcpConnection
from netconf.nft.wire import NftSocket


class NetnsSockets:
    """One attachment's sockets; `lock` is held by the one thread that uses them."""

    def __init__(self, netns: Namespace, ifname: str) -> None:
        """Open the sockets in `netns`; UnknownContainer if it has no `ifname`."""
        self.lock = threading.Lock()
        self._closed = False
        self.identity = netns.identity
        self._path = netns.path
        self.last_generation: int | None = None
        """Of nftables, when it was last programmed; None before, and after a failure."""
        with contextlib.ExitStack() as opened, doing(f"open sockets in {netns.path}"):
            self.nft = NftSocket(netns)
            opened.callback(self.nft.close)
            self._genl = opened.enter_context(macsec.open(netns))
            self._rtnl = opened.enter_context(links.open(netns))
            found = links.get(self._rtnl, ifname)
            if found is None:
                raise UnknownContainer(
                    f"{ifname} is gone from {netns.path}; delete the attachment and add it again"
                )
            self.ifindex = found.index
            opened.pop_all()

    @contextlib.contextmanager
    def using(self) -> Iterator[None]:
        """Hold `lock` in the body; UnknownContainer if the sockets were closed meanwhile."""
        with self.lock:
            if self._closed:
                raise UnknownContainer("the attachment was taken down meanwhile")
            yield

    def close(self) -> None:
        """Close the sockets, letting the namespace go; repeatable."""
        self._closed = True
        self.nft.close()
        self._genl.close()
        self._rtnl.close()

    def add_channel(self, sci: bytes) -> None:
        """Accept a peer's SCI. OSError EEXIST if it is accepted."""
        macsec.add_rx_sc(self._genl, self.ifindex, sci)

    def del_channel(self, sci: bytes) -> None:
        """Forget a peer's SCI with its keys. OSError ENODEV if it is unknown."""
        macsec.del_rx_sc(self._genl, self.ifindex, sci)

    def add_key(self, sci: bytes, an: int, sak: bytes, key_id: bytes) -> None:
        """Install the key a peer sends with. OSError EBUSY if `an` has one."""
        macsec.add_rx_sa(self._genl, self.ifindex, sci, an, sak, key_id)

    def del_key(self, sci: bytes, an: int) -> None:
        """Remove a peer's key. OSError ENODEV if there is none."""
        macsec.del_rx_sa(self._genl, self.ifindex, sci, an)

    def channels(self) -> dict[bytes, dict[int, bytes]]:
        """Return key ids by association number by SCI.

        UnknownContainer without the interface; OSError EMSGSIZE if it has more channels than the
        kernel can list.
        """
        secy = macsec.dump(self._genl).get(self.ifindex)
        if secy is None and links.get(self._rtnl, self.ifindex) is not None:
            raise OSError(errno.EMSGSIZE, "it has more channels than the kernel can list")
        if secy is None:
            raise UnknownContainer(
                "the container's interface is gone; delete the attachment and add it again"
            )
        return {
            sci: {an: sa.key_id for an, sa in channel.items()} for sci, channel in secy.rx.items()
        }

    def set_neighbour(self, address: str, mac: str) -> None:
        """Make the permanent neighbour entry of a replica, in either family."""
        links.set_neighbour(self._rtnl, self.ifindex, address, mac)

    def del_neighbour(self, address: str) -> None:
        """Delete a neighbour entry; none there is fine."""
        links.del_neighbour(self._rtnl, self.ifindex, address)

    def neighbours(self) -> dict[str, str]:
        """Return MACs by address, of both families."""
        return links.neighbours(self._rtnl, self.ifindex)

    def abort(self, connections: Sequence[TcpConnection]) -> None:
        """Abort the sockets of `connections`, so that programs that wait on them hear of it now.

        Where the kernel cannot, they hear of it from the ruleset, with their next segment.
        """
        if not connections:
            return
        with (
            contextlib.suppress(OSError, UnknownContainer),
            Namespace.open(self._path) as netns,
        ):
            if netns.identity == self.identity:  # the path may be another's by now
                sock_diag.abort(netns, self.ifindex, connections)
