"""Formats whose map is in tables on disk: what a driver has to say, and nothing more.

A driver describes an entry once, hands tables over as they are on disk, and says where
new clusters go. The core decodes tables and looks clusters up; `fdstash.clusters` loads,
evicts, allocates, and writes entries back. docs/formats.md is the page for newcomers.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

from fdstash.errors import os_error
from fdstash.formats.base import Format, Kind, Segment, unsupported

__all__ = ["Entry", "Part", "Rule", "Run", "Table", "TableFormat"]


class Rule(NamedTuple):
    """An entry with ``entry & mask == value`` is of this kind; the first rule that fits says."""

    mask: int
    value: int
    kind: int  #: a `Kind`


class Part(NamedTuple):
    """``entry & mask``, shifted left by `shift` bits; right where that is negative."""

    mask: int
    shift: int = 0


class Entry(NamedTuple):
    """What an entry of a table on disk means.

    Where no rule fits it is data at ``base + unit * (all parts or'ed together)``.
    At most 8 rules and 2 parts.
    """

    width: int  #: bytes, 4 or 8
    big_endian: bool
    rules: Sequence[Rule]
    parts: Sequence[Part]
    unit: int = 1  #: bytes
    base: int = 0  #: bytes
    first: int = 0  #: bytes: data before this offset makes no sense, since metadata is there


class Table(NamedTuple):
    """A run of the guest's disk that tables on disk map, cluster by cluster."""

    start: int  #: guest offset, bytes
    length: int  #: bytes; the last cluster may be cut
    cluster: int  #: bytes, a power of two from 512
    page_entries: int  #: clusters that one table on disk maps
    file: int  #: `FileChild.index` of the file that holds the data
    entry: Entry
    zero_entries: bool = False  #: whether an entry can say that a cluster reads as zeros
    readonly: bool = False  #: must not be written, also in a writable image


class Run(NamedTuple):
    """New clusters, contiguous in the file."""

    offset: int  #: in the file, bytes
    clusters: int
    fresh: bool  #: never used: they read as zeros


class TableFormat(Format):
    """A format of cluster tables. Threads: one at a time; the caller holds the map's lock."""

    @abstractmethod
    def tables(self) -> Sequence[Table]:
        """In order of `start`; what no table covers is said by `plain_segments`."""

    @abstractmethod
    def load(self, table: int, page: int) -> bytes | None:
        """The table on disk that maps page `page`: `page_entries` entries, as they are there.

        None where there is none, and all of its clusters are holes. Raises `FormatError`.
        """

    def plain_segments(self) -> Sequence[Segment]:
        """Runs that no table maps, as flat extents beside sparse ones."""
        return ()

    def segments(self) -> Sequence[Segment]:
        """Tables and plain segments together, in order."""
        mapped = [
            Segment(table.start, table.length, Kind.TABLE, number, readonly=table.readonly)
            for number, table in enumerate(self.tables())
        ]
        return sorted((*mapped, *self.plain_segments()))

    def decompress(self, table: int, offset: int) -> bytes:
        """The cluster whose compressed data starts at `offset`. Raises `FormatError`."""
        raise unsupported(self.file.name, f"compressed cluster of table {table} at {offset}")

    # -- what a format that can be written says beside that

    def allocate(self, table: int, clusters: int) -> Run:
        """Room for at least one and at most `clusters` new clusters.

        The file is long enough for them when this returns. Raises `ImageIOError`.
        """
        raise os_error(30, self.file.name, f"table {table} takes no new clusters ({clusters})")

    def free(self, table: int, offset: int, clusters: int) -> None:
        """Clusters that no entry, also none on disk, refers to any more, and no request uses."""

    def encode(self, table: int, kind: int, offset: int) -> int:
        """The entry for a cluster: `Kind.DATA` at `offset`, `Kind.ZERO` or `Kind.HOLE`."""
        raise NotImplementedError

    def store(self, table: int, page: int, first: int, raw: bytes) -> None:
        """Writes entries of a page from number `first` on, every copy of the table alike.

        Makes the table on disk where there is none yet, which then waits for `link`.
        Nothing is flushed.
        """
        raise NotImplementedError

    @property
    def unlinked(self) -> bool:
        """Whether tables were made that nothing on disk refers to yet."""
        return False

    def link(self) -> None:
        """Writes the references to tables that were made, which are on disk by now.

        Nothing is flushed.
        """
