"""The capability ``bandwidth``: limits that the runtime asks for.

containernetworking/cni, CONVENTIONS.md; refusals as in the reference plugin ``bandwidth``,
which cannot limit a Noctule interface: it looks for a veth in the container.

1. Rates are bits per second, bursts bits. "Ingress" is towards the container. 0 is no limit.
2. A rate needs a burst and a burst needs a rate.
"""

from __future__ import annotations

from cni.codec import encode
from cni.fields import invalid, object_of

FIELDS = {
    "ingressRate": "ingress_rate",
    "ingressBurst": "ingress_burst",
    "egressRate": "egress_rate",
    "egressBurst": "egress_burst",
}
WHERE = "runtimeConfig.bandwidth"
LARGEST = (1 << 63) - 1


def limits(value: object) -> dict[str, int] | None:
    """Return the fields of ``netconf.netlink.shaping.Bandwidth``, None if nothing is limited.

    Rates are bits per second, bursts bits. Raises Failure 7, which names the field.
    """
    fields = object_of(value, WHERE, tuple(FIELDS))
    for name in fields:
        if name not in FIELDS:
            raise invalid(f"{WHERE}.{name}", f"unknown field; known are {', '.join(FIELDS)}")
    found = {ours: _bits(name, fields.get(name)) for name, ours in FIELDS.items()}
    for direction in ("ingress", "egress"):
        if bool(found[f"{direction}_rate"]) != bool(found[f"{direction}_burst"]):
            raise invalid(
                f"{WHERE}.{direction}Rate", f"give {direction}Rate and {direction}Burst, or neither"
            )
    return found if any(found.values()) else None


def _bits(name: str, value: object) -> int:
    if value is None:
        return 0
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= LARGEST:
        raise invalid(f"{WHERE}.{name}", f"{encode(value)} must be a number of bits, 0 or more")
    return value
