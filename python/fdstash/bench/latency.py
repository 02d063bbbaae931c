"""How long requests took, as the load generator counts it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Self

from fdstash._ffi import lib

__all__ = ["HIGHEST", "SIGNIFICANT_DIGITS", "Latency", "exact_percentile"]

#: Nanoseconds; what takes longer is counted there. `Latency.largest` is exact all the same.
HIGHEST = (1 << 42) - 1
SIGNIFICANT_DIGITS = 3


class Latency:
    """Nanoseconds, counted to three significant digits, in the layout of HdrHistogram.

    `counters` has FDSTASH_LOAD_COUNTERS of them. Never changed once made.
    """

    def __init__(self, counters: Sequence[int], largest: int, total: int) -> None:
        self.counters = counters
        self.largest = largest
        self.total = total  #: the sum of all values
        self._count = sum(counters)

    @classmethod
    def sum_of(cls, parts: Iterable[Latency]) -> Self:
        """All that the parts have counted."""
        every = list(parts)
        counters: Sequence[int] = [0] * lib.FDSTASH_LOAD_COUNTERS
        if every:
            columns = zip(*(part.counters for part in every), strict=True)
            counters = every[0].counters if len(every) == 1 else [sum(column) for column in columns]
        return cls(
            counters, max((e.largest for e in every), default=0), sum(e.total for e in every)
        )

    def __len__(self) -> int:
        """How many values."""
        return self._count

    def counted(self) -> Iterator[tuple[int, int]]:
        """The highest value of each counter that is not 0, and what it counts."""
        for number, count in enumerate(self.counters):
            if count:
                yield self._highest(number), count

    @property
    def smallest(self) -> int:
        """The lowest value, to three digits; 0 without any."""
        for number, count in enumerate(self.counters):
            if count:
                lowest: int = lib.fdstash_load_lowest(number)
                return lowest
        return 0

    @property
    def mean(self) -> float:
        """0 without any."""
        return self.total / self._count if self._count else 0.0

    @property
    def deviation(self) -> float:
        """The standard deviation, to three digits."""
        if not self._count:
            return 0.0
        mean = self.mean
        squares = sum(count * (value - mean) ** 2 for value, count in self.counted())
        return math.sqrt(squares / self._count)

    def percentile(self, percent: float) -> int:
        """The value that `percent` of all do not exceed; 0 without any."""
        wanted = max(1, math.ceil(self._count * percent / 100))
        seen = 0
        for value, count in self.counted():
            seen += count
            if seen >= wanted:
                return min(value, self.largest)
        return self.largest

    def below(self, limit: int) -> int:
        """How many values are less than `limit`, to three digits."""
        return sum(self.counters[: lib.fdstash_load_counter(limit)])

    @staticmethod
    def _highest(number: int) -> int:
        if number + 1 >= lib.FDSTASH_LOAD_COUNTERS:
            return HIGHEST
        above: int = lib.fdstash_load_lowest(number + 1)
        return above - 1


def exact_percentile(values: Sequence[int], percent: float) -> int:
    """Of a few values that are all at hand (the nearest rank); 0 without any."""
    if not values:
        return 0
    rank = max(1, int(-(-len(values) * percent // 100)))
    return sorted(values)[rank - 1]
