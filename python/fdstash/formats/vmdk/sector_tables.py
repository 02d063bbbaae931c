"""Tables of 32-bit sector numbers, which KDMV and COWD extents have in common.

After VMware's "Virtual Disk Format 5.0": a directory of tables, tables of grains, each
entry a sector of the file. Grains and tables are added at the end of the file.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Sequence

from fdstash.errors import FormatError, os_error
from fdstash.formats.base import FileChild, Kind, ReadAt
from fdstash.formats.tables import Run
from fdstash.formats.vmdk import grain_directory
from fdstash.formats.vmdk.cowd import CowdHeader
from fdstash.formats.vmdk.grain_directory import Directory
from fdstash.formats.vmdk.grain_file import GrainFile
from fdstash.formats.vmdk.layout import SECTOR
from fdstash.formats.vmdk.sparse_header import SparseHeader

__all__ = ["SectorTables"]

_LAST_SECTOR = 0xFFFFFFFF
#: Grains start at pages of the host, where they are as large, so that whole pages of the
#: guest are whole pages of the file.
_PAGE = 4096


class SectorTables(GrainFile):
    """A `GrainFile` with one directory, or with a second one that is kept equal."""

    header: SparseHeader | CowdHeader
    first_table: int  #: the first sector that can be a table's
    #: Where the header says that the file was not closed: offset and length, bytes.
    unclean_place: tuple[int, int]

    def __init__(self, file: FileChild) -> None:
        self.file = file
        #: The first one is read; each is written.
        self.directories: Sequence[Directory] = ()
        self._end = 0  #: where the next grain or table goes, bytes
        self._free: list[int] = []
        #: Tables that no directory refers to yet: (directory, page) to sector.
        self._made: dict[tuple[int, int], int] = {}

    def take_over(self, directories: Sequence[Directory], end: int, first: int) -> None:
        """Begin with what the file holds now; `end`: where it may grow from, bytes.

        No table starts before the sector `first`: what is stored in one must not go to
        the header, or to a descriptor.
        """
        self.directories = directories
        self.first_table = first
        self._end = max(end, self.file.size)
        self._free = []
        self._made = {}

    @property
    def index_bytes(self) -> int:
        """The directories are in memory, too."""
        return super().index_bytes + 4 * sum(len(each.entries) for each in self.directories)

    def load(self, page: int) -> bytes | None:
        """From the first directory; of a file that is written the others must be right, too."""
        sector = self._table_at(self.directories[0], page)
        if self.file.writable:
            for directory in self.directories[1:]:
                self._table_at(directory, page)
        return self.file.pread(self.page_entries * 4, sector * SECTOR) if sector else None

    def _table_at(self, directory: Directory, page: int) -> int:
        """The sector of a table, which is in the file and in no header; 0 for none.

        Looked at when a table is, since a directory may have a million entries.
        """
        sector = directory.entries[page]
        if not sector:
            return 0
        if sector < self.first_table:
            directory.fail(sector, "is in the header or the descriptor; the directory is damaged")
        end = sector * SECTOR + self.page_entries * 4
        if end > self.file.size:
            directory.fail(sector, "is not in the file; copy the file again, as a whole")
        return sector

    # -- writing

    def allocate(self, grains: int) -> Run:
        """Grains that were given up, else new ones at the end of the file."""
        if self._free:
            return Run(self._free.pop(), 1, fresh=False)
        return Run(self._take(grains * self.grain_bytes), grains, fresh=True)

    def _take(self, n: int) -> int:
        """Let the file grow by `n` bytes; where they are."""
        step = min(self.grain_bytes, _PAGE)
        offset = -(-self._end // step) * step
        if offset + n > _LAST_SECTOR * SECTOR:
            raise os_error(
                errno.EFBIG, self.file.name, "a grain beyond the 2 TiB that an entry can refer to"
            )
        self.file.truncate(offset + n)
        self._end = offset + n
        return offset

    def free(self, offset: int, grains: int) -> None:
        """Keep them for the next allocations."""
        self._free += [offset + self.grain_bytes * each for each in range(grains)]

    def encode(self, kind: int, offset: int) -> int:
        """The sector; 1 for zeros, where there are such entries."""
        if kind == Kind.DATA:
            return offset // SECTOR
        return 1 if kind == Kind.ZERO else 0

    def store(self, page: int, first: int, raw: bytes) -> None:
        """Into the table of each directory; the one that is read comes last."""
        for number in reversed(range(len(self.directories))):
            directory = self.directories[number]
            sector = self._table_at(directory, page) or self._made.get((number, page), 0)
            if not sector:
                sector = self._take(directory.table_bytes) // SECTOR
                self._made[number, page] = sector
            self.file.pwrite(raw, sector * SECTOR + 4 * first)

    @property
    def unlinked(self) -> bool:
        """Whether tables were made that no directory refers to yet."""
        return bool(self._made)

    def link(self) -> None:
        """Write the directories' entries for tables that were made, redundant ones first."""
        for (number, page), sector in sorted(self._made.items(), reverse=True):
            place = self.directories[number].offset + 4 * page
            self.file.pwrite(grain_directory.encode([sector]), place)
        for (number, page), sector in self._made.items():
            self.directories[number].entries[page] = sector
        self._made.clear()

    def note_end(self, end: int) -> None:
        """The file is to end there, in bytes: for a header that says so, before it is cut."""
        self._end = end

    # -- reading

    def keep_layout(self, fresh: SparseHeader | CowdHeader, fields: Iterable[str]) -> None:
        """Raises `FormatError` where `fresh` differs from the header in one of `fields`."""
        for field in fields:
            if getattr(fresh, field) != getattr(self.header, field):
                raise FormatError(
                    "the header is no longer the one that was opened; open the image again",
                    file=self.file.name,
                    offset=0,
                    field=field,
                )

    def read_directory(
        self, read: ReadAt, field: str, sector: int, count: int, table_bytes: int
    ) -> Directory:
        """A directory of `count` entries at `sector`; `field` of the header says where."""
        offset = sector * SECTOR
        raw = read(self.file, 4 * count, offset)
        if len(raw) != 4 * count:
            raise FormatError(
                f"the grain directory of {4 * count} bytes is not in the file; "
                "copy the file again, as a whole",
                file=self.file.name,
                offset=offset,
                field=field,
            )
        entries = grain_directory.decode(raw)
        return Directory(self.file.name, field, offset, entries, table_bytes)
