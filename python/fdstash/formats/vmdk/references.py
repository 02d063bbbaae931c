"""What the tables of a sparse extent refer to, and what of its file nothing refers to.

Memory: four bytes for each grain that is there, and as many again with some twenty for
each of a quarter million while they are sorted.
"""

from __future__ import annotations

import heapq
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

__all__ = ["Gap", "Overlap", "gaps_and_overlaps"]

# References are sorted in pieces of so many.
_PIECE = 1 << 18


class Gap(NamedTuple):
    """Sectors that nothing refers to."""

    start: int
    end: int


class Overlap(NamedTuple):
    """A grain that begins in what something else refers to."""

    start: int  #: sectors
    end: int  #: of what it begins in


def gaps_and_overlaps(
    grains: Sequence[int], grain: int, metadata: Iterable[tuple[int, int]], end: int
) -> Iterator[Gap | Overlap]:
    """Ascending, up to the sector `end` of the file.

    `grains` are the sectors at which grains of `grain` sectors start; `metadata`
    ranges of sectors (start, end), which may overlap each other.
    """
    used = heapq.merge(
        sorted((start, stop, False) for start, stop in metadata),
        ((start, start + grain, True) for start in _ascending(grains)),
    )
    reached = 0
    for start, stop, is_grain in used:
        if start > reached:
            yield Gap(reached, start)
        elif start < reached and is_grain:
            yield Overlap(start, reached)
        reached = max(reached, stop)
    if end > reached:
        yield Gap(reached, end)


def _ascending(numbers: Sequence[int]) -> Iterable[int]:
    pieces = [
        array("Q", sorted(numbers[at : at + _PIECE])) for at in range(0, len(numbers), _PIECE)
    ]
    return heapq.merge(*pieces) if len(pieces) != 1 else pieces[0]
