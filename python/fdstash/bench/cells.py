"""Cells: the runs of bytes that the load reads and writes, each as one request.

Cells do not overlap, so that every one can have one owner, a job, which alone knows
what it holds. Some are neither aligned nor a multiple of a sector, and share sectors
and pages with cells of other jobs, which is where a read-modify-write can go wrong.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["Cell", "packed", "sampled", "shares"]

#: Unaligned cells have this length and lie one behind the other.
_ODD_BYTES = 1008
#: Of each such period, the first and the last part are unaligned cells.
_PERIOD_BYTES = 256 << 10
_ODD_PART_BYTES = 4 << 10


class Cell(NamedTuple):
    """One run of the guest's bytes."""

    offset: int  #: bytes
    length: int  #: bytes, never 0
    writable: bool = True  #: else it is only read


def packed(size: int, block_bytes: int, *, odd_ones: bool = True) -> list[Cell]:
    """Cells without a gap over the whole of an image of `size` bytes.

    Aligned blocks, but with `odd_ones` for the places around each 256 KiB: there,
    cells are odd, and go across the boundaries of extents that are a multiple of it.
    """
    if not odd_ones:
        return _run(0, size, block_bytes)
    cells: list[Cell] = []
    offset = 0
    while offset < size:
        end = min(offset + _PERIOD_BYTES, size)
        odd = min(_ODD_PART_BYTES, (end - offset) // 4)
        cells += _run(offset, odd, _ODD_BYTES)
        cells += _run(offset + odd, end - offset - 2 * odd, block_bytes)
        # The odd part at the end goes on into the next period.
        cells += _run(end - odd, odd, _ODD_BYTES)
        offset = end
    return _joined_at_periods(cells)


def _run(offset: int, length: int, each: int) -> list[Cell]:
    return [
        Cell(start, min(each, offset + length - start))
        for start in range(offset, offset + length, each)
    ]


def _joined_at_periods(cells: list[Cell]) -> list[Cell]:
    """The short cell before each period's end and the first behind it become one."""
    joined: list[Cell] = []
    for cell in cells:
        last = joined[-1] if joined else None
        if last is not None and cell.offset % _PERIOD_BYTES == 0:
            joined[-1] = Cell(last.offset, last.length + cell.length)
        else:
            joined.append(cell)
    return joined


def sampled(
    size: int, block_bytes: int, most: int, seed: int, *, odd_ones: bool = True
) -> list[Cell]:
    """At most `most` cells, and one, spread over `size` bytes, the last of them included.

    With `odd_ones` every fourth is odd: anywhere in its part of the image, of any
    length up to a block.
    """
    count = max(1, min(most, size // block_bytes))
    stride = size // count
    aligned = stride - stride % block_bytes or stride
    rng = random.Random(seed)  # noqa: S311 - a repeatable choice, nothing secret
    cells = []
    for number in range(count):
        start, length = number * aligned, min(block_bytes, aligned)
        if odd_ones and number % 4 == 3:
            shift = rng.randrange(aligned)
            start += shift
            length = rng.randrange(1, min(length, aligned - shift) + 1)
        cells.append(Cell(start, length))
    end = cells[-1].offset + cells[-1].length
    if end < size:
        rest = min(block_bytes, size - end)
        cells.append(Cell(size - rest, rest))
    return cells


def shares(cells: Sequence[Cell], jobs: int, seed: int) -> list[list[Cell]]:
    """The cells of each job, in their order: neighbours mostly belong to different ones.

    Fewer shares than `jobs` where there are fewer cells.
    """
    order = list(cells)
    random.Random(seed).shuffle(order)  # noqa: S311 - repeatable, nothing secret
    return [sorted(order[first::jobs]) for first in range(min(jobs, len(order)))]
