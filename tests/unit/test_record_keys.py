"""The names of facts: built and read alike, and no wildcard is ever part of one."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daemon.model.keys import Key, Keys
from netconf.errors import DecodeFailure, InvalidConfig

KEYS = Keys("lab")
NAMES = st.from_regex(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,10}", fullmatch=True)


@settings(max_examples=60)
@given(NAMES, NAMES, NAMES)
def test_every_key_is_read_as_it_was_built(cluster: str, node: str, one: str) -> None:
    keys = Keys(cluster)
    assert keys.parse(keys.policy) == Key("policy")
    assert keys.parse(keys.info(node)) == Key("info", node)
    assert keys.parse(keys.manifest(node)) == Key("manifest", node)
    assert keys.parse(keys.replica(node, one)) == Key("replica", node, one)


def test_another_clusters_key_is_foreign() -> None:
    assert KEYS.parse("noctule/lab2/policy") is None
    assert KEYS.parse("other/lab/policy") is None


@pytest.mark.parametrize("wild", ["*", "**", "$*", "n?", "n#", "", "n 1", "..", "@", "n1\n", "é"])
def test_wildcards_and_odd_names_are_no_key(wild: str) -> None:
    for key in (KEYS.info(wild), KEYS.replica("n1", wild), f"noctule/{wild}/policy"):
        with pytest.raises(DecodeFailure, match="is not a key"):
            KEYS.parse(key)
    with pytest.raises(InvalidConfig, match="cluster: "):
        Keys(wild)


@pytest.mark.parametrize("rest", ["health", "links/x", "replica", "replica/a/b"])
def test_a_key_of_a_later_release(rest: str) -> None:
    assert KEYS.parse(f"noctule/lab/node/n1/{rest}") == Key("other", "n1")


@pytest.mark.parametrize("rest", ["", "/node/n1", "/node/n1/", "/alive/n1", "/policy/x"])
def test_what_is_no_record_is_no_key(rest: str) -> None:
    with pytest.raises(DecodeFailure):
        KEYS.parse(KEYS.root + rest)


def test_keys_of_records_and_nothing_else() -> None:
    assert KEYS.is_record(KEYS.record("n1", "replica", "8f.1_a-b"))
    assert KEYS.is_record(KEYS.policy)
    for key in (KEYS.record("n1"), KEYS.ask("n1"), KEYS.alive("n1"), "noctule/labb/policy", ""):
        assert not KEYS.is_record(key)


@given(st.text(st.characters(codec="ascii"), max_size=12))
def test_no_key_with_a_sign_of_zenohs_own_is_a_record(tail: str) -> None:
    if set(tail) & set("*$@?#") or "//" in tail or not tail or tail.startswith("/"):
        assert not KEYS.is_record(f"noctule/lab/node/n1/{tail}")


def test_the_node_of_a_token() -> None:
    assert KEYS.node_alive(KEYS.alive("n1")) == "n1"
    assert KEYS.node_alive(KEYS.alive("*")) is None
    assert KEYS.node_alive(KEYS.alive("n1/x")) is None
    assert KEYS.node_alive(KEYS.ask("n1")) is None


def test_the_owner_of_a_record_is_read_from_its_key() -> None:
    assert KEYS.owner(KEYS.replica("n1", "8f")) == "n1"
    for key in (KEYS.policy, KEYS.ask("n1"), KEYS.record("n*", "info"), "noctule/other/node/n1/x"):
        assert KEYS.owner(key) == ""
