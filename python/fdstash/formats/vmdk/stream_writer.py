"""Writes a streamOptimized extent in one pass, as VMware's tools expect it.

Follows VMware's "Virtual Disk Format 5.0", section "Stream-Optimized Compressed":
header, descriptor, grains, the grain table after the grains that it covers, the
grain directory, the footer, the end of the stream; a marker before each.
"""

from __future__ import annotations

import errno
from types import TracebackType
from typing import Protocol, Self

from fdstash.errors import ClosedError, FormatError, OptionError, os_error
from fdstash.formats.vmdk import grain_directory, markers, sparse_header
from fdstash.formats.vmdk.compressed_grain import deflate
from fdstash.formats.vmdk.descriptor import MAX_BYTES as MAX_DESCRIPTOR_BYTES
from fdstash.formats.vmdk.layout import SECTOR
from fdstash.formats.vmdk.markers import Marker, MarkerType
from fdstash.formats.vmdk.sparse_header import DEFLATE, GD_AT_END, Flag, SparseHeader

__all__ = ["DESCRIPTOR_SECTORS", "Output", "StreamWriter"]

#: Sectors for the embedded descriptor: QEMU reads and writes no more of it.
DESCRIPTOR_SECTORS = 20

# Version 3 is what ESX and QEMU write for streams.
_VERSION = 3
# An entry of a table: a sector, where 1 can be none.
_ZEROS = 1
_LARGEST_ENTRY = 2**32 - 1


class Output(Protocol):
    """Where a stream goes: a binary file open for writing, or anything like it."""

    def write(self, data: memoryview, /) -> int | None:
        """Takes some of `data` and says how many bytes; None where it would have to wait."""


