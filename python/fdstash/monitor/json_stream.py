"""The JSON that a client sends: incremental, bounded, and forgiving in QEMU's way.

A lexical error ends the command that it is in; what follows is skipped to the next control
character (or a byte 0xFE, 0xFF), as QEMU's parser does, so that a client can always get back into
step with a newline. Strings may be in single quotes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from fdstash.monitor.errors import QmpError
from fdstash.monitor.json_tokens import Token, parse

__all__ = ["MAX_NESTING", "JsonStream"]

#: Of arrays and objects in each other; QEMU's.
MAX_NESTING = 1024
#: Of one command.
MAX_TOKENS = 1 << 16

_SPACE = re.compile(rb"[ \t\r\n]+")
_PUNCTUATION = b"{}[],:"
#: What goes on with a token of each kind.
_MORE = {
    "number": re.compile(rb"[-+.0-9eE]*"),
    "keyword": re.compile(rb"[a-z]*"),
    "'": re.compile(rb"[^'\\\x00-\x1f\xfe\xff]*"),
    '"': re.compile(rb"[^\"\\\x00-\x1f\xfe\xff]*"),
}
_NUMBER = re.compile(rb"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?")
_RESET = re.compile(rb"[\x00-\x1f\xfe\xff]")
_DEPTH = {"{": 1, "[": 1, "}": -1, "]": -1}


class JsonStream:
    """Turns bytes, in whatever pieces they come, into values. One thread.

    Holds at most `max_bytes` of an unfinished command.
    """

    def __init__(self, max_bytes: int = 1 << 20) -> None:
        self._max_bytes = max_bytes
        self._kind: str | None = None  # of the token under way; "recovery": skipping
        self._escaped = False
        self._token = bytearray()
        self._reset()

    def _reset(self) -> None:
        self._tokens: list[Token] = []
        self._bytes = 0
        self._braces = self._brackets = 0

    def feed(self, data: bytes) -> Iterator[Any]:
        """The commands that end in `data`; in the place of a bad one a `QmpError`."""
        at = 0
        while at < len(data):
            at, found = self._step(data, at)
            yield from found

    def _step(self, data: bytes, at: int) -> tuple[int, list[Any]]:
        """One token, or what there is of it."""
        if self._kind == "recovery":
            reset = _RESET.search(data, at)
            if reset is None:
                return len(data), []
            self._kind = None
            return reset.end(), []
        if self._kind is None:
            space = _SPACE.match(data, at)
            if space is not None:
                return space.end(), []
            return self._begin(data, at)
        return self._go_on(data, at)

    def _begin(self, data: bytes, at: int) -> tuple[int, list[Any]]:
        byte = data[at]
        char = chr(byte)
        if byte in _PUNCTUATION:
            return at + 1, self._emit(char, char)
        self._token += data[at : at + 1]
        if char in "\"'":
            self._kind = char
        elif char.isdecimal() or char == "-":
            self._kind = "number"
        elif "a" <= char <= "z":
            self._kind = "keyword"
        else:
            return at + 1, self._stray(byte)
        return at + 1, []

    def _go_on(self, data: bytes, at: int) -> tuple[int, list[Any]]:
        kind = self._kind
        assert kind is not None  # noqa: S101 - `_step` has looked
        if self._escaped:
            return at + 1, self._after_backslash(data[at])
        match = _MORE[kind].match(data, at)
        end = match.end() if match else at
        self._token += data[at:end]
        if self._bytes + len(self._token) > self._max_bytes:
            return end, self._refuse("JSON token size limit exceeded", recover=True)
        if end == len(data):
            return end, []
        if kind in "\"'":
            return end + 1, self._in_string(data[end], kind)
        text = bytes(self._token)
        if kind == "number" and not _NUMBER.fullmatch(text):
            return end, self._stray(0x20)
        self._kind = None
        self._token.clear()
        return end, self._emit(kind, text.decode("ascii"))

    def _after_backslash(self, byte: int) -> list[Any]:
        self._token.append(byte)
        self._escaped = False
        return self._stray(byte) if byte < 0x20 or byte >= 0xFE else []

    def _in_string(self, byte: int, quote: str) -> list[Any]:
        self._token.append(byte)
        if byte == 0x5C:
            self._escaped = True
            return []
        if byte != ord(quote):
            return self._stray(byte)
        text = bytes(self._token[1:-1])
        self._kind = None
        self._token.clear()
        return self._emit("string", text)

    def _stray(self, byte: int) -> list[Any]:
        shown = bytes(self._token[:64]).decode("utf-8", "replace")
        recover = 0x20 <= byte < 0xFE
        return self._refuse(f"JSON parse error, stray '{shown}'", recover=recover)

    def _refuse(self, why: str, *, recover: bool) -> list[Any]:
        self._kind = "recovery" if recover else None
        self._escaped = False
        self._token.clear()
        self._reset()
        return [QmpError(why)]

    def _emit(self, kind: str, text: str | bytes) -> list[Any]:
        """Take a token; the value or the error where it ends a command."""
        if kind in "{}":
            self._braces += _DEPTH[kind]
        elif kind in "[]":
            self._brackets += _DEPTH[kind]
        self._tokens.append(Token(kind, text))
        self._bytes += len(text)
        if self._bytes > self._max_bytes:
            return self._refuse("JSON token size limit exceeded", recover=False)
        if len(self._tokens) > MAX_TOKENS:
            return self._refuse("JSON token count limit exceeded", recover=False)
        if self._braces + self._brackets > MAX_NESTING:
            return self._refuse("JSON nesting depth limit exceeded", recover=False)
        if self._braces >= 0 and self._brackets >= 0 and (self._braces or self._brackets):
            return []
        tokens = self._tokens
        self._reset()
        try:
            return [parse(tokens)]
        except QmpError as error:
            return [error]
