"""``noctulectl``: the operator's command line.

1. Every verb has ``--json``; without it, people get a table or a sentence.
2. A failure is one sentence on stderr that names the field and the fix, and exit status 1;
   a wrong command line is 2. Exit status 3 means that ``verify`` found differences, or that the
   policy of ``policy apply`` is not live on every node, because another version won or for any
   other reason.
3. Private keys are read here and never sent. The daemon gets signed records only.
"""

from __future__ import annotations

import argparse
import base64
import sys
import time
from pathlib import Path

import msgspec

from daemon import config
from daemon.api.messages import PolicyApplied, PolicyState, Status, Verification
from daemon.ctl import client, pki, show
from daemon.ctl.signing import Signing
from daemon.model import policy
from daemon.paths import Paths
from netconf.errors import IOFailure, NoctuleError

DEFAULT_SOCKET = Paths().socket
NOT_AS_HOPED = 3
"""The exit status of a command that was carried out, but with a result as in rule 2."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="noctulectl", description="Operate one Noctule node.")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--config", type=Path, help="node.yaml of the daemon to talk to")
    where.add_argument("--socket", type=Path, help=f"its socket (default: {DEFAULT_SOCKET})")
    verbs = parser.add_subparsers(dest="verb", required=True)

    def verb(
        name: str,
        text: str,
        parent: argparse._SubParsersAction[argparse.ArgumentParser] = verbs,
    ) -> argparse.ArgumentParser:
        sub = parent.add_parser(name, help=text, description=text)
        sub.add_argument("--json", action="store_true", help="print JSON")
        return sub

    verb("status", "Show nodes, services, replicas and counters.")
    verb("verify", "Read the kernel back and print where it differs from the plan.")

    policies = verbs.add_parser("policy", help="Sign and publish policy.")
    apply = verb(
        "apply",
        "Sign a policy file and publish it through this node.",
        policies.add_subparsers(dest="action", required=True),
    )
    apply.add_argument("file", type=Path, help="policy.yaml")
    apply.add_argument("--key", type=Path, required=True, help="the authority's private key (PEM)")
    apply.add_argument("--no-wait", action="store_true", help="publish, and ask no node about it")
    apply.add_argument(
        "--first", action="store_true", help="the cluster never had a policy, or all are lost"
    )
    apply.add_argument(
        "--vips", metavar="CIDR", default="", help="addresses.vips was changed to this everywhere"
    )

    keys = verbs.add_parser("pki", help="Make keys and certificates; needs no daemon.")
    actions = keys.add_subparsers(dest="action", required=True)
    init = verb("init", "Make a CA and a policy authority in a new folder.", actions)
    init.add_argument("dir", type=Path)
    init.add_argument("--cluster", default="noctule", help="its name, for people who read them")
    issue = verb("issue", "Issue a node's certificate and key.", actions)
    issue.add_argument("dir", type=Path, help="the folder pki init made")
    issue.add_argument("node", help="the node's name, as in its node.yaml")
    issue.add_argument("address", nargs="+", help="IP addresses or names peers dial it by")
    return parser


def main() -> int:
    """Run the command line; return the exit status."""
    arguments = _parser().parse_args()
    try:
        return _run(arguments)
    except NoctuleError as error:
        print(f"noctulectl: {error.message}", file=sys.stderr)
        if error.details:
            print(error.details, file=sys.stderr)
        return 1
    except BrokenPipeError:
        return 1


def _run(arguments: argparse.Namespace) -> int:
    if arguments.verb == "pki":
        return _pki(arguments)
    path = arguments.socket or Path(DEFAULT_SOCKET)
    if arguments.config:
        path = Path(config.read(arguments.config).paths.socket)
    if arguments.verb == "status":
        report = client.ask(path, "GET", "/v1/status", Status)
        _print(arguments, report, show.status(report, time.time()))
        return 0
    if arguments.verb == "verify":
        found = client.ask(path, "GET", "/v1/verify", Verification, within=client.VERIFY_WITHIN)
        _print(arguments, found, show.verification(found))
        return NOT_AS_HOPED if found.differences else 0
    return _apply(arguments, path)


def _apply(arguments: argparse.Namespace, path: Path) -> int:
    document = policy.parse(_read(arguments.file).decode("utf-8", "replace"))
    signing = Signing(arguments.key)
    state = client.ask(path, "GET", "/v1/policy", PolicyState)
    signed = signing.next(document, state, first=arguments.first, vips=arguments.vips)
    for notice in signed.notices:
        print(f"noctulectl: {notice}", file=sys.stderr)
    body = msgspec.json.encode({"envelope": base64.b64encode(signed.record).decode()})
    target = "/v1/policy?wait=0" if arguments.no_wait else "/v1/policy"
    applied = client.ask(path, "POST", target, PolicyApplied, body)
    if arguments.no_wait:
        _print(arguments, applied, f"policy {signed.version} is published; no node was asked")
        return 0
    _print(arguments, applied, show.applied(applied))
    return NOT_AS_HOPED if applied.silent else 0


def _pki(arguments: argparse.Namespace) -> int:
    if arguments.action == "init":
        files = pki.init(arguments.dir, arguments.cluster, time.time())
    else:
        files = pki.issue(arguments.dir, arguments.node, arguments.address, time.time())
    _print(arguments, [str(f) for f in files], "\n".join(f"wrote {f}" for f in files))
    return 0


def _print(arguments: argparse.Namespace, value: object, text: str) -> None:
    if arguments.json:
        text = msgspec.json.format(msgspec.json.encode(value), indent=2).decode()
    print(text)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise IOFailure(f"cannot read {path}: {error.strerror}") from error
