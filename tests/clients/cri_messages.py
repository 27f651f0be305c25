"""The messages of the CRI that a kubelet sends to run a pod, and their encoding.

Kubernetes' k8s.io/cri-api, pkg/apis/runtime/v1/api.proto, of which this has what is used here;
Protocol Buffers, "Encoding".

1. A message is declared as the name of each field, its number and its type: `TEXT`, `BYTES`,
   `NUMBER` (also for booleans and enumerations), `MAP` (text to text) or another message. A
   list of one type is a repeated field.
2. Values are dicts of the same names. Absent fields are not written; fields that are not
   declared are passed over when read.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

TEXT, BYTES, NUMBER, MAP = "text", "bytes", "number", "map"

Message = dict[str, tuple[int, Any]]

POD_ID: Message = {"pod_sandbox_id": (1, TEXT)}
CONTAINER_ID: Message = {"container_id": (1, TEXT)}

POD: Message = {
    "metadata": (
        1,
        {"name": (1, TEXT), "uid": (2, TEXT), "namespace": (3, TEXT), "attempt": (4, NUMBER)},
    ),
    "hostname": (2, TEXT),
    "log_directory": (3, TEXT),
    "dns_config": (4, {"servers": (1, [TEXT]), "searches": (2, [TEXT]), "options": (3, [TEXT])}),
    "port_mappings": (
        5,
        [{"protocol": (1, NUMBER), "container_port": (2, NUMBER), "host_port": (3, NUMBER)}],
    ),
    "labels": (6, MAP),
    "annotations": (7, MAP),
    "linux": (8, {"cgroup_parent": (1, TEXT)}),
}
CONTAINER: Message = {
    "metadata": (1, {"name": (1, TEXT), "attempt": (2, NUMBER)}),
    "image": (2, {"image": (1, TEXT)}),
    "command": (3, [TEXT]),
}

METHODS: dict[str, tuple[Message, Message]] = {
    "Status": (
        {},
        {"status": (1, {"conditions": (1, [{
            "type": (1, TEXT), "status": (2, NUMBER), "reason": (3, TEXT), "message": (4, TEXT),
        }])})},
    ),
    "RunPodSandbox": ({"config": (1, POD)}, POD_ID),
    "PodSandboxStatus": (
        POD_ID,
        {"status": (1, {
            "id": (1, TEXT), "state": (3, NUMBER), "network": (5, {"ip": (1, TEXT)}),
        })},
    ),
    "ListPodSandbox": ({}, {"items": (1, [{"id": (1, TEXT), "state": (3, NUMBER)}])}),
    "StopPodSandbox": (POD_ID, {}),
    "RemovePodSandbox": (POD_ID, {}),
    "CreateContainer": (
        {**POD_ID, "config": (2, CONTAINER), "sandbox_config": (3, POD)}, CONTAINER_ID,
    ),
    "StartContainer": (CONTAINER_ID, {}),
    "ExecSync": (
        {**CONTAINER_ID, "cmd": (2, [TEXT]), "timeout": (3, NUMBER)},
        {"stdout": (1, BYTES), "stderr": (2, BYTES), "exit_code": (3, NUMBER)},
    ),
}  # fmt: skip
"""What is asked, and what is answered."""

_PAIR: Message = {"key": (1, TEXT), "value": (2, TEXT)}
_VARINT, _DELIMITED = 0, 2
_FIXED = {1: 8, 5: 4}  # wire type: bytes


def encode(message: Message, values: dict[str, Any]) -> bytes:
    """Return `values` as the bytes of a `message`; KeyError for a field it has not."""
    found = bytearray()
    for name, value in values.items():
        number, kind = message[name]
        for one in _several(kind, value):
            content = _content(kind[0] if isinstance(kind, list) else kind, one)
            if isinstance(content, int):
                found += _varint(number << 3 | _VARINT) + _varint(content)
            else:
                found += _varint(number << 3 | _DELIMITED) + _varint(len(content)) + content
    return bytes(found)


def _several(kind: Any, value: Any) -> list[Any]:
    if kind == MAP:
        return [{"key": key, "value": text} for key, text in value.items()]
    return list(value) if isinstance(kind, list) else [value]


def _content(kind: Any, value: Any) -> int | bytes:
    if kind == NUMBER:
        return int(value)
    if kind == TEXT:
        return str(value).encode()
    if kind == BYTES:
        return bytes(value)
    return encode(_PAIR if kind == MAP else kind, value)


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    found.append(value)
    return bytes(found)


def decode(message: Message, data: bytes) -> dict[str, Any]:
    """Return the values in the bytes of a `message`; lists and maps are there though empty."""
    named = {number: (name, kind) for name, (number, kind) in message.items()}
    found: dict[str, Any] = {
        name: [] if isinstance(kind, list) else {}
        for name, (_, kind) in message.items()
        if kind == MAP or isinstance(kind, list)
    }
    for number, raw in _fields(data):
        if number not in named:
            continue
        name, kind = named[number]
        if isinstance(kind, list):
            found[name].append(_value(kind[0], raw))
        elif kind == MAP:
            pair = decode(_PAIR, bytes(raw))
            found[name][pair.get("key", "")] = pair.get("value", "")
        else:
            found[name] = _value(kind, raw)
    return found


def _value(kind: Any, raw: Any) -> Any:
    if kind in (NUMBER, BYTES):
        return raw
    return raw.decode() if kind == TEXT else decode(kind, raw)


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield the number of each field, and its integer or its bytes."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            value |= (byte & 127) << shift
            at, shift = at + 1, shift + 7
            if byte < 128:
                return value

    while at < len(data):
        tag = varint()
        number, wire = tag >> 3, tag & 7
        if wire == _VARINT:
            yield number, varint()
            continue
        length = varint() if wire == _DELIMITED else _FIXED[wire]
        yield number, data[at : at + length]
        at += length
