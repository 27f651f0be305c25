"""Running one virtual machine: building qemu's command line, passing output on, ending it.

The guest writes to three virtio ports: the script's stdout, its stderr, and a report of two lines,
"started" and "exit N". The machine is killed as soon as the report is complete. That loses nothing,
because its disk is an overlay that is thrown away in any case.
"""

from __future__ import annotations

import ctypes
import os
import selectors
import signal
import subprocess
import termios
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from tests.lab.image import Image
from tests.lab.kernel import Kernel

QEMU = "qemu-system-x86_64"
# The same numbers as in timeout(1): 124 for a script that ran out of time, 125 if the lab itself
# failed. So neither is mistaken for the script's own exit status.
TIMED_OUT = 124
LAB_FAILED = 125
# Seconds. An emulated boot takes 5 to 10 s, and even on a loaded machine much less than this.
BOOT_LIMIT = 180.0

_PR_SET_PDEATHSIG = 1

Process = subprocess.Popen[bytes]


@dataclass(frozen=True)
class Options:
    """How to boot."""

    cpus: int = 2
    memory: str = "4G"
    icount: bool = False
    kvm: bool = False
    append: str = ""
    """Words to add to the kernel's command line."""


@dataclass(frozen=True)
class Ended:
    """How a run ended."""

    status: int
    booted_after: float | None
    why: str = ""


def accelerator(options: Options) -> list[str]:
    """Return the qemu arguments that choose how the guest's instructions are executed."""
    if options.icount:
        # One guest instruction takes one guest nanosecond, so measurements repeat exactly.
        return ["-accel", "tcg", "-icount", "shift=0,sleep=off", "-smp", "1", "-cpu", "max"]
    if options.kvm:
        return ["-accel", "kvm", "-smp", str(options.cpus), "-cpu", "host"]
    return ["-accel", "tcg,thread=multi", "-smp", str(options.cpus), "-cpu", "max"]


def base_command(kernel: Kernel, options: Options) -> list[str]:
    """Return the qemu command for a machine with a kernel, a serial line and nothing else."""
    append = f"console=ttyS0 quiet panic=-1 apparmor=0 no_timer_check {options.append}"
    command = [QEMU, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
    command += ["-machine", "q35", "-m", options.memory, *accelerator(options)]
    command += ["-kernel", str(kernel.image), "-initrd", str(kernel.initramfs)]
    return [*command, "-append", append.strip()]


def disks(image: Image, payload: Path, kernel: Kernel) -> list[str]:
    """Return the qemu arguments for the disks: image, payload and the kernel's modules.

    Writes to the image go to an overlay that is thrown away; the others are read-only.
    """
    root = f"file={image.disk},format=raw,if=virtio,snapshot=on,cache=unsafe,discard=unmap"
    disks = ["-drive", root]
    for path in (payload, kernel.modules):
        disks += ["-drive", f"file={path},format=raw,if=virtio,readonly=on"]
    return disks


def shared_folder(checkout: Path) -> list[str]:
    """Return the qemu arguments that share the checkout, read-only; the guest mounts it on /src."""
    escaped = str(checkout).replace(",", ",,")
    share = f"local,path={escaped},mount_tag=src,security_model=none,readonly=on,multidevs=remap"
    return ["-virtfs", share]


def spawn(
    command: Sequence[str],
    output: IO[bytes] | None,
    *,
    stdin: int | None = subprocess.DEVNULL,
    pass_fds: Sequence[int] = (),
) -> Process:
    """Start a process that the kernel kills when this process ends, for whatever reason."""
    libc = ctypes.CDLL(None, use_errno=True)
    parent = os.getpid()

    def die_with_parent() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # the parent ended before the call above
            os._exit(LAB_FAILED)

    return subprocess.Popen(
        command,
        stdin=stdin,
        stdout=output,
        stderr=None if output is None else subprocess.STDOUT,
        pass_fds=pass_fds,
        start_new_session=True,  # so that Ctrl-C reaches only this process, which then cleans up
        preexec_fn=die_with_parent,
    )


def kill(process: Process) -> None:
    """End a process at once and wait until it is gone."""
    process.kill()
    process.wait()


def run(command: Sequence[str], timeout: float | None, log: Path) -> Ended:
    """Boot `command`, pass the script's output on as it comes, and return how the run ended.

    `timeout` is in seconds. The output of the kernel and of qemu goes to the file `log`.
    """
    return _run([*command, *_console(log)], timeout, log, interactive=False)


def shell(command: Sequence[str], log: Path) -> Ended:
    """Boot `command` with this process's terminal as the guest's, and return how it ended."""
    terminal = ["-chardev", "stdio,id=terminal,signal=off"]
    terminal += ["-device", "virtio-serial-pci,id=terminals"]
    terminal += ["-device", "virtconsole,chardev=terminal,bus=terminals.0"]
    settings = termios.tcgetattr(0)
    try:
        return _run([*command, *_console(log), *terminal], None, log, interactive=True)
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, settings)


