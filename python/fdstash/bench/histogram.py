"""How long requests took, in constant memory."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["Histogram", "exact_percentile"]

_SUB_BITS = 5
_LINEAR = 1 << (_SUB_BITS + 1)


class Histogram:
    """Nanoseconds counted in log-linear buckets, 32 for each power of two.

    A percentile is at most 3.2 % too high; the largest value is exact. One thread
    records at a time.
    """

    __slots__ = ("_counts", "largest")

    def __init__(self) -> None:
        self._counts = [0] * ((64 - _SUB_BITS) << _SUB_BITS)
        self.largest = 0

    def record(self, nanoseconds: int) -> None:
        """Count one value, from 0 to 2**63 - 1."""
        shift = nanoseconds.bit_length() - _SUB_BITS - 1
        if shift > 0:
            self._counts[(shift << _SUB_BITS) + (nanoseconds >> shift)] += 1
        else:
            self._counts[nanoseconds] += 1
        self.largest = max(self.largest, nanoseconds)

    def __len__(self) -> int:
        """How many values were recorded."""
        return sum(self._counts)

    def percentile(self, percent: float) -> int:
        """The value that `percent` of all do not exceed, nanoseconds; 0 without any."""
        total = len(self)
        wanted = max(1, -(-total * percent // 100))
        seen = 0
        for index, count in enumerate(self._counts):
            seen += count
            if count and seen >= wanted:
                return min(_upper_edge(index), self.largest)
        return 0

    def add(self, other: Histogram) -> None:
        """Count all that the other has counted."""
        for index, count in enumerate(other._counts):
            self._counts[index] += count
        self.largest = max(self.largest, other.largest)


def _upper_edge(index: int) -> int:
    if index < _LINEAR:
        return index
    shift = (index >> _SUB_BITS) - 1
    return ((index - (shift << _SUB_BITS) + 1) << shift) - 1


def exact_percentile(values: Sequence[int], percent: float) -> int:
    """Of a few values that are all at hand (the nearest rank); 0 without any."""
    if not values:
        return 0
    rank = max(1, int(-(-len(values) * percent // 100)))
    return sorted(values)[rank - 1]
