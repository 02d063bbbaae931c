"""Tables of 32-bit sector numbers, which KDMV and COWD extents have in common.

After VMware's "Virtual Disk Format 5.0": a directory of tables, tables of grains, each
entry a sector of the file. Grains and tables are added at the end of the file.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence

from fdstash.errors import FormatError, os_error
from fdstash.formats.base import FileChild, Kind, ReadAt
from fdstash.formats.tables import Run
from fdstash.formats.vmdk import grain_directory
from fdstash.formats.vmdk.grain_directory import Directory
from fdstash.formats.vmdk.grain_file import GrainFile
from fdstash.formats.vmdk.layout import SECTOR

__all__ = ["SectorTables"]

_LAST_SECTOR = 0xFFFFFFFF
#: Grains start at pages of the host, where they are as large, so that whole pages of the
#: guest are whole pages of the file.
_PAGE = 4096


class SectorTables(GrainFile):
    """A `GrainFile` with one directory, or with a second one that is kept equal."""

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
        size = self.file.size
        for directory in directories:
            grain_directory.check(directory, size, first)
        self.directories = directories
        self._end = max(end, size)
        self._free = []
        self._made = {}

    @property
    def index_bytes(self) -> int:
        """The directories are in memory, too."""
        return super().index_bytes + 4 * sum(len(each.entries) for each in self.directories)

    def load(self, page: int) -> bytes | None:
        """From the first directory."""
        directory = self.directories[0]
        sector = directory.entries[page]
        if not sector:
            return None
        n = self.page_entries * 4
        raw = self.file.pread(n, sector * SECTOR)
        if len(raw) != n:
            directory.fail(sector, "is not in the file")
        return raw

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
            sector = directory.entries[page] or self._made.get((number, page), 0)
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

    # -- reading

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
