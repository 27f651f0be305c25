"""Queries to the resolver: whatever a container sends, a short answer that fits, or none."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

import dnslib

from daemon.resolver.answer import Zone, answer
from tests.fuzz.mutate import Mutator
from tests.fuzz.target import Case, Target, require

NAMES = ("web", "API", "a.b", "b", "2.0.80.10.in-addr.arpa", "80.10.in-addr.arpa", "", "no.such")
TYPES = ("A", "AAAA", "PTR", "ANY", "SOA", "NS", "AXFR", "IXFR", "OPT", "TXT", "HTTPS")
ADDRESSES = {
    "web": ["10.80.0.1", "fd00::1"], "api": ["10.80.0.2"], "a.b": ["fd00::3"],
    "a..b": ["10.80.0.4"], "x" * 64: ["10.80.0.5"],
}  # fmt: skip
LONGEST = 512


@contextmanager
def target(folder: Path) -> Iterator[Target]:
    """Offer the target; it keeps nothing open."""
    zones = (None, Zone({}), Zone(ADDRESSES))
    yield Target(draw, lambda case: run(case.get("query", b""), zones[case.get("zone", 2)]))


def draw(random: Random) -> Case:
    """Return a query, and what the asker may know."""
    mutator = Mutator(random)
    query = dnslib.DNSRecord.question(random.choice(NAMES), random.choice(TYPES))
    query.header.id = random.randrange(1 << 16)
    if random.random() < 0.4:
        query.add_ar(dnslib.EDNS0(flags=random.choice(("", "do")), version=random.choice((0, 1))))
    data = bytes(query.pack())
    if random.random() < 0.7:
        data = mutator.text(data)
    return {"query": data, "zone": random.choice((0, 1, 2, 2, 2))}


def run(query: bytes, zone: Zone | None) -> str:
    """Answer, and read the answer as a client does."""
    said = answer(query, zone)
    if said is None:
        require(len(query) < 12 or query[2] & 0x80, "only what is no query has no answer")
        return "no answer"
    require(len(said) <= LONGEST, "an answer is never truncated")
    require(said[:2] == query[:2] and said[2] & 0x80, "it is the answer to this query")
    try:
        reply = dnslib.DNSRecord.parse(said)
    except dnslib.DNSError:
        # dnslib wants labels to be UTF-8; the question is repeated as it came.
        try:
            dnslib.DNSRecord.parse(query)
        except dnslib.DNSError:
            return "for other clients"
        raise
    rcode = reply.header.rcode + sum(opt.ttl >> 24 << 4 for opt in reply.ar)
    require(rcode != 0 or reply.rr or reply.auth, "no data is said with an SOA")
    require(not reply.rr or zone is not None, "without names there are no addresses")
    return f"{dnslib.RCODE.get(reply.header.rcode)}{' with data' if reply.rr else ''}"
