"""What ``noctulectl`` prints for people: sentences and plain tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime

from daemon.api.messages import (
    NodeOutcome,
    NodeStatus,
    PolicyApplied,
    Status,
    Verification,
)
from daemon.model.trust import DAY, WARN_BEFORE


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return an aligned table; numbers to the right, words to the left.

    A column whose cells are all empty is left out.
    """
    cells = [[str(cell) for cell in row] for row in rows]
    telling = [i for i in range(len(head)) if not cells or any(row[i] for row in cells)]
    head, cells = [head[i] for i in telling], [[row[i] for i in telling] for row in cells]
    widths = [max(map(len, column)) for column in zip(head, *cells, strict=True)]
    numeric = [
        bool(cells) and all(row[i].replace(".", "", 1).isdecimal() for row in cells)
        for i in range(len(head))
    ]

    def line(row: Sequence[str]) -> str:
        parts = (
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, numeric, strict=True)
        )
        return "  ".join(parts).rstrip()

    return "\n".join(line(row) for row in [[name.upper() for name in head], *cells])


def status(report: Status, now: float) -> str:
    """Return the text of ``status``: one node, its peers and the replicas it knows.

    `now` is in seconds since the epoch; certificates that end soon are named.
    """
    policy = f"policy {report.policy.version}" if report.policy else "no policy yet"
    parts = [
        f"{report.node} in cluster {report.cluster}: "
        f"{'ready' if report.ready else 'starting'}, {report.algorithm}, "
        f"mesh MTU {report.mtu}, {policy}"
    ]
    if report.mesh:
        parts.append("\n".join(report.mesh))
    parts.append(
        table(
            ("node", "daemon", "slice", "quality", "via"),
            [
                (
                    node.node,
                    _state(node),
                    node.slice,
                    f"{node.quality:.2f}",
                    node.via or "-",
                )
                for node in report.nodes
            ],
        )
    )
    ending = [line for node in report.nodes if (line := _ending(node, now))]
    if ending:
        parts.append("\n".join(ending))
    told = {node.ula or "none" for node in report.nodes}
    if len(told) > 1:
        parts.append(
            "addresses.ula differs, so there is no IPv6 between: "
            + ", ".join(f"{node.node} {node.ula or 'none'}" for node in report.nodes)
        )
    if report.services:
        parts.append(
            table(
                ("service", "id", "vip", "vip6", "ports", "replicas"),
                [
                    (
                        service.name,
                        service.id,
                        service.vip,
                        service.vip6,
                        ",".join(f"{p.protocol}/{p.port}" for p in service.ports) or "-",
                        len(service.replicas),
                    )
                    for service in report.services
                ],
            )
        )
    parts.extend(f"{one.name} is closed: {one.closed}" for one in report.services if one.closed)
    if report.replicas:
        parts.append(
            table(
                ("replica", "service", "address", "address6", "node", "state"),
                [
                    (
                        r.attachment,
                        r.service,
                        r.address,
                        r.address6,
                        r.node,
                        r.refused or "counts",
                    )
                    for r in report.replicas
                ],
            )
        )
    counters = report.counters
    parts.append(
        f"host filter dropped: {counters.plaintext} plaintext, {counters.foreign} foreign, "
        f"{counters.forbidden} forbidden"
    )
    if counters.denied:
        parts.append(
            table(
                ("denied at", "direction", "peer", "protocol", "port", "packets"),
                [
                    (d.service, d.direction, d.peer, d.protocol, d.port, d.packets)
                    for d in counters.denied
                ],
            )
        )
    parts.extend(f"records refused: {reason}: {n}" for reason, n in counters.records.items())
    parts.extend(
        f"records of {node} refused: {reason}: {n}"
        for node, reasons in counters.peers.items()
        for reason, n in reasons.items()
    )
    return "\n\n".join(parts)


def _ending(node: NodeStatus, now: float) -> str:
    """Return a line about the certificate of `node` if it ends soon or has ended, else ""."""
    try:
        until = datetime.fromisoformat(node.certificate_until).timestamp()
    except ValueError:  # a daemon of 0.1.0 does not report it
        return ""
    if until - now >= WARN_BEFORE:
        return ""
    when = f"certificate of {node.node}"
    if until < now:
        return f"{when} ended at {node.certificate_until}: renew it"
    days = int((until - now) // DAY)
    return f"{when} ends at {node.certificate_until}, in {days} days: renew it"


def verification(report: Verification) -> str:
    """Return the differences a verify found, or that there are none."""
    if report.differences:
        said = [f"{report.node}: the kernel differs from the plan:", *report.differences]
    else:
        said = [
            f"{report.node}: the kernel agrees with the plan ({report.attachments} attachments)"
        ]
    if report.outdated:
        said += [f"{report.node}: made before an upgrade or another configuration:"]
    return "\n".join(said + report.outdated)


def applied(report: PolicyApplied) -> str:
    """Return where a policy is live, and a line for each node where it is not."""
    slowest = max(report.live.values(), default=0.0)
    total = len(report.live) + len(report.silent)
    said = [
        f"policy {report.version} is live on {len(report.live)} of {total} nodes "
        f"after {slowest:.0f} ms"
    ]
    told = {one.node: one for one in report.nodes}
    said += [_shortfall(node, told.get(node)) for node in report.silent]
    if any(one.outcome == "stale" for one in report.nodes):
        said.append("another version won; apply again to sign the one after it")
    return "\n".join(said)


def _shortfall(node: str, told: NodeOutcome | None) -> str:
    """Return why a policy is not live on a node; `told` is None from a daemon of 0.1.0."""
    if told is None:
        return f"{node}: no answer; it takes the policy when it returns"
    match told.outcome:
        case "unreachable":
            return f"{node}: unreachable: {told.reason}; it takes the policy when it returns"
        case "accepted":
            return f"{node}: accepted, and not in its kernel yet: {told.reason}"
    return f"{node}: {told.outcome}: {told.reason}"


def _state(node: NodeStatus) -> str:
    if node.lost or node.suspect:
        return "lost" if node.lost else "suspect"
    return "alive" if node.alive else "silent"
