"""The few files the kernel needs before it can mount the image.

Debian's generic initrd holds drivers for every machine; unpacking it under
emulation takes longer than our whole boot.  This one holds busybox, the virtio
drivers and ext4.
"""

from __future__ import annotations

import stat
from pathlib import Path

DRIVERS = ("virtio_pci", "virtio_blk", "virtio_console", "crc32c_generic", "ext4")

# The guest's own init arrives at each boot on the second disk, so that
# changing it does not rebuild the image.
INIT = b"""#!/bin/busybox sh
PATH=/bin
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t devtmpfs dev /dev
case "$(cat /proc/cmdline)" in *lab.probe*)
    echo lab-probe-ok >/dev/ttyS0
    reboot -f
esac
for driver in $(cat /drivers); do insmod "/$driver"; done
mount -t ext4 -o noatime /dev/vda /root || reboot -f
mount -t tmpfs -o mode=755 run /root/run
mount --move /dev /root/dev
umount /proc
chroot /root tar -x -f /dev/vdb --keep-directory-symlink || reboot -f
exec switch_root /root /run/lab/init
"""


def in_load_order(modules_dep: str, wanted: tuple[str, ...]) -> list[str]:
    """Paths of the wanted modules and all they need, each after its needs."""
    needs: dict[str, list[str]] = {}
    path_of: dict[str, str] = {}
    for line in modules_dep.splitlines():
        path, _, rest = line.partition(":")
        # modules.dep lists what to load first last.
        needs[path] = list(reversed(rest.split()))
        path_of[Path(path).name.split(".")[0].replace("-", "_")] = path
    order: list[str] = []
    for name in wanted:
        path = path_of.get(name)
        if path is None:  # built into the kernel
            continue
        for step in (*needs[path], path):
            if step not in order:
                order.append(step)
    return order


def build(root: Path, release: str) -> bytes:
    """An initramfs for the kernel `release` installed under `root`."""
    modules = root / "lib/modules" / release
    drivers = in_load_order((modules / "modules.dep").read_text(), DRIVERS)
    archive = Cpio()
    for name in ("bin", "proc", "dev", "root"):
        archive.directory(name)
    archive.file("bin/busybox", (root / "bin/busybox").read_bytes(), 0o755)
    archive.file("init", INIT, 0o755)
    names = [Path(path).name for path in drivers]
    for name, path in zip(names, drivers, strict=True):
        archive.file(name, (modules / path).read_bytes(), 0o644)
    archive.file("drivers", "\n".join(names).encode(), 0o644)
    return archive.finish()


class Cpio:
    """A writer of the 'newc' format, the one the kernel unpacks."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._inode = 0

    def directory(self, name: str) -> None:
        self._entry(name, stat.S_IFDIR | 0o755, b"")

    def file(self, name: str, content: bytes, mode: int) -> None:
        self._entry(name, stat.S_IFREG | mode, content)

    def finish(self) -> bytes:
        self._entry("TRAILER!!!", 0, b"")
        return bytes(self._data)

    def _entry(self, name: str, mode: int, content: bytes) -> None:
        self._inode += 1
        raw_name = name.encode() + b"\0"
        fields = (self._inode, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(raw_name), 0)
        self._data += b"070701" + b"".join(b"%08x" % field for field in fields)
        for part in (raw_name, content):
            self._data += part
            self._data += bytes(-len(self._data) % 4)
