"""The grain directory of a KDMV or COWD extent: where each grain table is.

After VMware's "Virtual Disk Format 5.0": 32-bit numbers, little-endian, each the
sector at which a grain table starts, or 0 for a table that is not there.
"""

from __future__ import annotations

import heapq
import sys
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, NoReturn

from fdstash.errors import FormatError
from fdstash.formats.vmdk.layout import SECTOR

__all__ = ["Directory", "check", "check_apart", "decode", "encode"]

# Entries are sorted in pieces of so many, which bounds the memory that it takes.
_PIECE = 1 << 18


class Directory(NamedTuple):
    """A directory as it was read."""

    file: str  #: the name for errors
    field: str  #: of the header, which says where the directory is
    offset: int  #: of the directory in the file, bytes
    entries: array[int]
    table_bytes: int  #: of each grain table in the file

    def fail(self, entry: int, message: str) -> NoReturn:
        """Raises `FormatError` for the first entry that is `entry`."""
        index = self.entries.index(entry)
        raise FormatError(
            f"grain table {index} at sector {entry} {message}",
            file=self.file,
            offset=self.offset + 4 * index,
            field=f"{self.field} entry",
        )


def decode(data: bytes) -> array[int]:
    """The entries in `data`, which has a multiple of four bytes. For grain tables too."""
    entries = array("I", data)
    if sys.byteorder == "big":
        entries.byteswap()
    return entries


def encode(entries: Iterable[int]) -> bytes:
    """The bytes of `entries`, each less than 2**32, without padding."""
    data = array("I", entries)
    if sys.byteorder == "big":
        data.byteswap()
    return data.tobytes()


def check(directory: Directory, file_size: int, first: int = 1) -> None:
    """Raises `FormatError` unless every table is in the file.

    `file_size` is in bytes; no table starts before the sector `first`. Fast: it
    looks at no two entries together, which is what `check_apart` does.
    """
    entries = directory.entries
    last = max(entries, default=0)
    if last * SECTOR + directory.table_bytes > file_size and last:
        directory.fail(
            last,
            f"is not in the file, which has {file_size} bytes; copy the file again, as a whole",
        )
    if first > 1:
        low = min(filter(None, entries), default=first)
        if low < first:
            directory.fail(low, "is in the header or the descriptor; the directory is damaged")


def check_apart(
    directories: Sequence[Directory], taken: Iterable[tuple[int, int]], file_size: int
) -> None:
    """Raises `FormatError` unless all tables are apart from each other and from `taken`.

    `taken` are the ranges of sectors (start, end) of other metadata. For one
    directory, or for one and its redundant copy, whose tables are others.
    The memory is some 20 bytes an entry, the time that of sorting.
    """
    for directory in directories:
        tables = len(directory.entries) - directory.entries.count(0)
        if tables * directory.table_bytes > file_size:
            highest = max(directory.entries)
            directory.fail(highest, f"is one of {tables}, more than the file has room for")
    occupied = sorted((start, end, -1) for start, end in taken if end > start)
    sources = [iter(occupied), *(_tables(n, d) for n, d in enumerate(directories))]
    end, owner = 0, -1
    for start, stop, number in heapq.merge(*sources):
        if start < end:
            # One of the two is a table: ranges of `taken` may well overlap.
            guilty = number if number >= 0 else owner
            if guilty >= 0:
                entry = start if number >= 0 else end - directories[owner].table_bytes // SECTOR
                directories[guilty].fail(
                    entry, "lies over other metadata; the directory is damaged"
                )
        if stop > end:
            end, owner = stop, number


def _tables(number: int, directory: Directory) -> Iterator[tuple[int, int, int]]:
    """(start, end, number) of each table, ascending."""
    sectors = directory.table_bytes // SECTOR
    entries = directory.entries
    pieces = [
        array("I", sorted(entries[at : at + _PIECE])) for at in range(0, len(entries), _PIECE)
    ]
    for start in heapq.merge(*pieces) if len(pieces) > 1 else pieces[0] if pieces else ():
        if start:
            yield start, start + sectors, number
