"""The markers of a streamOptimized extent, and the footer at its end.

Follows VMware's "Virtual Disk Format 5.0", section "Stream-Optimized Compressed".
A marker starts at a sector. That of a grain is 12 bytes, its data follow at once;
any other is a sector of its own, and metadata follow in whole sectors.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Callable
from typing import NamedTuple

from fdstash.errors import FormatError
from fdstash.formats.vmdk import sparse_header
from fdstash.formats.vmdk.compressed_grain import max_compressed_bytes
from fdstash.formats.vmdk.layout import SECTOR
from fdstash.formats.vmdk.sparse_header import GD_AT_END, HEADER_BYTES, SparseHeader

__all__ = [
    "FOOTER_FROM_END",
    "GRAIN_HEAD_BYTES",
    "MARKER_BYTES",
    "GrainMarker",
    "Marker",
    "MarkerType",
    "check_footer",
    "encode_grain",
    "parse",
    "read_footer",
    "sectors",
]

MARKER_BYTES = 512
#: Bytes of a grain marker before the data.
GRAIN_HEAD_BYTES = 12
#: The footer starts so many bytes before the end of the file; the end of stream follows.
FOOTER_FROM_END = 1024

_GRAIN = struct.Struct("<QI")
_MARKER = struct.Struct("<QII496x")
# What a stream must not say in two ways.
_SAME_IN_FOOTER = ("capacity", "grain", "gtes_per_gt", "compression")


class MarkerType(enum.IntEnum):
    """What follows a marker that is not a grain's."""

    END_OF_STREAM = 0
    GRAIN_TABLE = 1
    GRAIN_DIRECTORY = 2
    FOOTER = 3


class Marker(NamedTuple):
    """A marker of metadata."""

    type: MarkerType
    length: int = 0  #: of the metadata that follow, sectors

    def encode(self) -> bytes:
        """The 512 bytes."""
        return _MARKER.pack(self.length, 0, self.type)


class GrainMarker(NamedTuple):
    """The marker of a grain."""

    grain: int  #: its number in the extent, from 0
    size: int  #: bytes of the compressed data, never 0


def sectors(length: int) -> int:
    """How many sectors `length` bytes take."""
    return -(-length // SECTOR)


def encode_grain(header: SparseHeader, index: int, data: bytes) -> bytes:
    """The marker of the grain `index`, its compressed `data`, and zeros up to a sector."""
    marked = _GRAIN.pack(index * header.grain, len(data)) + data
    return marked.ljust(sectors(len(marked)) * SECTOR, b"\0")


def parse(data: bytes, header: SparseHeader, file: str, at: int) -> Marker | GrainMarker:
    """The marker in the sector `data`, which is at byte `at` of the file.

    `file` is the name for errors. Raises `FormatError` for a grain that is not
    one of the extent's, for one that is longer than any can be, for a type that
    is not known, and for metadata of another size than the header gives it.
    """
    if len(data) < MARKER_BYTES:
        raise FormatError(
            f"the file ends where a marker should be; it was cut off, copy it again ({len(data)} "
            f"of {MARKER_BYTES} bytes are there)",
            file=file,
            offset=at,
            field="marker",
        )
    value, size, number = _MARKER.unpack(data[:MARKER_BYTES])
    if size:
        return _grain(value, size, header, file, at)
    try:
        kind = MarkerType(number)
    except ValueError as error:
        raise FormatError(
            f"there is no marker of type {number}; the stream is damaged",
            file=file,
            offset=at + 12,
            field="marker type",
        ) from error
    table = header.gt_bytes // SECTOR
    fewest, most = {
        MarkerType.END_OF_STREAM: (0, 0),
        MarkerType.GRAIN_TABLE: (1, table),  # the last table may be cut
        MarkerType.GRAIN_DIRECTORY: (header.gd_sectors, header.gd_sectors),
        MarkerType.FOOTER: (1, 1),
    }[kind]
    if not fewest <= value <= most:
        raise FormatError(
            f"{value} sectors follow a marker of type {kind.name}, and it should be "
            f"{fewest} to {most}; the stream is damaged",
            file=file,
            offset=at,
            field="marker value",
        )
    return Marker(kind, value)


def _grain(value: int, size: int, header: SparseHeader, file: str, at: int) -> GrainMarker:
    index, rest = divmod(value, header.grain)
    if rest or index >= header.grain_count:
        raise FormatError(
            f"no grain starts at sector {value} of a disk of {header.capacity} sectors in grains "
            f"of {header.grain}; the stream is damaged",
            file=file,
            offset=at,
            field="marker value",
        )
    if size > max_compressed_bytes(header.grain_bytes):
        raise FormatError(
            f"a compressed grain has at most {max_compressed_bytes(header.grain_bytes)} bytes, "
            f"not {size}; the stream is damaged",
            file=file,
            offset=at + 8,
            field="marker size",
        )
    return GrainMarker(index, size)


def read_footer(
    read: Callable[[int, int], bytes], header: SparseHeader, file: str, file_size: int
) -> SparseHeader:
    """The footer of a file whose `header` says `GD_AT_END`: it knows where the directory is.

    Reads the last three sectors: the footer's marker, the footer, the end of the
    stream. `read(n, offset)` is in bytes. Raises `FormatError` where one of them is
    missing, and where the footer and the header describe different disks.
    """
    start = file_size - FOOTER_FROM_END - MARKER_BYTES
    tail = read(MARKER_BYTES + FOOTER_FROM_END, start) if start > 0 else b""
    if len(tail) < MARKER_BYTES + FOOTER_FROM_END:
        raise FormatError(
            f"a stream ends in a footer, and the file has only {file_size} bytes; copy it again, "
            "as a whole",
            file=file,
            offset=max(start, 0),
            field="footer",
        )
    for at, kind in (
        (0, MarkerType.FOOTER),
        (MARKER_BYTES + HEADER_BYTES, MarkerType.END_OF_STREAM),
    ):
        # As in QEMU, the count of a footer's marker may be left out.
        _value, size, number = _MARKER.unpack(tail[at : at + MARKER_BYTES])
        if size or number != kind:
            raise FormatError(
                f"the file does not end as a stream does, with {kind.name} here; "
                "it was cut off, copy it again",
                file=file,
                offset=start + at,
                field="footer marker",
            )
    at = start + MARKER_BYTES
    footer = sparse_header.parse(tail[MARKER_BYTES:], file, at)
    check_footer(footer, header, file, at)
    sparse_header.check(footer, file, file_size, at)
    return footer


def check_footer(footer: SparseHeader, header: SparseHeader, file: str, at: int) -> None:
    """Raises `FormatError` unless the `footer`, at byte `at`, fits the header."""
    for name in _SAME_IN_FOOTER:
        if getattr(footer, name) != getattr(header, name):
            raise FormatError(
                f"the footer has {name} {getattr(footer, name)}, the header "
                f"{getattr(header, name)}; the file is damaged",
                file=file,
                offset=at,
                field="footer",
            )
    if footer.gd_offset == GD_AT_END:
        raise FormatError(
            "the footer does not say where the grain directory is; the file is damaged",
            file=file,
            offset=at + 56,
            field="gdOffset",
        )
