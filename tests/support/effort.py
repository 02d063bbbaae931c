"""Processor time against a yardstick that is measured beside it.

What a second of a processor does depends on who shares it: its cache, its other half, its clock.
So a bound on work is told in seconds of a processor that does the yardstick in `_NOMINAL`, and
grows where this one takes longer.
"""

from __future__ import annotations

import time

__all__ = ["seconds_here"]

#: Seconds of the yardstick on a processor of 2026 that nobody shares.
_NOMINAL = 0.02


def _yardstick() -> float:
    start = time.process_time()
    words: dict[str, int] = {}
    for number in range(60_000):
        key = f"{number % 977:x}"
        words[key] = words.get(key, 0) + len(key)
    return time.process_time() - start


def seconds_here(seconds: float) -> float:
    """How long this processor may take for what the nominal one does in `seconds`.

    To be asked right after the work, when the same others are there. Never less than `seconds`.
    """
    slower = max(_yardstick() for _ in range(3)) / _NOMINAL
    return seconds * max(1.0, slower)
