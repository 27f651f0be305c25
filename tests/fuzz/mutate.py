"""From what is right to what is nearly right: changes to trees, to text, to bytes."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

NUMBERS: Sequence[Any] = (
    0, 1, -1, 2, 3, 4, 14, 15, 16, 30, 31, 32, 33, 63, 64, 65, 68, 99, 127, 128, 255, 256, 511,
    575, 576, 1500, 1501, 4096, 9999, 10000, 10001, 60000, 60001, 65535, 65536, 1 << 24,
    (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32, (1 << 53) + 1, 1 << 62, (1 << 63) - 1, 1 << 63,
    (1 << 64) - 1, 1 << 64, -(1 << 31), -(1 << 63), -(1 << 63) - 1, 10**30, 0.0, -0.0, 0.5, 1e-320,
    1.5, 1e6, 1e300, True, False,
)  # fmt: skip
WORDS: Sequence[str] = (
    "", " ", "\n", "\t", "\0", "a", "A", "é", "ß", "İ", "\x7f", "\x85", "\u2028", "\u200b",
    "\ufeff",
    "\uffff", "\U0001f980", "\ud800", "\udfff\ud800", "٣", "²", "Ⅷ", ".", "..", "/", "//", "../..",
    "*", "**", "$", "?", "#", "@", "%", "%s%n", "{}", "{0}", "'", '"', "`", "\\", "\\u0000", ";",
    ":",
    "=", ",", "-", "--", "_", "~", "null", "true", "no", "NaN", "Infinity", "nan", "inf", "-inf",
    "1e400", "0x10", "0o17", "1_0", "010", "+1", "-0", " 1", "1 ", "9" * 5000, "0" * 5000 + "1",
    "a" * 15, "a" * 16, "a" * 64, "a" * 65, "é" * 8, "a" * 5000, "/" * 5000, "/" + "a" * 106,
    "/" + "a" * 107, "/x", "/x\0y", "/é", "/dev/null", "/proc/self/mem", "x/y",
    "0.0.0.0", "255.255.255.255", "127.0.0.1", "10.64.16.5", "10.64.16.5/12", "10.64.16.5/33",
    "10.64.16.5/", "10.64.16.5/٣", "10.64.16.256", "10.64.16", "010.064.016.005", "10.64.16.5 ",
    "10.64.0.0/12", "10.64.16.0/20", "10.80.0.0/16", "0.0.0.0/0", "10.64.16.5/31", "10.64.16.5/32",
    "10.64.0.0/255.240.0.0", "10.64.0.0/0.15.255.255", "::", "::1", "::/0", "fd00::/8", "fd00::/96",
    "fd00::/97", "fe80::1%eth0", "::ffff:10.64.16.5", "fd00:1234::/64", "2001:db8::5/64",
    "02:4e:0a:40:10:05", "02:4E:0A:40:10:05", "02-4e-0a-40-10-05", "024e0a401005",
    "02:4e:0a:40:10", "02:4e:0a:40:10:05:06", "ff:ff:ff:ff:ff:ff", "00:00:00:00:00:00",
    "0.3.1", "0.4.0", "1.0.0", "1.1.0", "1.1", "0.1.0", "1.1.0-rc", "99999999999.0.0", "²", "1..0",
    "tcp/80", "tcp/0", "tcp/65536", "tcp/080", "udp/53", "icmp", "sctp/1", "tcp", "udp", "auto",
    "tls/192.0.2.1:7447", "tls/0.0.0.0:7447", "tls/[::1]:7447", "tls/a:0", "tls/a:65536", "tls/:1",
    "tls/a:٣", "tls/a:" + "9" * 5000, "tcp/a:1", "n1", "n2", "web", "api", "db", "mesh", "eth0",
)  # fmt: skip
BYTES: Sequence[bytes] = (
    b"", b"\0", b"\xff", b"\xff\xff\xff\xff", b"\x80", b"\xc0", b"\xc1", b"\xd4",
    b"\xdf\xff\xff\xff\xff",
    b"\xdd\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\xed\xa0\x80", b"\xc3", b"\xf4\x90\x80\x80",
    b"\xef\xbb\xbf", b"\r\n", b"\r\n\r\n", b"\n", b"\t", b" ", b"\x91" * 3000,
    b"\x81\xa1a" * 3000, b"[" * 3000, b'{"a":' * 3000,
    b"]", b"}",
    b"[", b"{", b'"', b",", b":", b"0", b"-", b".", b"e", b"E9", b"9" * 5000, b"\\ud800",
    b"\\u0000",
    b"&a ", b"*a", b"!!", b"!!binary ", b"!!set ", b"!!timestamp ", b"!!int ", b"!!float ",
    b"!!bool ",
    b"!!omap ", b"!!python/none ", b"<<: ", b"? ", b"- ", b"--- ", b"...", b"%YAML 9.9\n", b"|",
    b">", b"@",
    b"`", b"#", b"2026-13-45", b"2026-01-01", b"1:60:60", b"0b", b"0x_", b".inf", b".nan",
    b"null", b"true",
)  # fmt: skip

_TOKEN = re.compile(rb"[A-Za-z0-9_]+|[^A-Za-z0-9_]")


class Mutator:
    """Random changes; `words` are the strings that mean something to the target."""

    def __init__(self, random: Random, words: Sequence[str] = (), binary: bool = False) -> None:
        """`binary` lets trees contain bytes, as msgpack does."""
        self.random = random
        self._words = words
        self._binary = binary

    # -- trees ---------------------------------------------------------------------------

    def tree(self, value: Any) -> Any:
        """Return a copy of `value` with none to four changes anywhere in it."""
        for _ in range(self.random.choice((0, 1, 1, 1, 1, 2, 2, 3, 4))):
            value = self._changed(value)
        return value

    def _changed(self, value: Any) -> Any:
        deeper = self.random.random() < 0.75
        if deeper and isinstance(value, dict) and value:
            key = self.random.choice(list(value))
            return {**value, key: self._changed(value[key])}
        if deeper and isinstance(value, list) and value:
            index = self.random.randrange(len(value))
            return [*value[:index], self._changed(value[index]), *value[index + 1 :]]
        change: Callable[[Any], Any]
        change = self.random.choice((self._other, self._nearly, self._nearly, self._nearly))
        return change(value)

    def _nearly(self, value: Any) -> Any:
        """Return `value` with one change of its own kind."""
        match value:
            case dict():
                return self._mapping(dict(value))
            case list():
                return self._sequence(list(value))
            case str():
                return self.word(value)
            case bytes():
                return self.text(value)
            case int() | float():
                return self.random.choice((value + 1, value - 1, -value, self._number()))
        return self._other(value)

    def _other(self, value: Any) -> Any:
        """Return something else in place of `value`."""
        match self.random.randrange(8):
            case 0:
                return None
            case 1:
                return self._number()
            case 2:
                return [value]
            case 3:
                return {self._key(): value}
            case 4:
                return self.random.choice(([], {}))
            case 5 if self._binary:
                return self.random.choice(BYTES)
        return self._word()

    def _mapping(self, value: dict[Any, Any]) -> dict[Any, Any]:
        if value and self.random.random() < 0.5:
            removed = value.pop(self.random.choice(list(value)))
            if self.random.random() < 0.5:
                value[self._key()] = removed
        else:
            value[self._key()] = self._other(self.random.choice([None, *value.values()]))
        return value

    def _sequence(self, value: list[Any]) -> list[Any]:
        match self.random.randrange(4) if value else 3:
            case 0:
                del value[self.random.randrange(len(value))]
            case 1:
                value.append(self.random.choice(value))
            case 2:
                self.random.shuffle(value)
            case 3:
                value.append(self._other(self.random.choice([None, *value])))
        return value

    def _key(self) -> str:
        return self._word()

    def _word(self) -> str:
        pool = self._words if self._words and self.random.random() < 0.5 else WORDS
        return self.random.choice(pool)

    def _number(self) -> Any:
        return self.random.choice(NUMBERS)

    # -- text and bytes --------------------------------------------------------------------

    def word(self, value: str) -> str:
        """Return a string with one change."""
        where = self.random.randrange(len(value) + 1)
        match self.random.randrange(6):
            case 0:
                return value[:where] + self._word() + value[where:]
            case 1:
                return value[:where] + value[where + 1 :]
            case 2:
                return value[:where]
            case 3:
                return re.sub(r"\d+", lambda _: str(self._number()), value, count=1)
            case 4:
                return value.swapcase()
        return self._word()

    def text(self, value: bytes) -> bytes:
        """Return bytes with one to three changes to bits, tokens or stretches."""
        for _ in range(self.random.choice((1, 1, 2, 3))):
            value = self._text(value)
        return value

    def _text(self, value: bytes) -> bytes:
        choice = self.random.choice
        start = self.random.randrange(len(value) + 1)
        end = min(len(value), start + choice((1, 1, 2, 4, 16, 64, 1024)))
        match self.random.randrange(8):
            case 0 if start < end:
                flipped = value[start] ^ (1 << self.random.randrange(8))
                return value[:start] + bytes((flipped,)) + value[start + 1 :]
            case 1:
                return value[:start] + choice(BYTES) + value[start:]
            case 2:
                return value[:start] + value[end:]
            case 3:
                return value[:end] + value[start:]
            case 4:
                return value[:start]
            case 5:
                return value[:start] + self._word().encode(errors="replace") + value[end:]
        tokens = _TOKEN.findall(value)
        if len(tokens) > 1:
            one, other = self.random.randrange(len(tokens)), self.random.randrange(len(tokens))
            tokens[one] = tokens[other] if self.random.random() < 0.5 else choice(BYTES)
        return b"".join(tokens)
