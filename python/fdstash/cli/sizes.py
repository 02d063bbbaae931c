"""Numbers of bytes, as people write and read them."""

from __future__ import annotations

import re

__all__ = ["format_size", "parse_size"]

_SUFFIXES = "bkMGTPE"
_SIZE = re.compile(r"(?P<number>\d+(\.\d*)?|\.\d+)(?P<suffix>[bBkKmMgGtTpPeE]?)")
_LARGEST = (1 << 63) - 1


def parse_size(text: str) -> int:
    """Bytes: a number, with a suffix ``b`` (bytes), ``k``, ``M``, ``G``, ``T``, ``P`` or ``E``.

    Suffixes are powers of 1024, in either case; ``1.5G`` is a size too, a fraction
    of a byte is dropped. Raises `ValueError`.
    """
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        raise ValueError(
            f"{text!r} is no size: a number of bytes, or one with a suffix k, M, G, T, P or E"
        )
    shift = 10 * _SUFFIXES.lower().index((found["suffix"] or "b").lower())
    whole, _, fraction = found["number"].partition(".")
    size = int(whole or "0") << shift
    if fraction:
        size += (int(fraction) << shift) // 10 ** len(fraction)
    if size > _LARGEST:
        raise ValueError(f"{text!r} is more than the {_LARGEST} bytes that a file can have")
    return size


def format_size(size: int) -> str:
    """As ``qemu-img`` has it: three digits and a binary unit."""
    value, unit = float(size), 0
    while value >= 1000 and unit < 6:
        value, unit = value / 1024, unit + 1
    return f"{value:.3g} {('', 'Ki', 'Mi', 'Gi', 'Ti', 'Pi', 'Ei')[unit]}B"
