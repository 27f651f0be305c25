"""The old release's side of a conversation; runs on its modules alone (`released`, rule 2).

Written against release 0.1.0. Functions take and return plain values; bytes are what the
releases exchange: records, questions, files, requests, answers.
"""

from __future__ import annotations

import asyncio
import logging
import pickle
import sys
import traceback
from ipaddress import IPv4Network
from pathlib import Path

import msgspec

from daemon import api
from daemon import status as answers
from daemon.ctl import pki as certificates
from daemon.fabric.interface import FabricError
from daemon.journal import Journal
from daemon.model import directory, plan, records
from daemon.model.identity import Identity, Trust
from daemon.model.policy import compile, parse
from daemon.model.store import Store
from daemon.peers import Peers
from daemon.resolver.server import StateFile
from netconf import attachment as att
from netconf.state import State

# --- records


def _trust(pki):
    return Trust.load(Path(pki) / "ca.crt", Path(pki) / "authority.crt")


def _store(pki, envelopes, now):
    made = Store("lab", _trust(pki))
    return made, [str(made.offer(one, now).outcome) for one in envelopes]


def _told(made):
    policy = made.policy()
    return {
        "policy": None if policy is None else policy.version,
        "services": {} if policy is None else {s.name: s.id for s in policy.services.values()},
        "replicas": [(r.node, r.attachment, r.service, r.address) for r in made.replicas()],
        "refusals": {r.key: r.reason for r in made.refusals()},
        "infos": sorted(made.infos()),
        "withdrawn": made.withdrawn(),
        "behind": {node: made.behind(node) for node in made.infos()},
    }


def offer(pki, envelopes, now):
    """What the old release makes of records: an outcome for each, and what it then believes."""
    made, outcomes = _store(pki, envelopes, now)
    return outcomes, _told(made)


def load(pki, snapshot, now):
    """What it makes of a snapshot; and the snapshot that it writes then."""
    made = Store("lab", _trust(pki))
    verdicts = made.load(snapshot, now)
    return [str(v.outcome) for v in verdicts], _told(made), made.dump()


def dump(pki, envelopes, now):
    """The snapshot that it writes."""
    return _store(pki, envelopes, now)[0].dump()


def seal(pki, signer, key, version, kind, fields):
    """A record as it signs them."""
    keys = records.Keys("lab")
    body = getattr(records, kind)(**fields)
    one = Identity.load(Path(pki) / f"{signer}.crt", Path(pki) / f"{signer}.key")
    return records.seal(keys, key, version, body, one)


def seal_policy(pki, text, version, vips):
    """A policy as it compiles and signs them."""
    keys = records.Keys("lab")
    body = compile(parse(text), None, IPv4Network(vips), version)
    one = Identity.load(Path(pki) / "authority.crt", Path(pki) / "authority.key")
    return records.seal(keys, keys.policy, version, body, one)


def views(pki, envelopes, now, local, node):
    """What it opens to local attachments: (egress, ingress, peers, dialled VIPs) by id."""
    made, _ = _store(pki, envelopes, now)
    placed = [_Local(*one) for one in local]
    found = plan.plan(
        made.policy(), made.replicas(), placed, node=node, alive=set(made.infos()),
        quality=dict.fromkeys(made.infos(), 1.0), previous=plan.NOTHING,
    ).views  # fmt: skip
    return {
        number: (
            sorted(view.egress),
            sorted(view.ingress),
            sorted(view.peers),
            sorted({slot[0] for slot in view.slots}),
        )
        for number, view in found.items()
    }


class _Local(msgspec.Struct, frozen=True):
    id: str
    service: str
    network: str
    address: str


def issue(folder, cluster, nodes, now):
    """The certificates of a cluster, as its noctulectl makes them."""
    certificates.init(Path(folder), cluster, now)
    for node in nodes:
        certificates.issue(Path(folder), node, ["192.0.2.1"], now)


# --- questions


class _Fabric:
    async def ask(self, node, question, within):
        raise FabricError("not connected")


