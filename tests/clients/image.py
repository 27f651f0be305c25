"""One OCI image of busybox, as a registry would give it, made of what the machine has.

The OCI image specification 1.0: image-layout.md, manifest.md, config.md. Debian's static
busybox crashes in wget, whatever it dials; so nc speaks HTTP.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path
from typing import Any

IMAGE = "localhost/busybox:1"
COMMANDS = ("cat", "httpd", "ip", "nc", "nslookup", "ping", "sh", "sleep")

_OCI = "application/vnd.oci.image"


def image(path: Path) -> Path:
    """Write the image as an archive; return `path`. Its name stands where each runtime looks."""
    layer = _tar({
        "bin/busybox": Path("/bin/busybox").read_bytes(),
        **{f"bin/{name}": "busybox" for name in COMMANDS},
        "etc/passwd": b"root:x:0:0:root:/:/bin/sh\n",
    })  # fmt: skip
    config = {
        "architecture": "amd64", "os": "linux",
        # The command serves where the image is a pod's pause image: nothing else starts it bare.
        "config": {"Env": ["PATH=/bin"], "Cmd": ["sleep", "1000000"]},
        "rootfs": {"type": "layers", "diff_ids": [_digest(layer)]},
    }  # fmt: skip
    blobs = [layer, json.dumps(config).encode()]
    manifest = {
        "schemaVersion": 2, "mediaType": f"{_OCI}.manifest.v1+json",
        "config": _described(f"{_OCI}.config.v1+json", blobs[1]),
        "layers": [_described(f"{_OCI}.layer.v1.tar", layer)],
    }  # fmt: skip
    blobs.append(json.dumps(manifest).encode())
    top = _described(manifest["mediaType"], blobs[2]) | {
        "annotations": {
            "org.opencontainers.image.ref.name": IMAGE,
            "io.containerd.image.name": IMAGE,
        }
    }
    path.write_bytes(
        _tar({
            "oci-layout": b'{"imageLayoutVersion": "1.0.0"}',
            "index.json": json.dumps({"schemaVersion": 2, "manifests": [top]}).encode(),
            **{f"blobs/sha256/{_digest(blob).partition(':')[2]}": blob for blob in blobs},
        })
    )  # fmt: skip
    return path


def _tar(files: dict[str, bytes | str]) -> bytes:
    """Return an archive of files, where text is a symbolic link's target."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.mode = 0o755
            if isinstance(content, str):
                member.type, member.linkname = tarfile.SYMTYPE, content
                archive.addfile(member)
            else:
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return out.getvalue()


def _digest(blob: bytes) -> str:
    return f"sha256:{hashlib.sha256(blob).hexdigest()}"


def _described(kind: str, blob: bytes) -> dict[str, Any]:
    return {"mediaType": kind, "digest": _digest(blob), "size": len(blob)}
