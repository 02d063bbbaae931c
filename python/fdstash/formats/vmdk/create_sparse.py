"""New sparse VMDK images: monolithicSparse, twoGbMaxExtentSparse, streamOptimized.

The layout is that of `qemu-img create`, which is VMware's: grains of 64 KiB, tables
of 512 entries, all of them there from the start, the redundant directory before
the other. An empty streamOptimized image is a stream of no grains, where QEMU
makes one with tables first.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import BinaryIO

from fdstash.errors import FormatError, OptionError
from fdstash.formats.staging import Staging
from fdstash.formats.vmdk import grain_directory, sparse_header
from fdstash.formats.vmdk.descriptor import ExtentLine
from fdstash.formats.vmdk.layout import SECTOR
from fdstash.formats.vmdk.new_disk import NewDisk
from fdstash.formats.vmdk.sparse_header import Flag, SparseHeader
from fdstash.formats.vmdk.stream_writer import DESCRIPTOR_SECTORS, StreamWriter

__all__ = ["SUBFORMATS", "new_header", "stage"]

SUBFORMATS = ("monolithicSparse", "twoGbMaxExtentSparse", "streamOptimized")

_LAST_SECTOR = 2**32 - 1


def stage(
    staging: Staging,
    disk: NewDisk,
    lengths: list[int],
    prefix: str,
    content: Iterable[tuple[int, bytes]] = (),
) -> None:
    """Puts the files of `disk` into `staging`: extents of `lengths` sectors, and what names them.

    `prefix` is the folder for extents in files of their own; `content` that of a
    stream, see `create`. Raises as that.
    """
    for length in lengths:
        _check_size(length, disk)
    _check_whole_grains(lengths)
    if disk.subformat == "twoGbMaxExtentSparse":
        extents = [
            ExtentLine("RW", length, "SPARSE", disk.extent_name(f"s{number:03}", prefix))
            for number, length in enumerate(lengths, start=1)
        ]
        text = disk.descriptor(extents)
        if prefix:
            staging.make_folder(disk.beside(prefix))
        for extent in extents:
            _stage_extent(staging, disk.beside(extent.name or ""), extent.sectors, disk, b"")
        staging.add_bytes(disk.path, text)
        return
    text = disk.descriptor([ExtentLine("RW", disk.sectors, "SPARSE", disk.name)])
    if len(text) >= DESCRIPTOR_SECTORS * SECTOR:
        raise FormatError(
            f"the descriptor has {len(text)} bytes, and it is to be less than "
            f"{DESCRIPTOR_SECTORS * SECTOR}; choose shorter names",
            file=disk.path,
            field="descriptor",
        )
    if disk.subformat == "monolithicSparse":
        _stage_extent(staging, disk.path, disk.sectors, disk, text)
        return

    def fill(file: BinaryIO) -> None:
        size = disk.sectors * SECTOR
        with StreamWriter(file, size, descriptor=text, zeroed_grain=disk.zeroed_grain) as stream:
            grain = stream.header.grain_bytes
            for offset, data in content:
                for at in range(0, len(data), grain):
                    stream.write_grain((offset + at) // grain, data[at : at + grain])

    staging.add_filled(disk.path, fill)


def new_header(capacity: int, *, zeroed_grain: bool = False) -> SparseHeader:
    """The header of a new extent of `capacity` sectors with all its tables before the grains."""
    header = SparseHeader(capacity)
    tables = header.gd_sectors + header.gt_count * (header.gt_bytes // SECTOR)
    redundant = 1 + DESCRIPTOR_SECTORS
    directory = redundant + tables
    flags = Flag.NEWLINES | Flag.REDUNDANT
    return SparseHeader(
        capacity=capacity,
        version=2 if zeroed_grain else 1,
        flags=flags | Flag.ZEROED_GRAIN if zeroed_grain else flags,
        descriptor_offset=1,
        descriptor_size=DESCRIPTOR_SECTORS,
        rgd_offset=redundant,
        gd_offset=directory,
        overhead=-(-(directory + tables) // header.grain) * header.grain,
    )


def _check_size(sectors: int, disk: NewDisk) -> None:
    header = SparseHeader(sectors)
    if header.gd_bytes > sparse_header.MAX_GD_BYTES or new_header(sectors).overhead > _LAST_SECTOR:
        most = sparse_header.MAX_GD_BYTES // 4 * header.gt_coverage_bytes
        raise OptionError(
            f"a sparse extent has at most {most} bytes, not {sectors * SECTOR}; "
            f"{disk.subformat} cannot be as large",
            option="size",
        )


def _check_whole_grains(lengths: list[int]) -> None:
    """After an extent that ends inside a grain, QEMU and libvmdk lose their way in the next one."""
    grain = SparseHeader(0).grain
    if any(length % grain for length in lengths[:-1]):
        raise OptionError(
            f"extent_size must be a multiple of {grain * SECTOR} bytes, which are a grain, "
            f"not {lengths[0] * SECTOR}: other programs read the disk wrong else",
            option="extent_size",
        )


def _stage_extent(staging: Staging, path: str, sectors: int, disk: NewDisk, text: bytes) -> None:
    header = new_header(sectors, zeroed_grain=disk.zeroed_grain)

    def fill(file: BinaryIO) -> None:
        file.write(header.encode() + text)
        for offset in (header.rgd_offset, header.gd_offset):
            first = offset + header.gd_sectors
            step = header.gt_bytes // SECTOR
            file.seek(offset * SECTOR)
            file.write(grain_directory.encode(range(first, first + header.gt_count * step, step)))
        file.truncate(header.overhead * SECTOR)

    staging.add_filled(path, fill)
