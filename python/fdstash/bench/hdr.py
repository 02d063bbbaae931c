"""Histograms in HdrHistogram's V2 format, and its log of them.

The format: https://github.com/HdrHistogram/HdrHistogram, `AbstractHistogram.encodeIntoByteBuffer`
and `HistogramLogWriter`. Counts are ZigZag LEB128 of at most nine bytes, and a run of zeros is one
negative count; numbers of the headers are big-endian.
"""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Mapping, Sequence
from itertools import groupby

from fdstash.bench.latency import HIGHEST, SIGNIFICANT_DIGITS, Latency

__all__ = ["encode", "log_lines"]

# The low byte but one says how wide a word is: 1, for numbers of any length.
_COOKIE = 0x1C849303 | 0x10
_COMPRESSED_COOKIE = 0x1C849304 | 0x10
#: Cookie, length, index offset, digits, lowest value, highest, ratio of integers to doubles.
_HEADER = struct.Struct(">iiiiqqd")
_COMPRESSED_HEADER = struct.Struct(">ii")
_LONGEST = 9


def encode(latency: Latency) -> bytes:
    """Compressed, and in base64: what logs hold and `decode` of HdrHistogram takes."""
    payload = _payload(latency.counters)
    header = _HEADER.pack(_COOKIE, len(payload), 0, SIGNIFICANT_DIGITS, 1, HIGHEST, 1.0)
    packed = zlib.compress(header + payload)
    return base64.b64encode(_COMPRESSED_HEADER.pack(_COMPRESSED_COOKIE, len(packed)) + packed)


def log_lines(
    histograms: Mapping[str, Latency], *, started: float, seconds: float
) -> Sequence[str]:
    """A histogram log: one interval, a line for each name. `started`: seconds since 1970."""
    lines = [
        "#[Histogram log format version 1.3]",
        f"#[StartTime: {started:.3f} (seconds since epoch)]",
        '"StartTimestamp","Interval_Length","Interval_Max","Interval_Compressed_Histogram"',
    ]
    for name, latency in histograms.items():
        # Logs give the largest value in milliseconds.
        text = encode(latency).decode()
        lines.append(f"Tag={name},0.000,{seconds:.3f},{latency.largest / 1e6:.3f},{text}")
    return lines


def _payload(counters: Sequence[int]) -> bytes:
    last = max((number for number, count in enumerate(counters) if count), default=-1)
    out = bytearray()
    for is_zero, run in groupby(counters[: last + 1], key=lambda count: count == 0):
        if is_zero:
            out += _number(-sum(1 for _ in run))
        else:
            for count in run:
                out += _number(count)
    return bytes(out)


def _number(value: int) -> bytes:
    left = value << 1 if value >= 0 else (-value << 1) - 1
    out = bytearray()
    while left >= 0x80 and len(out) < _LONGEST - 1:
        out.append(left & 0x7F | 0x80)
        left >>= 7
    out.append(left)
    return bytes(out)
