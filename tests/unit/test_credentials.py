"""A node's certificate through the years: waited for, warned of, and followed when renewed.

Time is a number that a test moves; waiting is a call that moves it.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from daemon.cluster import credentials as module
from daemon.cluster.credentials import CLOCK_LOOK, CLOCK_TOLD, LOOK, Credentials
from daemon.ctl import pki
from daemon.fabric.identity_files import Credential
from daemon.journal import Journal
from daemon.model.trust import DAY, WARN_BEFORE, Dates
from netconf.errors import InvalidConfig
from tests.unit.model_kit import NOW, folder

LIFE = pki.NODE_LIFE.total_seconds()
END = NOW + LIFE
FILES = ("ca.crt", "n1.crt", "n1.key")


class Ended(Exception):
    """The test has seen enough."""


class Log(Journal):
    """A journal that remembers its lines."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[tuple[str, str, dict[str, Any]]] = []

    def info(self, event: str, **fields: object) -> None:
        self.lines.append(("info", event, fields))

    def warning(self, event: str, **fields: object) -> None:
        self.lines.append(("warning", event, fields))

    def error(self, event: str, *, exc: BaseException | None = None, **fields: object) -> None:
        self.lines.append(("error", event, fields))

    def of(self, *words: str) -> list[tuple[str, str, dict[str, Any]]]:
        """Return the lines whose event has all `words`."""
        return [line for line in self.lines if all(word in line[1] for word in words)]


class Scene:
    """One node's files in a folder of its own, and the time."""

    def __init__(self, place: Path, now: float = NOW) -> None:
        self.place = place
        self.now = now
        self.log = Log()
        for name in FILES:
            shutil.copy(folder() / name, place / name)
        self.peers: dict[str, Dates] = {}
        self.renewed: list[Credential] = []
        ca, certificate, key = (str(place / name) for name in FILES)
        self.credentials = Credentials(
            (ca, certificate, key), "n1", self.log, peers=lambda: self.peers,
            clock=lambda: self.now, pause=self._pause,
        )  # fmt: skip
        self.steps: list[Callable[[], object]] = []

    async def _pause(self, seconds: float) -> None:
        self.now += seconds
        if self.steps:
            self.steps.pop(0)()

    def watch(self, *steps: Callable[[], object]) -> None:
        """Watch while one look after the other comes after one of `steps`, and then one more."""

        def end() -> None:
            raise Ended

        self.steps = [*steps, end]
        with pytest.raises(Ended):
            asyncio.run(self.credentials.watch(self.renewed.append))

    def put(self, made: list[Path]) -> None:
        """Put a pair that was issued elsewhere in place, the certificate first."""
        for source, name in zip(made, FILES[1:], strict=True):
            shutil.copy(source, self.place / name)


def issue(place: Path, node: str = "n1", now: float = NOW, ca: Path | None = None) -> list[Path]:
    """Issue a pair for `node` in a new folder, by the tests' CA or that in the folder `ca`."""
    place.mkdir()
    for name in ("ca.crt", "ca.key"):
        shutil.copy((ca or folder()) / name, place / name)
    return pki.issue(place, node, ["192.0.2.1"], now)


def nothing() -> None:
    """A look that finds what the last one found."""


# --- a clock before the certificate's date


def test_a_clock_in_the_past_is_waited_for_with_a_line_now_and_then(tmp_path: Path) -> None:
    scene = Scene(tmp_path, now=NOW - pki.BACKDATE.total_seconds() - 3 * CLOCK_TOLD)
    asyncio.run(scene.credentials.in_force())
    assert scene.now == NOW - pki.BACKDATE.total_seconds()
    assert 3 * CLOCK_TOLD / CLOCK_LOOK > 20  # looks, against three lines
    assert len(scene.log.of("waiting for the clock")) == len(scene.log.lines) == 3
    level, _, fields = scene.log.lines[0]
    assert (level, fields) == (
        "warning",
        {"since": "2027-01-15T07:00:00Z", "now": "2027-01-15T06:57:00Z"},
    )