def answer(pki, envelopes, now, question):
    """What it answers to a question; None where it answers with an error only."""
    made, _ = _store(pki, envelopes, now)

    async def asked():
        loop = asyncio.get_running_loop()

        def programmed():
            future = loop.create_future()
            future.set_result(True)
            return future

        peers = Peers(
            "n1", made, _Fabric(), program=programmed, answer=lambda: made.answer("n1"),
            remembered=lambda version: None, changed=lambda policy: None,
            journal=Journal(),
        )  # fmt: skip
        try:
            return await peers.on_ask(question)
        except Exception:
            return None
        finally:
            await peers.close()

    return asyncio.run(asked())


def questions(node, envelope):
    """The questions that it asks."""
    return [
        records.encode_message(records.Sync(node)),
        records.encode_message(records.Confirm(envelope)),
    ]


def understood(replies):
    """What it hears in the answers to its questions."""
    told = [records.decode_answer(one) for one in replies]
    return [
        ("records", len(one.envelopes), one.yours)
        if isinstance(one, records.Records)
        else ("ack", one.outcome)
        for one in told
    ]


# --- files


def states(folder):
    """What it reads of the state files, each as the resolver does too."""
    state = State(folder)
    found = {}
    for one in state.all():
        path = Path(folder) / "attachments" / f"{one.id}@{one.address}.json"
        seen = msgspec.json.decode(path.read_bytes(), type=StateFile)
        found[one.id] = (msgspec.to_builtins(one), msgspec.to_builtins(seen))
    return found


def allocate(folder, request, node, netns_id, salt, phase):
    """A state file, and the node's, as it writes them; returns the attachment."""
    state = State(folder)
    net = att.NodeNet(**node)
    state.write_node(net)
    made = state.allocate(
        msgspec.convert(request, att.Request), net, netns_id=tuple(netns_id), salt=salt
    )
    made = msgspec.structs.replace(made, phase=phase)
    state.save(made)
    return msgspec.to_builtins(made)


def node(folder):
    """What its executable reads of the node's file."""
    return msgspec.to_builtins(State(folder).read_node())


def locked(folder, kind, attachment=""):
    """Whether it can have a lock of the state folder at once."""
    state = State(folder)
    held = {"shared": state.shared, "exclusive": state.exclusive}
    try:
        with state.holding(attachment, 0) if attachment else held[kind](0):
            return True
    except Exception:
        return False


def names(text):
    """What its resolver reads of the file ``names``, as each service sees it."""
    read = msgspec.json.decode(text, type=directory.Directory)
    return {service: read.of(service) for service in read.known}


def policy_names(pki, envelopes, now, ula):
    """The file ``names`` as its daemon writes it."""
    made, _ = _store(pki, envelopes, now)
    return msgspec.json.encode(directory.directory(made.policy(), ula))


# --- the socket


def request(path, body):
    """The code with which its daemon refuses a request; 0 if it takes it."""
    kind = {
        "/v1/attach": api.AttachRequest, "/v1/detach": api.AttachRequest,
        "/v1/check": api.AttachRequest, "/v1/gc": api.GCRequest, "/v1/ready": api.ReadyRequest,
    }[path]  # fmt: skip
    try:
        api.decode_body(body, kind)
    except api.NoctuleError as error:
        return error.code, error.message
    return 0, ""


def readable(kind, body):
    """Whether its noctulectl reads an answer."""
    msgspec.json.decode(body, type=getattr(answers, kind))
    return True


def fields(kind):
    """The fields of an answer, and whether its noctulectl needs each."""
    return {one.name: one.required for one in msgspec.structs.fields(getattr(answers, kind))}


if __name__ == "__main__":
    logging.disable()
    channel_in, channel_out = sys.stdin.buffer, sys.stdout.buffer
    sys.stdout = sys.stderr
    while True:
        try:
            function, arguments = pickle.load(channel_in)
        except EOFError:
            break
        try:
            answered = (True, globals()[function](*arguments))
        except Exception:
            answered = (False, traceback.format_exc())
        pickle.dump(answered, channel_out)
        channel_out.flush()
