"""A table format that is as small as one can be: what the page for newcomers asks for.

A file of it: ``TOY!``, the size of the disk (8 bytes), then at 4096 one directory entry
(8 bytes, big-endian, an offset or 0) for each table of 16 entries, then tables and
clusters as they come. An entry is 0 (a hole), 1 (zeros) or the offset of a cluster.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

from fdstash.errors import FormatError
from fdstash.formats.base import FileChild, Kind, Opener, ReadAt
from fdstash.formats.tables import Entry, Part, Rule, Run, Table, TableFormat

CLUSTER = 4096
ENTRIES = 16
PAGE = 4096
_ENTRY = Entry(
    width=8,
    big_endian=True,
    rules=(Rule(2**64 - 1, 0, Kind.HOLE), Rule(2**64 - 1, 1, Kind.ZERO)),
    parts=(Part(2**64 - 1),),
)


def make(path: Path, size: int) -> Path:
    pages = -(-size // (CLUSTER * ENTRIES))
    path.write_bytes((b"TOY!" + size.to_bytes(8, "big")).ljust(PAGE + 8 * pages, b"\0"))
    return path


class Toy(TableFormat):
    name = "toy"

    def __init__(self, file: FileChild, size: int) -> None:
        self.file = file
        self.size = size
        self._free: list[int] = []
        self._made: dict[int, int] = {}  # tables that the directory does not lead to yet
        self._directory = self._read_directory(lambda child, n, at: child.pread(n, at))

    @classmethod
    def recognise(cls, head: bytes, tail: bytes, size: int, filename: str) -> int:
        return 100 if head.startswith(b"TOY!") else 0

    @classmethod
    def open(
        cls, file: FileChild, opener: Opener, *, writable: bool, options: Mapping[str, object]
    ) -> Self:
        return cls(file, int.from_bytes(file.pread(8, 4), "big"))

    def revalidate(self, read: ReadAt) -> None:
        if int.from_bytes(read(self.file, 8, 4), "big") != self.size:
            raise FormatError("another disk", file=self.file.name, offset=4, field="size")
        self._directory, self._free = self._read_directory(read), []

    def _read_directory(self, read: ReadAt) -> list[int]:
        pages = -(-self.size // (CLUSTER * ENTRIES))
        return list(struct.unpack(f">{pages}Q", read(self.file, 8 * pages, PAGE)))

    def tables(self) -> Sequence[Table]:
        return (Table(0, self.size, CLUSTER, ENTRIES, self.file.index, _ENTRY, zero_entries=True),)

    def load(self, table: int, page: int) -> bytes | None:
        place = self._directory[page]
        return self.file.pread(8 * ENTRIES, place) if place else None

    # -- for writing

    def allocate(self, table: int, clusters: int) -> Run:
        if self._free:
            return Run(self._free.pop(), 1, fresh=False)
        return Run(self._grow(clusters * CLUSTER), clusters, fresh=True)

    def _grow(self, n: int) -> int:
        end = -(-self.file.size // PAGE) * PAGE
        self.file.truncate(end + n)
        return end

    def free(self, table: int, offset: int, clusters: int) -> None:
        self._free += [offset + CLUSTER * each for each in range(clusters)]

    def encode(self, table: int, kind: int, offset: int) -> int:
        return {Kind.DATA: offset, Kind.ZERO: 1, Kind.HOLE: 0}[Kind(kind)]

    def store(self, table: int, page: int, first: int, raw: bytes) -> None:
        place = self._directory[page] or self._made.get(page)
        if not place:
            place = self._made[page] = self._grow(PAGE)
        self.file.pwrite(raw, place + 8 * first)

    @property
    def unlinked(self) -> bool:
        return bool(self._made)

    def link(self) -> None:
        for page, place in self._made.items():
            self.file.pwrite(place.to_bytes(8, "big"), PAGE + 8 * page)
            self._directory[page] = place
        self._made.clear()