def test_a_clock_that_is_right_is_not_waited_for_and_an_end_is_no_reason(tmp_path: Path) -> None:
    for now in (NOW, END + DAY):
        scene = Scene(tmp_path, now=now)
        asyncio.run(scene.credentials.in_force())
        assert (scene.now, scene.log.lines) == (now, [])


# --- warnings


def days(scene: Scene, first: float, last: float) -> list[float]:
    """Look every hour from day `first` after NOW to day `last`; return the days with a line."""
    told: list[float] = []
    for hour in range(int(first * 24), int(last * 24)):
        scene.now = NOW + hour * DAY / 24
        before = len(scene.log.lines)
        scene.credentials.warn()
        told += [hour / 24] * (len(scene.log.lines) - before)
    return told


def test_the_own_certificate_is_warned_of_once_a_day_for_thirty_days(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    last = LIFE / DAY
    told = days(scene, last - 40, last)
    assert len(told) == 30
    assert told[0] == pytest.approx(last - 30, abs=1 / 24)
    assert {line[0] for line in scene.log.lines} == {"warning"}
    scene.log.lines.clear()
    assert len(days(scene, last + 1, last + 3)) == 2
    assert {line[0] for line in scene.log.lines} == {"error"}
    assert scene.log.lines[0][2]["until"] == "2029-01-15T08:00:00Z"


def test_an_end_is_told_at_once_whenever_it_was_warned_of(tmp_path: Path) -> None:
    scene = Scene(tmp_path, now=END - 60)
    scene.peers = {"n2": Dates(0, END - 30), "n3": Dates(0, END + 30)}
    for _ in range(12):
        scene.credentials.warn()
        scene.now += 10
    said = [(level, "own" if "this" in event else "peers") for level, event, _ in scene.log.lines]
    assert said == [
        ("warning", "own"), ("warning", "peers"), ("warning", "peers"), ("error", "own"),
        ("warning", "peers"),
    ]  # fmt: skip


def test_peers_share_one_line(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    ends = {"n2": 10.0, "n3": 29.5, "n4": 31.0, "n5": -1.0}
    scene.peers = {node: Dates(0, NOW + end * DAY) for node, end in ends.items()}
    assert days(scene, 0, 1) == [0.0]
    ((level, event, fields),) = scene.log.lines
    assert (level, set(fields["until"])) == ("warning", {"n2", "n3", "n5"})
    assert "other nodes" in event


def test_a_clock_set_back_silences_nothing(tmp_path: Path) -> None:
    scene = Scene(tmp_path, now=END - DAY)
    scene.credentials.warn()
    scene.now = END - 20 * DAY
    scene.credentials.warn()
    assert len(scene.log.lines) == 2


def test_how_long_each_lasts_is_there_for_status_and_metrics(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    scene.peers = {"n1": Dates(0, 1.0), "n2": Dates(0, 2.0)}
    assert scene.credentials.ends() == {"n1": END, "n2": 2.0}


def test_the_ca_may_end_first(tmp_path: Path) -> None:
    """Who is warned of a leaf only is cut off by the CA above it."""
    authority = tmp_path / "ca"
    pki.init(authority, "lab", NOW - pki.LONG.total_seconds() + 5 * DAY)
    pair = pki.issue(authority, "n1", [], NOW)
    made = Credentials(
        (str(authority / "ca.crt"), str(pair[0]), str(pair[1])), "n1", Log(), clock=lambda: NOW
    )
    assert made.ends() == {"n1": NOW + 5 * DAY}


# --- renewal


def test_a_renewed_pair_is_followed_and_the_warning_ends(tmp_path: Path) -> None:
    scene = Scene(tmp_path, now=END - WARN_BEFORE / 2)
    pair = issue(tmp_path / "new", now=scene.now)
    former = scene.credentials.identity.pem
    scene.watch(nothing, lambda: scene.put(pair), nothing)
    (found,) = scene.renewed
    assert found.identity.pem == scene.credentials.identity.pem == pair[0].read_text() != former
    assert [line[1] for line in scene.log.lines] == [
        "this node's certificate ends soon; renew it",
        "certificate renewed",
    ]
    assert scene.credentials.ends()["n1"] == pytest.approx(END - WARN_BEFORE / 2 + LIFE, abs=LOOK)


def test_a_pair_that_is_replaced_file_by_file_is_no_trouble(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    pair = issue(tmp_path / "new")
    scene.watch(
        lambda: shutil.copy(pair[0], scene.place / "n1.crt"),
        lambda: shutil.copy(pair[1], scene.place / "n1.key"),
    )
    assert len(scene.renewed) == 1
    assert [line[1] for line in scene.log.lines] == ["certificate renewed"]


def broken(scene: Scene, other: Path) -> dict[str, Callable[[], object]]:
    """Ways to put files in place that cannot be used."""
    foreign = other / "foreign"
    pki.init(foreign, "lab", NOW)
    strange = issue(other / "strange", ca=foreign)
    mine, n2 = issue(other / "mine"), issue(other / "n2", "n2")
    return {
        "does not belong": lambda: shutil.copy(mine[1], scene.place / "n1.key"),
        'it is of "n2"': lambda: scene.put(n2),
        "not issued by this cluster's CA": lambda: scene.put(strange),
        "holds no certificate": lambda: (scene.place / "n1.crt").write_text("x"),
        "cannot read": lambda: (scene.place / "n1.crt").unlink(),
    }


@pytest.mark.parametrize(
    "says",
    ["does not belong", 'it is of "n2"', "not issued by this cluster's CA", "holds no certificate",
     "cannot read"],
)  # fmt: skip
def test_files_that_cannot_be_used_are_named_once_and_the_former_stay(
    tmp_path: Path, says: str
) -> None:
    (tmp_path / "node").mkdir()
    scene = Scene(tmp_path / "node")
    former = scene.credentials.identity
    scene.watch(broken(scene, tmp_path)[says], nothing, nothing, nothing)
    ((level, event, fields),) = scene.log.lines
    assert (level, event) == ("error", "new identity files cannot be used; the former stay in use")
    assert says in fields["error"]
    assert scene.renewed == []
    assert scene.credentials.identity is former
    good = issue(tmp_path / "good")
    scene.watch(lambda: scene.put(good))
    assert len(scene.renewed) == 1


def test_a_certificate_of_tomorrow_waits_for_tomorrow(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    start = NOW + DAY
    pair = issue(tmp_path / "new", now=start + pki.BACKDATE.total_seconds())
    looks = [lambda: scene.put(pair), *[nothing] * 5]
    scene.watch(*looks)
    assert scene.renewed == []
    assert [line[1] for line in scene.log.lines] == ["new certificate waits"]
    scene.now = start
    scene.watch(nothing)
    assert len(scene.renewed) == 1


def test_another_ca_file_is_followed_too(tmp_path: Path) -> None:
    (tmp_path / "node").mkdir()
    scene = Scene(tmp_path / "node")
    pki.init(tmp_path / "next", "lab", NOW)
    both = (folder() / "ca.crt").read_text() + (tmp_path / "next" / "ca.crt").read_text()
    former = scene.credentials.identity.pem
    scene.watch(lambda: (scene.place / "ca.crt").write_text(both))
    (found,) = scene.renewed
    assert (len(found.roots), found.identity.pem) == (2, former)


def test_a_daemon_does_not_start_on_files_that_do_not_fit(tmp_path: Path) -> None:
    pair = folder()
    with pytest.raises(InvalidConfig, match='it is of "n2", and this node is "n1"'):
        Credentials((str(pair / "ca.crt"), str(pair / "n2.crt"), str(pair / "n2.key")), "n1", Log())
    assert module.LOOK <= 60
