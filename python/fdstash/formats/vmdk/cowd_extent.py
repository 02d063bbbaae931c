"""A sparse extent of ESX ("COWD"), which descriptors call VMFSSPARSE.

After VMware's "Virtual Disk Format 5.0", "ESXi Host Sparse Extents".
"""

from __future__ import annotations

from fdstash.formats.base import FileChild, Kind, ReadAt
from fdstash.formats.tables import Entry, Part, Rule
from fdstash.formats.vmdk import cowd
from fdstash.formats.vmdk.cowd import CowdHeader
from fdstash.formats.vmdk.layout import SECTOR
from fdstash.formats.vmdk.sector_tables import SectorTables

__all__ = ["CowdExtent"]

_WHOLE = 0xFFFFFFFF
_FREE_SECTOR_PLACE = 28
_LAYOUT = ("capacity", "grain", "gd_offset", "gd_entries", "flags")


class CowdExtent(SectorTables):
    """One file of grains, with one directory and a count of the sectors in use."""

    writable = True
    unclean_place = (1648, 4)
    header: CowdHeader

    def __init__(self, file: FileChild, read: ReadAt) -> None:
        """Read the header and the directory. Raises `FormatError`."""
        super().__init__(file)
        self.header = self._read_header(read)
        self.capacity = self.header.capacity * SECTOR
        self.grain_bytes = self.header.grain_bytes
        self.page_entries = cowd.GTES_PER_GT
        self._read_directory(read)

    def entry(self) -> Entry:
        """A sector; 0: nothing."""
        return Entry(
            4,
            big_endian=False,
            rules=(Rule(_WHOLE, 0, Kind.HOLE),),
            parts=(Part(_WHOLE),),
            unit=SECTOR,
            first=self.header.gd_end * SECTOR,
        )

    def _take(self, n: int) -> int:
        """As any; the header says where an ESX host goes on, before anything leads there."""
        offset = super()._take(n)
        self.note_end(self._end)
        return offset

    def note_end(self, end: int) -> None:
        """Into the header, too."""
        super().note_end(end)
        self.file.pwrite((-(-end // SECTOR)).to_bytes(4, "little"), _FREE_SECTOR_PLACE)

    def revalidate(self, read: ReadAt) -> None:
        """The same header but for what changes with each grain."""
        fresh = self._read_header(read)
        self.keep_layout(fresh, _LAYOUT)
        self.header = fresh
        self._read_directory(read)

    def _read_header(self, read: ReadAt) -> CowdHeader:
        header = cowd.parse(read(self.file, cowd.HEADER_BYTES, 0), self.file.name)
        cowd.check(header, self.file.name, self.file.size)
        return header

    def _read_directory(self, read: ReadAt) -> None:
        header = self.header
        found = self.read_directory(
            read, "gdOffset", header.gd_offset, header.gd_entries, cowd.GT_BYTES
        )
        # Not `free_sector`: QEMU does not keep it, and a power cut may leave it further on.
        self.take_over([found], header.gd_end * SECTOR, cowd.HEADER_BYTES // SECTOR)
