"""A node in a process of its own: ``fabric_child SETTINGS-JSON END``; prints ``open``, then ends.

END is how: ``wait`` (until killed), ``raise`` (without closing), ``exit`` (``sys.exit``,
without closing), ``forget`` (returns, without closing), ``signal`` (closes on SIGTERM).
"""

from __future__ import annotations

import asyncio
import signal
import sys

import msgspec

from daemon.fabric import Settings
from daemon.fabric.zenoh_fabric import ZenohFabric
from tests.unit.fabric_kit import Recorder


async def main(settings: Settings, end: str) -> None:
    fabric = ZenohFabric(settings)
    stop = asyncio.Event()
    if end == "signal":
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await fabric.open(Recorder())
    print("open", flush=True)
    if end in ("wait", "signal"):
        await stop.wait()
        await fabric.close()
        print("closed", flush=True)
    elif end == "raise":
        raise RuntimeError("the daemon's mistake")
    elif end == "exit":
        sys.exit(3)


if __name__ == "__main__":
    asyncio.run(main(msgspec.json.decode(sys.argv[1], type=Settings), sys.argv[2]))
