"""Tokens to values, with QEMU's words for what is wrong."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from fdstash.monitor.errors import QmpError

__all__ = ["Token", "parse"]


class Token(NamedTuple):
    """`kind`: a punctuation mark, ``string`` (its text in bytes), ``number`` or ``keyword``."""

    kind: str
    text: str | bytes


_KEYWORDS = {"true": True, "false": False, "null": None}
_ESCAPE = re.compile(r"\\(u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"
                     r"|u[0-9a-fA-F]{4}|.)", re.DOTALL)  # fmt: skip
_ESCAPED = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"} | {c: c for c in "\"'\\/"}
#: An integer of this many digits fits 64 bits or is a number with a fraction.
_DIGITS = 20


def _wrong(what: str) -> QmpError:
    return QmpError(f"JSON parse error, {what}")


class _Open:
    """An array or object that is not complete yet."""

    def __init__(self, kind: str) -> None:
        self.value: Any = {} if kind == "{" else []
        self.key: str | None = None

    def put(self, value: Any) -> None:
        if isinstance(self.value, list):
            self.value.append(value)
        else:
            self.value[self.key] = value


def parse(tokens: Sequence[Token]) -> Any:
    """The one value that these are. Raises `QmpError`."""
    at = 0
    stack: list[_Open] = []
    while True:
        at, value, complete = _value(tokens, at, stack)
        while complete and stack:
            stack[-1].put(value)
            kind = tokens[at].kind if at < len(tokens) else None
            at += 1
            mine = "]" if isinstance(stack[-1].value, list) else "}"
            if kind == mine:
                value = stack.pop().value
            elif kind == ",":
                at = _key(tokens, at, stack[-1])
                complete = False
            else:
                raise _wrong(f"expected separator in {'list' if mine == ']' else 'dict'}")
        if complete:
            if at != len(tokens):
                raise _wrong("expecting value")
            return value


def _value(tokens: Sequence[Token], at: int, stack: list[_Open]) -> tuple[int, Any, bool]:
    """The token at `at`: a value, or the beginning of one, which goes on the stack."""
    if at == len(tokens):
        raise _wrong("premature EOI")
    kind, text = tokens[at]
    if kind in "{[":
        opened = _Open(kind)
        if at + 1 < len(tokens) and tokens[at + 1].kind == ("}" if kind == "{" else "]"):
            return at + 2, opened.value, True
        stack.append(opened)
        return _key(tokens, at + 1, opened), None, False
    if kind == "string":
        return at + 1, _string(text), True
    if kind == "number":
        return at + 1, _number(str(text)), True
    if kind == "keyword":
        if text not in _KEYWORDS:
            raise _wrong(f"invalid keyword '{str(text)[:64]}'")
        return at + 1, _KEYWORDS[str(text)], True
    raise _wrong("expecting value")


def _key(tokens: Sequence[Token], at: int, opened: _Open) -> int:
    """Of an object, the key and the colon."""
    if isinstance(opened.value, list):
        return at
    if at == len(tokens):
        raise _wrong("premature EOI")
    if tokens[at].kind != "string":
        if tokens[at].kind in ("}", "]", ",", ":"):
            raise _wrong("expecting value")
        raise _wrong("key is not a string in object")
    key = _string(tokens[at].text)
    if at + 1 == len(tokens) or tokens[at + 1].kind != ":":
        raise _wrong("missing : in object pair")
    if key in opened.value:
        raise _wrong("duplicate key")
    opened.key = key
    return at + 2


def _string(raw: str | bytes) -> str:
    try:
        text = raw.decode() if isinstance(raw, bytes) else raw
    except UnicodeDecodeError:
        raise _wrong("invalid UTF-8 sequence in string") from None
    return _ESCAPE.sub(_unescape, text) if "\\" in text else text


def _unescape(match: re.Match[str]) -> str:
    body = match[1]
    if len(body) == 11:
        high, low = int(body[1:5], 16), int(body[7:], 16)
        return chr(0x10000 + ((high & 0x3FF) << 10 | low & 0x3FF))
    if len(body) == 5:
        code = int(body[1:], 16)
        if code == 0 or 0xD800 <= code < 0xE000:
            raise _wrong(f"\\{body} is not a valid Unicode character")
        return chr(code)
    if body not in _ESCAPED:
        raise _wrong(f"invalid escape sequence '\\{body}'")
    return _ESCAPED[body]


def _number(text: str) -> int | float:
    if len(text) <= _DIGITS and text.lstrip("-").isdecimal():
        whole = int(text)
        if -(1 << 63) <= whole < 1 << 64:
            return whole
    number = float(text)
    if not math.isfinite(number):
        raise _wrong("a number is out of range")
    return number