def _run(command: list[str], timeout: float | None, log: Path, *, interactive: bool) -> Ended:
    ports = {name: os.pipe() for name in ("out", "err", "report")}
    command += ["-device", "virtio-serial-pci,id=ports"]
    for number, (name, (_, writer)) in enumerate(ports.items(), start=1):
        command += ["-chardev", f"file,id={name},path=/proc/self/fd/{writer}"]
        command += ["-device", f"virtserialport,nr={number},chardev={name},bus=ports.0"]
    writers = [writer for _, writer in ports.values()]
    report = _Report(time.monotonic())
    with log.open("ab") as file:
        if interactive:
            qemu = spawn(command, None, stdin=None, pass_fds=writers)
        else:
            qemu = spawn(command, file, pass_fds=writers)
    try:
        for writer in writers:
            os.close(writer)
        sinks = {
            ports["out"][0]: _to_descriptor(1),
            ports["err"][0]: _to_descriptor(2),
            ports["report"][0]: report.feed,
        }
        return _pump(sinks, report, timeout)
    finally:
        kill(qemu)
        for reader, _ in ports.values():
            os.close(reader)


def _console(log: Path) -> list[str]:
    return ["-chardev", f"file,id=console,path={log},append=on", "-serial", "chardev:console"]


class _Report:
    """The guest's report about the script, as far as it has arrived."""

    def __init__(self, begun: float) -> None:
        self.begun = begun
        self._text = b""
        self.booted_after: float | None = None
        self.status: int | None = None

    def feed(self, data: bytes) -> None:
        self._text += data
        *lines, self._text = self._text.split(b"\n")
        for line in lines:
            word, _, number = line.partition(b" ")
            if word == b"started":
                self.booted_after = time.monotonic() - self.begun
            elif word == b"exit":
                self.status = int(number)


def _pump(
    sinks: dict[int, Callable[[bytes], None]], report: _Report, timeout: float | None
) -> Ended:
    """Copy output until the script has ended, the machine is gone, or a limit has passed."""
    with selectors.DefaultSelector() as selector:
        for reader, sink in sinks.items():
            os.set_blocking(reader, False)
            selector.register(reader, selectors.EVENT_READ, sink)
        while selector.get_map() and report.status is None:
            ended, left = _out_of_time(report, timeout, time.monotonic())
            if ended:
                return ended
            for key, _ in selector.select(left):
                data = os.read(key.fd, 65536)
                if data:
                    key.data(data)
                else:
                    selector.unregister(key.fileobj)
        if report.status is None:
            return Ended(LAB_FAILED, report.booted_after, "the machine ended before the script did")
        # The guest reports the end after it has sent all output, so the rest of the output is in
        # our pipes by now.
        for reader, sink in sinks.items():
            while data := _read_now(reader):
                sink(data)
        return Ended(report.status, report.booted_after)


def _out_of_time(
    report: _Report, timeout: float | None, now: float
) -> tuple[Ended | None, float | None]:
    """Return (how the run ended, None) if a limit has passed; else (None, seconds left, if any)."""
    spent = now - report.begun
    if timeout is not None and spent >= timeout:
        return Ended(TIMED_OUT, report.booted_after, f"timed out after {timeout:g} s"), None
    if report.booted_after is None and spent >= BOOT_LIMIT:
        return Ended(LAB_FAILED, None, f"the guest did not boot within {BOOT_LIMIT:g} s"), None
    limits = [] if timeout is None else [timeout]
    if report.booted_after is None:
        limits.append(BOOT_LIMIT)
    return None, min(limits) - spent if limits else None


def _read_now(reader: int) -> bytes:
    try:
        return os.read(reader, 65536)
    except BlockingIOError:
        return b""


def _to_descriptor(descriptor: int) -> Callable[[bytes], None]:
    def write(data: bytes) -> None:
        while data:
            data = data[os.write(descriptor, data) :]

    return write
