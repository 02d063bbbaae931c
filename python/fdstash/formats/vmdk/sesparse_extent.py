"""A space-efficient sparse extent of ESX, which descriptors call SESPARSE: for reading.

What is known of the format is in `sesparse`.
"""

from __future__ import annotations

from fdstash.errors import FormatError
from fdstash.formats.base import FileChild, Kind, ReadAt
from fdstash.formats.tables import Entry, Part, Rule
from fdstash.formats.vmdk import sesparse
from fdstash.formats.vmdk.grain_file import GrainFile
from fdstash.formats.vmdk.layout import SECTOR
from fdstash.formats.vmdk.sesparse import GD_ENTRY, GT_ENTRY, SeSparseHeader

__all__ = ["SeSparseExtent"]

_ALL = 2**64 - 1


class SeSparseExtent(GrainFile):
    """One file of grains of 4 KiB."""

    def __init__(self, file: FileChild, read: ReadAt) -> None:
        """Read the headers. Raises `FormatError`."""
        self.file = file
        self.header = self._read_header(read)
        self.capacity = self.header.capacity * SECTOR
        self.grain_bytes = sesparse.GRAIN * SECTOR
        self.page_entries = sesparse.GTES_PER_GT

    def entry(self) -> Entry:
        """Four bits of kind, of which any that is not known is damage, and a grain's number."""
        mask, shift = GT_ENTRY.kind_mask, GT_ENTRY.kind_shift
        rules = [Rule(_ALL, 0, Kind.HOLE), Rule(mask, 0, Kind.BAD)]
        rules += [
            Rule(mask, kind << shift, means) for kind, means in GT_ENTRY.kinds.items() if kind
        ]
        rules.append(Rule(0, 0, Kind.BAD))
        grains = self.header.areas[GT_ENTRY.area].offset * SECTOR
        return Entry(
            8,
            big_endian=False,
            rules=rules,
            parts=[Part(part.mask, part.shift) for part in GT_ENTRY.parts],
            unit=GT_ENTRY.unit_bytes,
            base=grains,
        )

    def load(self, page: int) -> bytes | None:
        """Grain table `page`; its entry is read each time, as the directory may have 32 MiB."""
        place = self.header.grain_directory.offset * SECTOR + 8 * page
        there = self.file.pread(8, place)
        entry = int.from_bytes(there, "little")
        found = GD_ENTRY.decode(entry, self.header) if len(there) == 8 else None
        offset = None if found is None else found[1]
        if found is not None and found[0] == Kind.HOLE:
            return None
        raw = b"" if offset is None else self.file.pread(sesparse.GT_BYTES, offset)
        if len(raw) != sesparse.GT_BYTES:
            raise FormatError(
                f"entry {page} of the grain directory, {entry:#x}, leads to no "
                "grain table in the file; it is damaged",
                file=self.file.name,
                offset=place,
                field="grain directory entry",
            )
        return raw

    def revalidate(self, read: ReadAt) -> None:
        """The same header."""
        if self._read_header(read) != self.header:
            raise FormatError(
                "the seSparse header is no longer the one that was opened; open the image again",
                file=self.file.name,
                offset=0,
                field="header",
            )

    def _read_header(self, read: ReadAt) -> SeSparseHeader:
        name = self.file.name
        header = sesparse.parse(read(self.file, sesparse.HEADER_BYTES, 0), name)
        sesparse.check(header, name, self.file.size)
        place = header.volatile_header.offset * SECTOR
        sesparse.parse_volatile(read(self.file, sesparse.HEADER_BYTES, place), header, name)
        return header
