"""The executable's hand-written shapes are those that the daemon declares.

The executable cannot import msgspec, so it has its own: every field, name and default of one
side is compared with the other's, whatever fields there will be.
"""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from cni_kit import ATTACHED

from cni import bandwidth, client, fallback
from daemon.api.messages import AttachAnswer
from netconf.attach.attachment import AttachRequest
from netconf.netlink.shaping import Bandwidth

LIMITS = {"ingress_rate": 1, "ingress_burst": 2, "egress_rate": 3, "egress_burst": 4}
FULL: dict[str, Any] = {
    "container": "c0ffee",
    "ifname": "eth0",
    "netns": "/run/netns/c0ffee",
    "network": "mesh",
    "services": [client.Candidate("web", "alias"), client.Candidate("api", "service")],
    "key_file": "/etc/noctule/mesh.key",
    "address": "10.64.16.5",
    "address6": "fd4e::a40:1005",
    "mac": "02:4e:0a:40:10:05",
    "runtime": "containerd",
    "bandwidth": LIMITS,
}
UNSENT = {"service", "requires"}
"""Fields of the daemon's request that this executable does not send: whoever attaches sets the
service, and `requires` is for restrictions that only a later release knows."""

DECLARED = {field.name: field for field in msgspec.structs.fields(AttachRequest)}


def plain(value: Any) -> Any:
    """Return a field's value of either side as JSON values."""
    if isinstance(value, list):
        return [plain(one) for one in value]
    if isinstance(value, client.Candidate):
        return {"name": value.name, "from": value.origin}
    return msgspec.to_builtins(value)


def test_the_fields_are_the_same() -> None:
    assert set(client.AttachRequest.__slots__) == DECLARED.keys() - UNSENT
    assert set(FULL) == set(client.AttachRequest.__slots__)
    assert (
        set(client.AttachRequest(**FULL).body())
        == {field.encode_name for field in DECLARED.values()} - UNSENT
    )


@pytest.mark.parametrize("name", sorted(FULL))
def test_each_field_arrives(name: str) -> None:
    request = client.AttachRequest(**FULL)
    arrived = msgspec.convert(request.body(), AttachRequest)
    assert plain(getattr(arrived, name)) == plain(getattr(request, name)) == plain(FULL[name])
    # Without a daemon the executable makes the same of it, and chooses the service itself.
    if name != "services":
        alone = fallback._request(request)
        assert getattr(alone, name) == getattr(arrived, name)


def test_without_a_daemon_the_likeliest_service_is_chosen() -> None:
    assert fallback._request(client.AttachRequest(**FULL)).service == "api"


@pytest.mark.parametrize("name", sorted(FULL))
def test_each_default_is_the_same(name: str) -> None:
    needed = {key: FULL[key] for key in ("container", "ifname", "netns", "network")}
    bare = client.AttachRequest(**needed, services=[], key_file="", address=None, mac=None)
    assert plain(getattr(bare, name)) == plain(getattr(AttachRequest(**needed), name))


def test_limits_have_the_same_names() -> None:
    declared = {field.name for field in msgspec.structs.fields(Bandwidth)}
    assert set(bandwidth.FIELDS.values()) == declared == set(LIMITS)


def test_the_answer_has_the_same_fields() -> None:
    declared = {field.encode_name for field in msgspec.structs.fields(AttachAnswer)}
    assert set(client.Attached.__slots__) == declared
    assert msgspec.to_builtins(msgspec.convert(ATTACHED, AttachAnswer)) == ATTACHED
