"""The usual command, whole and plain, by the standard library: twenty times as quick.

Whatever is not, or may be wrong, is left to `json_stream`, which says the same of what both read.
"""

from __future__ import annotations

import json
import math
from typing import Any

__all__ = ["quick"]


class _LeftError(ValueError):
    """For the other parser to read or to refuse."""


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise _LeftError
    return made


def _integer(text: str) -> int:
    if len(text) > 19:
        raise _LeftError
    return int(text)


def _float(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise _LeftError
    return number


def _constant(_text: str) -> Any:
    raise _LeftError


_decode = json.JSONDecoder(
    object_pairs_hook=_pairs, parse_int=_integer, parse_float=_float, parse_constant=_constant
).raw_decode


def quick(data: bytes, at: int) -> tuple[dict[str, Any], int] | None:
    """The object that begins at `at`, and where it ends; None where this is not sure of it."""
    # Escapes by number may stand for what is no character; and letters may be cut at the end.
    if not data.isascii() or b"\\u" in data:
        return None
    try:
        value, end = _decode(data[at:].decode("ascii"))
    except (ValueError, RecursionError):
        return None
    return value, at + end
