"""The zenoh 1.10 session configuration of one node, with the reason for each choice. Pure.

1. Peers over mutual TLS only, to and from explicit endpoints: no multicast, no gossip. Every node
   is configured with all endpoints anyway, because peers relay nothing, and links that were found
   by gossip are not dialled again after a partition. And without gossip no peer can make us dial
   an address of its choice.
2. Access control denies by default. With a list of nodes, each common name may put only
   under ``node/<cn>/**`` and ``alive/<cn>``, hold only the token ``alive/<cn>`` and answer
   only at ``ask/<cn>``; all may put ``policy``, which its authority signs. A common name
   that is not listed can neither send nor receive anything.
3. The same rules hold for what we send, so that a peer that is not listed does not even receive it.
4. ``delete`` is allowed to nobody, because a withdrawal is a record.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable

import msgspec

from daemon.fabric.identity_files import Contents
from daemon.fabric.interface import Settings, parse_endpoint
from daemon.model.keys import Keys

KEEP_ALIVES = 4
"""Keep-alive messages per lease: zenoh's own advice (ITU-T G.8013: 3.5 lost is a failure)."""

RETRY_MS = (100, 500)
"""First and longest pause before a failed dial is repeated."""

MAX_LINKS = 2
"""Links that one peer may have. It must not be 1: only with more than 1 does zenoh check that a
further link belongs to the same session. With 1, any node of the cluster can add its link to
another node's session by giving its zenoh id, and then has that node's rights."""

MAX_MESSAGE = 65_536
"""Bytes of a reassembled message; with the default of 1 GiB a peer could exhaust our memory."""

ALL_MESSAGES = (
    "put",
    "declare_subscriber",
    "query",
    "reply",
    "declare_queryable",
    "liveliness_token",
    "liveliness_query",
    "declare_liveliness_subscriber",
)
"""All message kinds that access control knows, except ``delete``."""


class Rule(msgspec.Struct, frozen=True):
    """One access-control rule (DEFAULT_CONFIG.json5, ``access_control.rules``)."""

    id: str
    messages: tuple[str, ...]
    flows: tuple[str, ...]
    key_exprs: tuple[str, ...]
    permission: str = "allow"


class Subject(msgspec.Struct, frozen=True, omit_defaults=True):
    """The peers that rules apply to (``access_control.subjects``)."""

    id: str
    cert_common_names: tuple[str, ...] | msgspec.UnsetType = msgspec.UNSET
    link_protocols: tuple[str, ...] | msgspec.UnsetType = msgspec.UNSET


class Grant(msgspec.Struct, frozen=True):
    """Which rules apply to which subjects (``access_control.policies``)."""

    rules: tuple[str, ...]
    subjects: tuple[str, ...]


class AccessControl(msgspec.Struct, frozen=True):
    """The whole ``access_control`` section."""

    rules: tuple[Rule, ...]
    subjects: tuple[Subject, ...]
    policies: tuple[Grant, ...]
    enabled: bool = True
    default_permission: str = "deny"


def access_control(settings: Settings) -> AccessControl:
    """Return who may do what in this node's session."""
    keys = Keys(settings.cluster)
    if settings.nodes is None:
        anyone = Rule("cluster", ALL_MESSAGES, ("ingress", "egress"), (f"{keys.root}/**",))
        return AccessControl(
            rules=(anyone,),
            subjects=(Subject("anyone", link_protocols=("tls",)),),
            policies=(Grant(("cluster",), ("anyone",)),),
        )
    # No other node may send messages in our own name, so there are no rules for it.
    others = sorted(settings.nodes - {settings.node})
    listens = tuple(_listens(keys, "in", "ingress", settings.node))
    sends = (*_listens(keys, "out", "egress", "*"), *_speaks(keys, "out", "egress", settings.node))
    speaks = {node: tuple(_speaks(keys, f"in-{node}", "ingress", node)) for node in others}
    return AccessControl(
        rules=(*listens, *sends, *(rule for rules in speaks.values() for rule in rules)),
        subjects=tuple(Subject(node, cert_common_names=(node,)) for node in others),
        policies=tuple(
            Grant(tuple(rule.id for rule in (*listens, *sends, *speaks[node])), (node,))
            for node in others
        ),
    )


