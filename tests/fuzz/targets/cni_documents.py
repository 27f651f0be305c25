"""Network configurations as runtimes write them, to begin from."""

from __future__ import annotations

import json
from random import Random
from typing import Any

from cni.config import ANNOTATIONS, OURS, STANDARD
from tests.fuzz.mutate import Mutator

VERBS = ("ADD", "DEL", "CHECK", "GC", "STATUS")
NETNS = "/run/netns/nowhere"

RESULT: dict[str, Any] = {
    "cniVersion": "1.1.0",
    "interfaces": [
        {"name": "lo", "sandbox": NETNS},
        {"name": "eth0", "mac": "02:4e:0a:40:10:05", "mtu": 1394, "sandbox": NETNS},
    ],
    "ips": [
        {"address": "10.64.16.5/12", "interface": 1, "gateway": "10.64.16.1"},
        {"address": "fd00::a40:1005/108", "interface": 1},
    ],
    "routes": [{"dst": "10.80.0.0/16"}],
    "dns": {"nameservers": ["127.0.0.78"], "search": ["mesh"]},
}
PLAIN: dict[str, Any] = {
    "cniVersion": "1.1.0",
    "name": "mesh",
    "type": "noctule",
    "service": "web",
    "key": {"file": "/run/noctule/keys/mesh.key"},
}
DOCUMENTS: tuple[dict[str, Any], ...] = (
    PLAIN,
    {**PLAIN, "prevResult": RESULT},
    {
        **PLAIN,
        "cniVersion": "1.0.0",
        "capabilities": {"aliases": True, "ips": True, "mac": True},
        "runtimeConfig": {
            "aliases": {"mesh": ["web", "0c0ffee"]},
            "ips": ["10.64.16.5/12"],
            "mac": "02:4e:0a:40:10:05",
            "dns": {"servers": ["192.0.2.2"], "searches": ["z"], "options": []},
            "bandwidth": {"ingressRate": 8, "ingressBurst": 8, "egressRate": 8, "egressBurst": 8},
        },
        "args": {"cni": {"service": "api", "ips": ["10.64.16.5"]}},
        "ipam": {},
        "dns": {"nameservers": ["192.0.2.1"], "domain": "x", "search": ["x"], "options": ["y"]},
    },
    {**PLAIN, "cniVersion": "0.4.0", "runtimeConfig": {"aliases": ["web"]}, "prevResult": RESULT},
    {
        **{name: value for name, value in PLAIN.items() if name != "service"},
        "podNames": ["{service}-{replicaset}-{random}", "{service}-{ordinal}"],
        "capabilities": {ANNOTATIONS: True, "bandwidth": True, "dns": True},
        "runtimeConfig": {
            ANNOTATIONS: {"noctule.io/service": "web", "other.io/x": "y"},
            "bandwidth": {"IngressRate": 8, "IngressBurst": 8, "EgressRate": 8, "EgressBurst": 8},
            "dns": {"Servers": ["192.0.2.2"], "Searches": ["z"], "Options": None},
        },
        "PrevResult": {"Interfaces": [{"Name": "lo", "Sandbox": NETNS}], "IPs": [], "DNS": {}},
    },
    {**PLAIN, "cniVersion": "0.3.1", "ipMasq": False, "disableCheck": True},
    {
        **PLAIN,
        "cni.dev/valid-attachments": [{"containerID": "c0ffee", "ifname": "eth0"}],
        "cni.dev/attachments": [{"containerID": "c0ffee", "ifname": "eth0"}],
    },
    {**PLAIN, "ipam": {"type": "ipam"}, "prevResult": RESULT, "runtime": "podman"},
)
WORDS = (
    *OURS, *STANDARD, *RESULT, *VERBS, "cni", "ips", "mac", "aliases", "file", "address",
    "interface",
    "sandbox", "mtu", "gateway", "dst", "containerID", "ifname", "cni.dev/valid-attachments",
    "cni.dev/attachments", "cni.dev/other", "portMappings", "bandwidth", "infinibandGUID", "static",
    "host-local", "noctule", NETNS, "/proc/self/ns/net", "c0ffee", "10.64.16.5/12", "1.1.0",
    "0.4.0", "Service", "KEY", "dns", "DNS", "Servers", "IPs", "IngressRate", "noctule.io/service",
    "noctule.io/x", "{service}", "{service}-{ordinal}", "{random}", ANNOTATIONS,
    "CNI.dev/Attachments",
)  # fmt: skip


def stdin(mutator: Mutator, document: dict[str, Any]) -> bytes:
    """Return `document` as JSON text, sometimes damaged."""
    value = mutator.tree(document)
    ascii_only = mutator.random.random() < 0.9
    data = json.dumps(value, ensure_ascii=ascii_only).encode(errors="surrogatepass")
    return mutator.text(data) if mutator.random.random() < 0.25 else data


def document(random: Random) -> dict[str, Any]:
    """Return one of the documents."""
    return random.choice(DOCUMENTS)
