"""A sparse extent of ESX ("COWD"), which descriptors call VMFSSPARSE.

After VMware's "Virtual Disk Format 5.0", "ESXi Host Sparse Extents".
"""

from __future__ import annotations

from fdstash.errors import FormatError
from fdstash.formats.base import FileChild, Kind, ReadAt
from fdstash.formats.tables import Entry, Part, Rule, Run
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

    def allocate(self, grains: int) -> Run:
        """As any; the header says where an ESX host goes on, before an entry leads there."""
        run = super().allocate(grains)
        if run.fresh:
            self._note_end()
        return run

    def store(self, page: int, first: int, raw: bytes) -> None:
        """As any; a new table moves the end of the file, too."""
        made = len(self._made)
        super().store(page, first, raw)
        if len(self._made) != made:
            self._note_end()

    def _note_end(self) -> None:
        sector = -(-self._end // SECTOR)
        self.file.pwrite(sector.to_bytes(4, "little"), _FREE_SECTOR_PLACE)

    def revalidate(self, read: ReadAt) -> None:
        """The same header but for what changes with each grain."""
        fresh = self._read_header(read)
        for field in _LAYOUT:
            if getattr(fresh, field) != getattr(self.header, field):
                raise FormatError(
                    "the COWD header is no longer the one that was opened; open the image again",
                    file=self.file.name,
                    offset=0,
                    field=field,
                )
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
        # QEMU does not keep the count, so the end of the file may be further on.
        self.take_over([found], header.free_sector * SECTOR, cowd.HEADER_BYTES // SECTOR)
