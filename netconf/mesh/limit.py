"""The most that the links of this node carry, in bytes of payload. Pure.

1. It is the least of what its links carry, and `MTU_MAX` at most.
2. A link that is found to carry less than the floor while the mesh runs has a fault: it is named,
   and not counted. Containers keep a lower MTU for good, on all nodes, and one bad moment of one
   link must not give them one that IP cannot use.
3. Where no link counts, the limit stays what it was.
"""

from __future__ import annotations

from collections.abc import Mapping

from netconf.mesh.config import MTU_MAX


def limit(carried: Mapping[str, int], floor: int, before: int | None) -> tuple[int, dict[str, str]]:
    """Return the limit, and which links are not counted: name → why, and the fix.

    `carried` has bytes by name of link; `before` is the limit of the last look, None at the start,
    when every link counts.
    """
    faults = {
        name: f"{name} carries {size} bytes of the mesh now, and {floor} are needed; "
        "raise its MTU, or that of the route to its peer"
        for name, size in carried.items()
        if before is not None and size < floor
    }
    counted = [size for name, size in carried.items() if name not in faults]
    if not counted:
        return (MTU_MAX if before is None else before), faults
    return min(MTU_MAX, *counted), faults
