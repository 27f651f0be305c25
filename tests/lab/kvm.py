"""Whether this machine can boot a guest under KVM.

/dev/kvm may exist and still hang every guest, as on some nested hosts; so we
boot our own kernel up to its first process, and only an answer within a few
seconds counts.  A real boot, because a toy guest may pass where a kernel hangs.
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
    """The answer for this machine, asked for once per boot of it."""
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
    """Whether a machine so configured reaches user space within `limit` seconds."""
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
    """The answer remembered for this boot, if any."""
    try:
        known = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return bool(known["works"]) if known.get("boot") == boot_id else None


def remember(path: Path, boot_id: str, answer: bool) -> None:
    """Keep the answer for later runs; two at once write the same."""
    scratch = path.with_suffix(f".{os.getpid()}")
    scratch.write_text(json.dumps({"boot": boot_id, "works": answer}))
    scratch.replace(path)
