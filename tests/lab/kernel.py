"""One kernel: unpacked, with its modules on a disk, and what it needs to mount the image.

All of it saves time.  Emulated, Debian's kernel takes three seconds to unpack itself,
which the host does in one, once; so it is with each module.  And Debian's initrd holds
drivers for every machine, so that unpacking it takes longer than our whole boot; this one
holds busybox, the virtio drivers and ext4.
"""

from __future__ import annotations

import lzma
import stat
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

DRIVERS = ("virtio_pci", "virtio_blk", "virtio_console", "crc32c_generic", "ext4")

# Modules for what no virtual machine has: two thirds of all, by size.
HARDWARE = (
    *("drivers/accel", "drivers/bluetooth", "drivers/comedi", "drivers/gpu", "drivers/hwmon"),
    *("drivers/iio", "drivers/infiniband", "drivers/input", "drivers/isdn", "drivers/media"),
    *("drivers/mfd", "drivers/mmc", "drivers/mtd", "drivers/net/ethernet", "drivers/net/wireless"),
    *("drivers/platform", "drivers/scsi", "drivers/staging", "drivers/usb", "drivers/video"),
    "sound",
)


@dataclass(frozen=True)
class Kernel:
    """A finished kernel on disk."""

    folder: Path

    @property
    def image(self) -> Path:
        return self.folder / "vmlinux"

    @property
    def initramfs(self) -> Path:
        return self.folder / "initramfs"

    @property
    def modules(self) -> Path:
        """A disk for the guest's /lib/modules."""
        return self.folder / "modules.ext4"


# On the kernel's command line, asks for a sign of life instead of a boot.
PROBE = "lab.probe"
PROBE_ANSWER = "lab-probe-ok"

# The guest's own init arrives at each boot on the second disk, so that
# changing it does not rebuild the image.
INIT = f"""#!/bin/busybox sh
PATH=/bin
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t devtmpfs dev /dev
case "$(cat /proc/cmdline)" in *{PROBE}*)
    echo {PROBE_ANSWER} >/dev/ttyS0
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


# The x86 boot protocol's names for fields of a bzImage's header.
_SETUP_SECTS = 0x1F1
_PAYLOAD_OFFSET = slice(0x248, 0x24C)
_PAYLOAD_LENGTH = slice(0x24C, 0x250)
# How a compressed stream begins; the unpacked size follows it in the payload.
_XZ = b"\xfd7zXZ\0"
_ZSTD = b"\x28\xb5\x2f\xfd"
_SIZE_FIELD = 4


def packed(tree: Path) -> Path:
    """The kernel's file among a package's files: in /boot, or beside the modules, as in sid."""
    [found] = [path for path in tree.rglob("vmlinuz*") if not path.is_symlink()]
    return found


def uncompressed(image: bytes) -> bytes:
    """The ELF kernel within a bzImage; the image itself if it is packed in another way."""
    setup = (image[_SETUP_SECTS] + 1) * 512
    start = setup + int.from_bytes(image[_PAYLOAD_OFFSET], "little")
    length = int.from_bytes(image[_PAYLOAD_LENGTH], "little")
    payload = image[start : start + length]
    if payload.startswith(_XZ):
        # Not lzma.decompress(), which minds the size that follows the stream.
        return lzma.LZMADecompressor().decompress(payload)
    if payload.startswith(_ZSTD):
        return _unzstd(payload[:-_SIZE_FIELD])
    return image


def unpack_modules(folder: Path) -> None:
    """Decompress all modules below `folder` where they lie."""
    with ThreadPoolExecutor() as pool:  # whose work is done outside the interpreter's lock
        list(pool.map(_unpack_module, folder.rglob("*.ko.*")))


def _unpack_module(path: Path) -> None:
    packed = path.read_bytes()
    unpacked = lzma.decompress(packed) if packed.startswith(_XZ) else _unzstd(packed)
    path.with_suffix("").write_bytes(unpacked)
    path.unlink()


def _unzstd(data: bytes) -> bytes:
    # Python has no zstd before 3.14.
    command = ["zstd", "--decompress", "--stdout", "--quiet"]
    return subprocess.run(command, input=data, stdout=subprocess.PIPE, check=True).stdout


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
        if name not in path_of:  # built into the kernel
            continue
        path = path_of[name]
        for step in (*needs[path], path):
            if step not in order:
                order.append(step)
    return order


def initramfs(root: Path, release: str) -> bytes:
    """An initramfs for the kernel `release` installed under `root`."""
    modules = root / "lib/modules" / release
    drivers = in_load_order((modules / "modules.dep").read_text(), DRIVERS)
    archive = Cpio()
    for name in ("bin", "proc", "dev", "root"):
        archive.directory(name)
    archive.file("bin/busybox", (root / "bin/busybox").read_bytes(), 0o755)
    archive.file("init", INIT.encode(), 0o755)
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
