"""STATUS: say whether ADD would work.

CNI specification 1.1.0, section 2 "STATUS".

1. The daemon is asked. If it does not answer, ADD could only make a closed attachment, so a
   runtime should not start containers here: STATUS fails with code 50. The message also says what
   would keep the daemon from starting, as far as the executable can find out.
2. Where both apply, code 51 (running containers are affected too) is returned rather than 50.
3. Then the delegated plugin is asked, if there is one.
"""

from __future__ import annotations

from cni import client
from cni.config import Network
from cni.environment import Environment
from cni.errors import NOT_AVAILABLE, Failure


def status(call: Environment, network: Network) -> None:
    """Return if ADD would work; Failure 50 or 51 says why not."""
    socket, key_file, delegate = network.socket, network.key_file, network.ipam
    try:
        client.ready(socket, key_file)
    except client.Silence as silence:
        raise Failure(
            NOT_AVAILABLE,
            "; ".join([_why(silence, key_file), "start it: systemctl start noctuled"]),
            str(silence),
        ) from None
    if delegate:
        from cni import ipam

        ipam.run(call, network, "STATUS")


def _why(silence: client.Silence, key_file: str) -> str:
    if not isinstance(silence, client.Absent):
        return "noctuled does not answer"
    from cni import fallback

    return "; ".join(["noctuled does not run", *fallback.obstacles(key_file)])