class StreamWriter:
    """A streamOptimized extent of `capacity` bytes, written to `output` as it comes.

    `grain_sectors` is the size of a grain in sectors of 512 bytes, `level` zlib's,
    `descriptor` the text to embed. Give grains in ascending order with
    `write_grain`, leave out what is not there, and end with `close`; as a context
    manager it does so where nothing was raised. `output` stays open.

    With `zeroed_grain` a grain of zeros is noted as such, else it is left out: for
    an image with a parent that is not the same. A grain that is not written at
    all is the parent's, or reads as zeros.

    Holds one grain table and the directory, four bytes for each 512 grains. Raises
    `OptionError` for arguments that do not fit, and what `output` raises, after
    which the stream is not complete and cannot be. Threads: one at a time.
    """

    header: SparseHeader  #: as it stands at the start of the stream

    def __init__(
        self,
        output: Output,
        capacity: int,
        grain_sectors: int = 128,
        level: int = 6,
        descriptor: bytes = b"",
        *,
        zeroed_grain: bool = False,
    ) -> None:
        if capacity <= 0 or capacity % SECTOR:
            raise OptionError(
                f"a capacity is whole sectors of {SECTOR} bytes, not {capacity}", option="capacity"
            )
        if not -1 <= level <= 9:
            raise OptionError(f"level must be from -1 to 9, not {level}", option="level")
        size = max(DESCRIPTOR_SECTORS, markers.sectors(len(descriptor) + 1))
        if size * SECTOR > MAX_DESCRIPTOR_BYTES:
            raise OptionError(
                f"a descriptor has less than {MAX_DESCRIPTOR_BYTES} bytes", option="descriptor"
            )
        self._output = output
        self._level = level
        self._zeroed = zeroed_grain
        flags = Flag.NEWLINES | Flag.COMPRESSED | Flag.MARKERS
        self.header = SparseHeader(
            capacity=capacity // SECTOR,
            version=_VERSION,
            flags=flags | Flag.ZEROED_GRAIN if zeroed_grain else flags,
            grain=grain_sectors,
            descriptor_offset=1,
            descriptor_size=size,
            gd_offset=GD_AT_END,
            overhead=-(-(1 + size) // max(grain_sectors, 1)) * grain_sectors,
            compression=DEFLATE,
        )
        try:
            start = self.header.encode()
            sparse_header.parse(start, "")
        except FormatError as error:
            names = {"capacity": "capacity", "grainSize": "grain_sectors"}
            option = names.get(error.field or "")
            raise OptionError(error.message, option=option) from error
        self._at = 0  # bytes written, a multiple of a sector
        self._next = 0  # the first grain that may be written
        self._table = [0] * self.header.gtes_per_gt
        self._directory = grain_directory.decode(bytes(self.header.gd_bytes))
        self._closed = False
        self._broken = False
        self._write(start + descriptor, self.header.overhead)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()

    def write_grain(self, index: int, data: bytes) -> None:
        """Writes the grain `index`, counted from 0, which is after all those before.

        `data` are its bytes: all of a grain, or of the last one those that are
        within the capacity.
        """
        self._check_open()
        header = self.header
        if not self._next <= index < header.grain_count:
            raise OptionError(
                f"the next grain is from {self._next} to {header.grain_count - 1}, not {index}",
                option="index",
            )
        if len(data) not in (header.grain_bytes, header.grain_length(index)):
            raise OptionError(
                f"grain {index} has {header.grain_length(index)} bytes, not {len(data)}",
                option="data",
            )
        place = index % header.gtes_per_gt
        if index // header.gtes_per_gt != max(self._next - 1, 0) // header.gtes_per_gt:
            self._write_table()
        self._next = index + 1
        if data.count(0) == len(data):
            self._table[place] = _ZEROS if self._zeroed else 0
            return
        # Whole also where the disk ends inside it, for readers that want all grains alike.
        packed = deflate(data.ljust(header.grain_bytes, b"\0"), self._level)
        self._table[place] = self._sector()
        self._write(markers.encode_grain(header, index, packed))

    def close(self) -> None:
        """Writes what comes after the grains. Once only; the stream is complete then."""
        if self._closed:
            return
        self._check_open()
        header = self.header
        self._write_table()
        directory = grain_directory.encode(self._directory)
        self._write(Marker(MarkerType.GRAIN_DIRECTORY, header.gd_sectors).encode())
        footer = SparseHeader(
            capacity=header.capacity,
            version=header.version,
            flags=header.flags,
            grain=header.grain,
            descriptor_offset=header.descriptor_offset,
            descriptor_size=header.descriptor_size,
            gd_offset=self._sector(),
            overhead=header.overhead,
            compression=header.compression,
        )
        self._write(directory, header.gd_sectors)
        self._write(Marker(MarkerType.FOOTER, 1).encode() + footer.encode())
        self._write(Marker(MarkerType.END_OF_STREAM).encode())
        self._closed = True

    def _write_table(self) -> None:
        """Writes the table of the last grain, and starts the next one."""
        if not any(self._table):
            return
        header = self.header
        number = (self._next - 1) // header.gtes_per_gt
        self._write(Marker(MarkerType.GRAIN_TABLE, header.gt_bytes // SECTOR).encode())
        self._directory[number] = self._sector()
        self._write(grain_directory.encode(self._table), header.gt_bytes // SECTOR)
        self._table = [0] * header.gtes_per_gt

    def _sector(self) -> int:
        """The sector that is written next, as an entry can refer to it."""
        sector = self._at // SECTOR
        if sector > _LARGEST_ENTRY:
            raise FormatError(
                "the stream is longer than the 2 TiB that a grain table can refer to; "
                "split the disk into several extents",
                field="grain table entry",
            )
        return sector

    def _write(self, data: bytes, sectors: int = 0) -> None:
        """Writes `data`, and zeros up to `sectors` sectors."""
        self._broken = True  # until all of it is written
        view = memoryview(data.ljust(sectors * SECTOR, b"\0"))
        self._at += len(view)
        while view:
            taken = self._output.write(view)
            if taken is None:
                raise os_error(errno.EAGAIN, message="a stream needs an output that blocks")
            view = view[taken:]
        self._broken = False

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError("the stream is complete; nothing can be added to it")
        if self._broken:
            raise ClosedError("a write to the stream failed, and it cannot go on")
