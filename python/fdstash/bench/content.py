"""What cells hold: how a read is verified, and what may be written.

Both kinds of content belong to the load's threads: a cell's owner alone asks about
it, so nothing here is locked.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Protocol

from fdstash.bench.cells import Cell

__all__ = ["Baseline", "Content", "Generations"]

_STAMP = struct.Struct("<QQ")


class Content(Protocol):
    """What is known of each cell, by its number."""

    cells: Sequence[Cell]

    def expected(self, number: int) -> bytes | None:
        """What the cell must hold now; None when that is not known."""

    def next(self, number: int) -> bytes | None:
        """What to write into it; None when it must not be written."""

    def written(self, number: int) -> None:
        """That was written, and said to be."""

    def spoiled(self, number: int) -> None:
        """A write of that failed, or wrong bytes were read: what it holds is not known."""


class Generations:
    """Cells of an image of our own: the offset and a generation, over and over."""

    def __init__(self, cells: Sequence[Cell]) -> None:
        self.cells = cells
        self._repeats = [-(-cell.length // _STAMP.size) for cell in cells]
        self._generations = [0] * len(cells)
        self._known = [True] * len(cells)

    def image_of(self, number: int, generation: int) -> bytes:
        """The bytes of a cell in that generation."""
        offset, length = self.cells[number]
        return (_STAMP.pack(offset, generation) * self._repeats[number])[:length]

    def expected(self, number: int) -> bytes | None:
        """The last generation written."""
        if not self._known[number]:
            return None
        return self.image_of(number, self._generations[number])

    def next(self, number: int) -> bytes | None:
        """The next generation."""
        return self.image_of(number, self._generations[number] + 1)

    def written(self, number: int) -> None:
        """The generation counts."""
        self._generations[number] += 1
        self._known[number] = True

    def spoiled(self, number: int) -> None:
        """Old bytes, new ones or parts of both; the generation is used up."""
        self._generations[number] += 1
        self._known[number] = False


class Baseline:
    """Cells of somebody's image: the bytes that were there, and no others ever.

    `writable`: whether a cell may be written, with the bytes that it holds. A cell
    once read wrong is never written again.
    """

    def __init__(
        self, cells: Sequence[Cell], data: Sequence[bytes], writable: Sequence[bool]
    ) -> None:
        self.cells = cells
        self._data: list[bytes | None] = list(data)
        self._writable = list(writable)

    def expected(self, number: int) -> bytes | None:
        """What it held at first."""
        return self._data[number]

    def next(self, number: int) -> bytes | None:
        """The same again, or nothing."""
        return self._data[number] if self._writable[number] else None

    def written(self, number: int) -> None:
        """It holds what it held."""

    def spoiled(self, number: int) -> None:
        """Hands off."""
        self._writable[number] = False
