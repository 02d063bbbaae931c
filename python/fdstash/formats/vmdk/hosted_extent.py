"""A sparse extent of hosted products ("KDMV"), which descriptors call SPARSE.

After VMware's "Virtual Disk Format 5.0", "Hosted Sparse Extents" and "Stream-Optimized
Compressed". An extent of compressed grains is read, and written only as a stream.
"""

from __future__ import annotations

from collections.abc import Mapping

from fdstash.errors import FormatError
from fdstash.formats.base import FileChild, Kind, ReadAt
from fdstash.formats.tables import Entry, Part, Rule
from fdstash.formats.vmdk import compressed_grain, markers, sparse_header
from fdstash.formats.vmdk.layout import SECTOR
from fdstash.formats.vmdk.sector_tables import SectorTables
from fdstash.formats.vmdk.sparse_header import GD_AT_END, SparseHeader

__all__ = ["HostedExtent", "read_header"]

_WHOLE = 0xFFFFFFFF
# What must not change while an image is open.
_LAYOUT = ("capacity", "grain", "gtes_per_gt", "rgd_offset", "gd_offset", "compression", "flags")


class HostedExtent(SectorTables):
    """One file of grains, with the tables of one directory or of two."""

    unclean_place = (72, 1)
    header: SparseHeader

    def __init__(self, file: FileChild, read: ReadAt) -> None:
        """Read the header and the directories. Raises `FormatError`."""
        super().__init__(file)
        self.header = header = read_header(file, read)
        self.capacity = header.capacity * SECTOR
        self.grain_bytes = header.grain_bytes
        self.page_entries = header.gtes_per_gt
        self.has_zero_entries = header.has_zeroed_grains
        self.writable = not header.compressed
        self._read_directories(read)

    def entry(self) -> Entry:
        """A sector; 0: nothing; 1: zeros, where the header says so."""
        header = self.header
        rules = [Rule(_WHOLE, 0, Kind.HOLE)]
        if header.has_zeroed_grains:
            rules.append(Rule(_WHOLE, 1, Kind.ZERO))
        if header.compressed:
            rules.append(Rule(0, 0, Kind.COMPRESSED))
        return Entry(
            4,
            big_endian=False,
            rules=rules,
            parts=(Part(_WHOLE),),
            unit=SECTOR,
            first=max(1, header.overhead) * SECTOR,
        )

    def decompress(self, offset: int) -> bytes:
        """The grain whose marker, or whose zlib stream, is at `offset`."""
        return self._unpacked(offset)[1]

    def check_grain(self, index: int, offset: int) -> None:
        """Raises `FormatError` unless the compressed grain at `offset` is the grain `index`."""
        marked, _ = self._unpacked(offset)
        if marked not in (index, None):
            raise FormatError(
                f"the marker says that this is grain {marked}, and the table that it is {index}; "
                "restore the image from a copy",
                file=self.file.name,
                offset=offset,
                field="marker value",
            )

    def _unpacked(self, offset: int) -> tuple[int | None, bytes]:
        """The number in the marker at `offset`, where there is one, and the grain."""
        header, name = self.header, self.file.name
        grain = header.grain_bytes
        most = SECTOR + compressed_grain.max_compressed_bytes(grain)
        # Not copied: with the bytes that a stream leaves over, it is in memory twice.
        data = memoryview(self.file.pread(most, offset))
        if not header.has_markers:
            return None, compressed_grain.inflate(
                data, grain, grain, file=name, offset=offset, trailing=True
            )
        marker = markers.parse(bytes(data[:SECTOR]), header, name, offset)
        if not isinstance(marker, markers.GrainMarker):
            raise FormatError(
                "a grain table leads to a marker that is none of a grain",
                file=name,
                offset=offset,
                field="marker",
            )
        at = markers.GRAIN_HEAD_BYTES
        length = header.grain_length(marker.grain)
        found = compressed_grain.inflate(
            data[at : at + marker.size], grain, length, file=name, offset=offset + at
        )
        return marker.grain, found.ljust(grain, b"\0")

    def revalidate(self, read: ReadAt) -> None:
        """The same header but for what says how the file was closed."""
        fresh = read_header(self.file, read)
        self.keep_layout(fresh, _LAYOUT)
        self._read_directories(read)

    def _read_directories(self, read: ReadAt) -> None:
        header = self.header
        places = [("gdOffset", header.gd_offset)]
        if header.has_redundant_directory:
            places.append(("rgdOffset", header.rgd_offset))
        found = [
            self.read_directory(read, field, sector, header.gt_count, header.gt_bytes)
            for field, sector in places
        ]
        embedded = header.descriptor_offset == 1
        self.take_over(found, header.overhead * SECTOR, 1 + embedded * header.descriptor_size)

    def info(self) -> Mapping[str, object]:
        """The size of a grain, and whether grains are compressed."""
        found: dict[str, object] = {"cluster-size": self.grain_bytes}
        if self.header.compressed:
            found["compressed"] = True
        return found


def read_header(file: FileChild, read: ReadAt) -> SparseHeader:
    """The header, or the footer where that knows more. Raises `FormatError`."""
    size = file.size
    header = sparse_header.parse(read(file, SECTOR, 0), file.name)
    if header.capacity and header.gd_offset == GD_AT_END:
        return markers.read_footer(lambda n, at: read(file, n, at), header, file.name, size)
    sparse_header.check(header, file.name, size)
    return header