def _speaks(keys: Keys, name: str, flow: str, node: str) -> Iterable[Rule]:
    """Yield the rules for what `node` may publish and answer, in direction `flow`."""
    told = (f"{keys.record(node)}/**", keys.alive(node), keys.policy)
    yield Rule(f"{name}-put", ("put",), (flow,), told)
    yield Rule(f"{name}-answer", ("declare_queryable", "reply"), (flow,), (keys.ask(node),))
    yield Rule(f"{name}-token", ("liveliness_token",), (flow,), (keys.alive(node),))


def _listens(keys: Keys, name: str, flow: str, asked: str) -> Iterable[Rule]:
    """Yield the rules for what any listed node may subscribe to in direction `flow`, and for
    questions to the node `asked` (``*`` for any)."""
    heard = (f"{keys.root}/node/**", keys.alive("*"), keys.policy)
    yield Rule(f"{name}-subscribe", ("declare_subscriber",), (flow,), heard)
    yield Rule(f"{name}-ask", ("query",), (flow,), (keys.ask(asked),))
    watch = ("liveliness_query", "declare_liveliness_subscriber")
    yield Rule(f"{name}-watch", watch, (flow,), (keys.alive("*"),))


def _locator(endpoint: str) -> str:
    """Return `endpoint` as zenoh 1.10 takes it: an IPv6 address without its brackets.

    zenoh takes what stands before the last colon for the name in the peer's certificate, and
    with brackets that is neither a name nor an address (zenoh-link-tls, get_tls_server_name).
    Both it and the resolver split at the last colon, so that nothing is ambiguous.
    """
    host, port = parse_endpoint(endpoint)
    return f"tls/{host}:{port}"


def session_config(settings: Settings, identity: Contents) -> str:
    """Return the session's configuration as JSON for ``zenoh.Config.from_json5``.

    It holds the private key: do not log it.
    """
    ca, certificate, key = (
        base64.b64encode(pem).decode() for pem in (identity.ca, identity.certificate, identity.key)
    )
    listen = [_locator(endpoint) for endpoint in settings.listen]
    dial = [place for place in map(_locator, settings.connect) if place not in listen]
    return json.dumps(
        {
            "mode": "peer",
            "listen": {"endpoints": listen, "exit_on_failure": True},
            "connect": {
                "endpoints": dial,
                "timeout_ms": -1,
                "exit_on_failure": False,
                "retry": {
                    "period_init_ms": RETRY_MS[0],
                    "period_max_ms": RETRY_MS[1],
                    "period_increase_factor": 2,
                },
            },
            # Do not wait for peers: records missed at the start are asked for anyway.
            "open": {"return_conditions": {"connect_scouted": False, "declares": False}},
            "scouting": {"multicast": {"enabled": False}, "gossip": {"enabled": False}},
            "access_control": msgspec.to_builtins(access_control(settings)),
            "transport": {
                "unicast": {"max_links": MAX_LINKS},
                "shared_memory": {"enabled": False},
                "link": {
                    "protocols": ["tls"],
                    "tx": {"lease": settings.lease_ms, "keep_alive": KEEP_ALIVES},
                    "rx": {"max_message_size": MAX_MESSAGE},
                    "tls": {
                        "root_ca_certificate_base64": ca,
                        "enable_mtls": True,
                        "verify_name_on_connect": settings.verify_names,
                        "close_link_on_expiration": True,
                        "listen_certificate_base64": certificate,
                        "listen_private_key_base64": key,
                        "connect_certificate_base64": certificate,
                        "connect_private_key_base64": key,
                    },
                },
            },
        }
    )
