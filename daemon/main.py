"""``noctuled``: reads its configuration and runs one node until it is told to stop.

Exit status 0 after SIGTERM or SIGINT, 1 when it could not start; the reason is one log line.
SIGUSR1 prints the stack of every thread. It reads the stacks while they may be changing
(faulthandler), so use it last, on a daemon that hangs.
"""

from __future__ import annotations

import argparse
import asyncio
import faulthandler
import signal
from pathlib import Path

from daemon import config, journal
from daemon.node import Node
from daemon.process import descriptors, systemd
from netconf.errors import NoctuleError


def main() -> int:
    """Run the daemon; return the exit status."""
    parser = argparse.ArgumentParser(prog="noctuled", description="The Noctule daemon of one node.")
    parser.add_argument("--config", type=Path, default=Path("/etc/noctule/node.yaml"))
    parser.add_argument("--log", default="info", choices=["debug", "info", "warning", "error"])
    arguments = parser.parse_args()
    journal.start(arguments.log)
    faulthandler.enable()  # the service manager ends a daemon that hangs by SIGABRT
    faulthandler.register(signal.SIGUSR1)
    log = journal.Journal()
    try:
        settings = config.read(arguments.config)
        descriptors.allow_most()
        log = journal.Journal(node=settings.node)
        asyncio.run(_run(settings, log))
    except NoctuleError as error:
        log.error("cannot run", error=error.message, details=error.details)
        return 1
    return 0


START_WITHIN = 45.0
"""Seconds after which the service manager is told that the daemon is ready although it still
waits, for example for the clock: that must not keep the rest of the machine from booting."""


async def _run(settings: config.Config, log: journal.Journal) -> None:
    node = Node(settings, log)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    starting = asyncio.ensure_future(node.start())
    stopping = asyncio.ensure_future(stop.wait())
    try:
        ends = (starting, stopping)
        done, _ = await asyncio.wait(
            ends, timeout=START_WITHIN, return_when=asyncio.FIRST_COMPLETED
        )
        if not done:
            log.warning("still starting", seconds=START_WITHIN)
            systemd.tell("READY=1\nSTATUS=still starting; the log says what it waits for")
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            starting.result()
            systemd.tell("READY=1\nSTATUS=serving")
            await stopping
    finally:
        starting.cancel()
        await asyncio.wait((starting,))
        await node.stop()
