"""Finding out whether this machine can boot a guest under KVM.

On some nested hosts /dev/kvm exists, but every guest hangs. So the lab boots its own kernel up to
the first process, and KVM counts as working only if that answers within a few seconds. A smaller
guest would not do: it may run where a real kernel hangs.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from pathlib import Path

from tests.lab import machine
from tests.lab.kernel import PROBE, PROBE_ANSWER, Kernel

# Under working KVM the answer comes in about a second.
LIMIT = 5.0
DEVICE = Path("/dev/kvm")
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def works(kernel: Kernel, cache: Path) -> bool:
    """Tell whether KVM works; it is tried once per boot of this machine and then remembered."""
    if not os.access(DEVICE, os.R_OK | os.W_OK):
        return False
    remembered = cache / "kvm.json"
    boot_id = _BOOT_ID.read_text().strip()
    answer = recall(remembered, boot_id)
    if answer is None:
        answer = boots(
            kernel, machine.Options(cpus=1, memory="512M", kvm=True, append=PROBE), LIMIT
        )
        remember(remembered, boot_id, answer)
    return answer


def boots(kernel: Kernel, options: machine.Options, limit: float) -> bool:
    """Tell whether a machine with these options reaches user space within `limit` seconds."""
    command = [*machine.base_command(kernel, options), "-serial", "stdio"]
    with tempfile.TemporaryFile() as log:
        qemu = machine.spawn(command, log)
        try:
            qemu.wait(limit)
        except subprocess.TimeoutExpired:
            return False
        finally:
            machine.kill(qemu)
        log.seek(0)
        return PROBE_ANSWER.encode() in log.read()


def recall(path: Path, boot_id: str) -> bool | None:
    """Return the answer remembered for the boot with this id, None if there is none."""
    try:
        known = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return bool(known["works"]) if known.get("boot") == boot_id else None


def remember(path: Path, boot_id: str, answer: bool) -> None:
    """Keep the answer for later runs.

    No lock is needed: two processes at once write the same, each through a file of its own.
    """
    scratch = path.with_suffix(f".{os.getpid()}")
    scratch.write_text(json.dumps({"boot": boot_id, "works": answer}))
    scratch.replace(path)
