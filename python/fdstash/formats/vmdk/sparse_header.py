"""The header of a hosted sparse extent ("KDMV"); the footer of a stream has the same form.

Follows VMware's "Virtual Disk Format 5.0", sections "Hosted Sparse Extents" and
"Stream-Optimized Compressed"; what QEMU's driver refuses is refused here too.
Lengths and places are sectors of 512 bytes, but for names that end in `bytes`.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple, NoReturn

from fdstash.errors import FormatError, UnsupportedFormatError
from fdstash.formats.vmdk.descriptor import MAX_BYTES as MAX_DESCRIPTOR_BYTES
from fdstash.formats.vmdk.layout import MAX_CAPACITY, SECTOR

__all__ = [
    "DEFLATE",
    "GD_AT_END",
    "HEADER_BYTES",
    "MAGIC",
    "MAX_COMPRESSED_GRAIN",
    "MAX_GD_BYTES",
    "MAX_GRAIN",
    "MAX_GTES",
    "MIN_GRAIN",
    "Flag",
    "Region",
    "SparseHeader",
    "check",
    "parse",
    "regions",
]

MAGIC = b"KDMV"
HEADER_BYTES = 512
#: The place of a grain directory that only the footer of the stream knows.
GD_AT_END = 2**64 - 1
#: `SparseHeader.compression` of grains that are zlib streams (RFC 1950).
DEFLATE = 1

MIN_GRAIN = 8
#: QEMU's limit, 1 GiB.
MAX_GRAIN = 1 << 21
#: 4 MiB: a compressed grain is in memory as a whole, and more than once. Products write 64 KiB.
MAX_COMPRESSED_GRAIN = 1 << 13
MAX_GTES = 512
#: Bytes of a grain directory, which is in memory. It is enough for 64 TiB in grains of 64 KiB.
MAX_GD_BYTES = 8 << 20

_VERSIONS = (1, 2, 3)
_NEWLINES = b"\n \r\n"
_STRUCT = struct.Struct("<4sIIQQQQIQQQB4sH433x")
# Where each field is in the header, by the names that VMware gives them.
_PLACES = {
    "magicNumber": 0,
    "version": 4,
    "flags": 8,
    "capacity": 12,
    "grainSize": 20,
    "descriptorOffset": 28,
    "descriptorSize": 36,
    "numGTEsPerGT": 44,
    "rgdOffset": 48,
    "gdOffset": 56,
    "overHead": 64,
    "uncleanShutdown": 72,
    "singleEndLineChar": 73,
    "compressAlgorithm": 77,
}


class Flag(enum.IntFlag):
    """Bits of `SparseHeader.flags`. Others are kept as they are and mean nothing here."""

    NEWLINES = 1 << 0  #: the four characters that a transfer as text would change are there
    REDUNDANT = 1 << 1  #: `rgd_offset` is the place of a second directory
    ZEROED_GRAIN = 1 << 2  #: an entry 1 of a grain table is a grain of zeros
    COMPRESSED = 1 << 16  #: grains are compressed
    MARKERS = 1 << 17  #: a marker precedes each grain and each piece of metadata


class Region(NamedTuple):
    """Metadata in the file."""

    field: str  #: of the header, which says where it is
    start: int  #: sectors
    length_bytes: int

    @property
    def end(self) -> int:
        """The first sector after it."""
        return self.start + -(-self.length_bytes // SECTOR)


@dataclass(frozen=True, slots=True)
class SparseHeader:
    """What the header says, and what follows from it.

    A `capacity` of 0 is a file that holds a descriptor and no grain; whatever is
    derived from the grains is 0 then.
    """

    capacity: int
    version: int = 1
    flags: int = Flag.NEWLINES
    grain: int = 128  #: a power of two
    descriptor_offset: int = 0  #: 0: no descriptor is embedded
    descriptor_size: int = 0
    gtes_per_gt: int = 512  #: entries of a grain table, a power of two
    rgd_offset: int = 0  #: means something with `Flag.REDUNDANT` only
    gd_offset: int = 0  #: or `GD_AT_END`
    overhead: int = 0  #: where the grains start
    unclean: bool = False  #: the file was not closed
    compression: int = 0  #: 0 or `DEFLATE`

    @property
    def compressed(self) -> bool:
        """Whether grains are zlib streams."""
        return self.compression == DEFLATE

    @property
    def has_markers(self) -> bool:
        """Whether each grain stands behind a marker."""
        return bool(self.flags & Flag.MARKERS)

    @property
    def has_zeroed_grains(self) -> bool:
        """Whether an entry 1 of a grain table is a grain of zeros."""
        return bool(self.flags & Flag.ZEROED_GRAIN)

    @property
    def has_redundant_directory(self) -> bool:
        """Whether there is a second directory, at `rgd_offset`."""
        return bool(self.flags & Flag.REDUNDANT) and self.rgd_offset != 0

    @property
    def grain_bytes(self) -> int:
        """Guest bytes of a grain."""
        return self.grain * SECTOR

    @property
    def grain_count(self) -> int:
        """Grains of the extent, the last of which may be cut by the capacity."""
        return -(-self.capacity // self.grain) if self.capacity else 0

    @property
    def gt_count(self) -> int:
        """Grain tables, and so entries of a directory."""
        return -(-self.grain_count // self.gtes_per_gt) if self.capacity else 0

    @property
    def gt_bytes(self) -> int:
        """Bytes of a grain table in the file: whole sectors."""
        return -(-self.gtes_per_gt * 4 // SECTOR) * SECTOR

    @property
    def gt_coverage_bytes(self) -> int:
        """Guest bytes that one grain table covers."""
        return self.gtes_per_gt * self.grain_bytes

    @property
    def gd_bytes(self) -> int:
        """Bytes of the entries of a directory."""
        return self.gt_count * 4

    @property
    def gd_sectors(self) -> int:
        """Sectors of a directory, the last of which it may not fill."""
        return -(-self.gd_bytes // SECTOR)

    def grain_length(self, index: int) -> int:
        """Guest bytes of the grain `index`: `grain_bytes`, less for the last one."""
        return min(self.grain, self.capacity - index * self.grain) * SECTOR

    def encode(self) -> bytes:
        """The 512 bytes. Raises `FormatError` for a number that its field cannot hold."""
        newlines = _NEWLINES if self.flags & Flag.NEWLINES else bytes(4)
        try:
            return _STRUCT.pack(
                MAGIC,
                self.version,
                self.flags,
                self.capacity,
                self.grain,
                self.descriptor_offset,
                self.descriptor_size,
                self.gtes_per_gt,
                self.rgd_offset,
                self.gd_offset,
                self.overhead,
                int(self.unclean),
                newlines,
                self.compression,
            )
        except struct.error as error:
            raise FormatError(f"the sparse header cannot be written: {error}") from error


def parse(data: bytes, file: str, at: int = 0) -> SparseHeader:
    """The header in the first 512 bytes of `data`, which are at byte `at` of the file.

    `file` is the name for errors. Raises `FormatError` for what is wrong in
    itself, and `UnsupportedFormatError` for a version or a compression that is
    not known. Where in the file things are is for `check` to judge.
    """
    if len(data) < HEADER_BYTES:
        raise FormatError(
            f"a sparse extent starts with a header of {HEADER_BYTES} bytes, and there are only "
            f"{len(data)}; copy the file again, as a whole",
            file=file,
            offset=at,
            field="magicNumber",
        )
    magic, version, flags, *numbers, unclean, newlines, compression = _STRUCT.unpack(
        data[:HEADER_BYTES]
    )
    capacity, grain, descriptor, descriptor_size, gtes, rgd, gd, overhead = numbers
    found = SparseHeader(
        capacity=capacity,
        version=version,
        flags=flags,
        grain=grain,
        descriptor_offset=descriptor,
        descriptor_size=descriptor_size,
        gtes_per_gt=gtes,
        rgd_offset=rgd,
        gd_offset=gd,
        overhead=overhead,
        unclean=unclean != 0,
        compression=compression,
    )
    judge = _Judge(file, at)
    if magic != MAGIC:
        judge.fail("magicNumber", "this is no sparse extent: it does not start with KDMV")
    if version not in _VERSIONS:
        judge.unsupported("version", f"version {version} of sparse extents is not known, only 1-3")
    if flags & Flag.NEWLINES and newlines != _NEWLINES:
        judge.fail(
            "singleEndLineChar",
            "line ends in the header were changed, as by a transfer of the file as text; "
            "transfer the original as binary data",
        )
    _check_compression(found, judge)
    if capacity == 0 and descriptor:
        return found
    _check_sizes(found, judge)
    return found


def regions(header: SparseHeader) -> list[Region]:
    """The header itself, the descriptor and the directories, in the order of the fields.

    A directory that only the footer knows is left out.
    """
    found = [Region("magicNumber", 0, HEADER_BYTES)]
    if header.descriptor_offset:
        length = header.descriptor_size * SECTOR
        found.append(Region("descriptorOffset", header.descriptor_offset, length))
    if header.capacity:
        if header.has_redundant_directory:
            found.append(Region("rgdOffset", header.rgd_offset, header.gd_bytes))
        if header.gd_offset != GD_AT_END:
            found.append(Region("gdOffset", header.gd_offset, header.gd_bytes))
    return found


def check(header: SparseHeader, file: str, file_size: int, at: int = 0) -> None:
    """Raises `FormatError` unless the metadata is in the file, and apart from each other.

    `file_size` is in bytes; `at` is where the header is, for a footer.
    """
    judge = _Judge(file, at)
    _check_descriptor(header, judge)
    found = regions(header)
    for region in found:
        if region.start * SECTOR + region.length_bytes > file_size:
            judge.fail(
                region.field,
                f"sector {region.start} and the {region.length_bytes} bytes from there are not in "
                f"the file, which has {file_size} bytes; copy the file again, as a whole",
            )
    found.sort(key=lambda region: region.start)
    for before, after in pairwise(found):
        if after.start < before.end:
            later = max(before, after, key=lambda region: _PLACES[region.field])
            judge.fail(
                later.field,
                f"{before.field} and {after.field} are both at sector {after.start}; "
                "the header is damaged",
            )
    if header.overhead * SECTOR > file_size:
        judge.fail(
            "overHead",
            f"grains start at sector {header.overhead}, after the end of a file of {file_size} "
            "bytes; copy the file again, as a whole",
        )
    for region in found[1:]:
        # A directory may come after the grains, as in a stream, but not lie half among them.
        if region.end > header.overhead and (
            region.start < header.overhead or region.field == "descriptorOffset"
        ):
            judge.fail(
                "overHead",
                f"grains start at sector {header.overhead}, and {region.field} takes sectors "
                f"{region.start} to {region.end - 1}; the header is damaged",
            )


def _check_compression(header: SparseHeader, judge: _Judge) -> None:
    if header.compression not in (0, DEFLATE):
        judge.unsupported(
            "compressAlgorithm",
            f"compression {header.compression} is not known, only 0 (none) and 1 (deflate)",
        )
    if bool(header.flags & Flag.COMPRESSED) != header.compressed:
        judge.fail(
            "compressAlgorithm",
            f"flags {header.flags:#x} and compression {header.compression} disagree on whether "
            "grains are compressed; the header is damaged",
        )
    if header.has_markers and not header.compressed:
        judge.unsupported("flags", "grains behind markers that are not compressed are not known")


def _check_sizes(header: SparseHeader, judge: _Judge) -> None:
    if not 0 < header.capacity <= MAX_CAPACITY // SECTOR:
        judge.fail(
            "capacity",
            f"an extent has from 1 to {MAX_CAPACITY // SECTOR} sectors, not {header.capacity}",
        )
    most = MAX_COMPRESSED_GRAIN if header.compressed else MAX_GRAIN
    if not (_power_of_two(header.grain) and MIN_GRAIN <= header.grain <= most):
        judge.fail(
            "grainSize",
            f"a grain has a power of two from {MIN_GRAIN} to {most} sectors, not {header.grain}",
        )
    if not (_power_of_two(header.gtes_per_gt) and header.gtes_per_gt <= MAX_GTES):
        judge.fail(
            "numGTEsPerGT",
            f"a grain table has a power of two up to {MAX_GTES} entries, not {header.gtes_per_gt}",
        )
    if header.gd_bytes > MAX_GD_BYTES:
        judge.fail(
            "capacity",
            f"a capacity of {header.capacity} sectors needs a grain directory of "
            f"{header.gd_bytes} bytes, and at most {MAX_GD_BYTES} are read",
        )


def _check_descriptor(header: SparseHeader, judge: _Judge) -> None:
    if not header.descriptor_offset:
        return
    if not 0 < header.descriptor_size <= MAX_DESCRIPTOR_BYTES // SECTOR:
        judge.fail(
            "descriptorSize",
            f"an embedded descriptor has from 1 to {MAX_DESCRIPTOR_BYTES // SECTOR} sectors, "
            f"not {header.descriptor_size}",
        )


def _power_of_two(number: int) -> bool:
    return number > 0 and number & (number - 1) == 0


class _Judge:
    """Raises what a field of the header at byte `at` of `file` is found guilty of."""

    def __init__(self, file: str, at: int) -> None:
        self._file = file
        self._at = at

    def fail(self, field: str, message: str, kind: type[FormatError] = FormatError) -> NoReturn:
        raise kind(message, file=self._file, offset=self._at + _PLACES[field], field=field)

    def unsupported(self, field: str, message: str) -> NoReturn:
        self.fail(field, message, UnsupportedFormatError)
