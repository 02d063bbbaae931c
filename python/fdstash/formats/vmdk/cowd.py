"""The header of an ESX sparse extent ("COWD"), which descriptors call VMFSSPARSE.

Follows VMware's "Virtual Disk Format 5.0", section "ESXi Host Sparse Extents", and
libvmdk's description of the fields that it leaves out. Lengths and places are
sectors of 512 bytes, but for names that end in `bytes`.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import NoReturn

from fdstash.errors import FormatError, UnsupportedFormatError
from fdstash.formats.vmdk.layout import SECTOR

__all__ = [
    "GTES_PER_GT",
    "GT_BYTES",
    "HEADER_BYTES",
    "MAGIC",
    "MAX_GD_BYTES",
    "MAX_GRAIN",
    "ROOT",
    "CowdHeader",
    "check",
    "parse",
]

MAGIC = b"COWD"
HEADER_BYTES = 2048
#: Entries of a grain table, always.
GTES_PER_GT = 4096
GT_BYTES = GTES_PER_GT * 4
#: QEMU's limit, 1 GiB. Products write grains of one sector.
MAX_GRAIN = 1 << 21
#: Bytes of a grain directory.
MAX_GD_BYTES = 8 << 20
#: The bit of `CowdHeader.flags` that says that no parent is named in the header.
ROOT = 1

_VERSION = 1
_STRUCT = struct.Struct("<4s7I1028sI60s512sI8xI396x")
_GEOMETRY = struct.Struct("<III1016x")
_PARENT = struct.Struct("<1024sI")
# Where each field is in the header, by the names that VMware gives them.
_PLACES = {
    "magicNumber": 0,
    "version": 4,
    "flags": 8,
    "numSectors": 12,
    "grainSize": 16,
    "gdOffset": 20,
    "numGDEntries": 24,
    "freeSector": 28,
    "parentFileName": 32,
}


@dataclass(frozen=True, slots=True)
class CowdHeader:
    """What the header says, and what follows from it.

    Who the parent is the descriptor says; ESX leaves the names in here empty.
    Text is bytes as they stand, up to the first NUL.
    """

    capacity: int
    grain: int = 1  #: a power of two
    gd_offset: int = 4
    gd_entries: int = 0
    free_sector: int = 0  #: the next grain or table goes there; QEMU does not keep it
    version: int = 1
    flags: int = 3
    cylinders: int = 0  #: with `ROOT` only, as are the next two
    heads: int = 0
    sectors_per_track: int = 0
    parent_name: bytes = b""  #: without `ROOT` only, as is the next one
    parent_generation: int = 0
    generation: int = 0
    name: bytes = b""
    description: bytes = b""
    saved_generation: int = 0
    unclean: bool = False  #: the file was not closed

    @property
    def grain_bytes(self) -> int:
        """Guest bytes of a grain."""
        return self.grain * SECTOR

    @property
    def grain_count(self) -> int:
        """Grains of the extent, the last of which may be cut by the capacity."""
        return -(-self.capacity // self.grain)

    @property
    def gt_count(self) -> int:
        """Grain tables that the capacity needs; `gd_entries` is no less."""
        return -(-self.grain_count // GTES_PER_GT)

    @property
    def gt_coverage_bytes(self) -> int:
        """Guest bytes that one grain table covers."""
        return GTES_PER_GT * self.grain_bytes

    @property
    def gd_bytes(self) -> int:
        """Bytes of the entries of the directory."""
        return self.gd_entries * 4

    @property
    def gd_end(self) -> int:
        """The first sector after the directory."""
        return self.gd_offset + -(-self.gd_bytes // SECTOR)

    def encode(self) -> bytes:
        """The 2048 bytes. Raises `FormatError` for what its field cannot hold."""
        for field, text, room in (
            ("parentFileName", self.parent_name, 1024),
            ("name", self.name, 60),
            ("description", self.description, 512),
        ):
            if len(text) > room or b"\0" in text:
                raise FormatError(
                    f"{field} cannot be written: it has room for {room} bytes without NUL",
                    field=field,
                )
        try:
            if self.flags & ROOT:
                union = _GEOMETRY.pack(self.cylinders, self.heads, self.sectors_per_track)
            else:
                union = _PARENT.pack(self.parent_name, self.parent_generation)
            return _STRUCT.pack(
                MAGIC,
                self.version,
                self.flags,
                self.capacity,
                self.grain,
                self.gd_offset,
                self.gd_entries,
                self.free_sector,
                union,
                self.generation,
                self.name,
                self.description,
                self.saved_generation,
                int(self.unclean),
            )
        except struct.error as error:
            raise FormatError(f"the COWD header cannot be written: {error}") from error


def parse(data: bytes, file: str) -> CowdHeader:
    """The header in the first 2048 bytes of `data`, the start of the file.

    `file` is the name for errors. Raises `FormatError` for what is wrong in
    itself, and `UnsupportedFormatError` for a version that is not known. Where
    in the file things are is for `check` to judge.
    """
    judge = _Judge(file)
    if len(data) < HEADER_BYTES:
        judge.fail(
            "magicNumber",
            f"an ESX sparse extent starts with a header of {HEADER_BYTES} bytes, and there are "
            f"only {len(data)}; copy the file again, as a whole",
        )
    (
        magic, version, flags, capacity, grain, gd_offset, gd_entries, free_sector, union,
        generation, name, description, saved_generation, unclean,
    ) = _STRUCT.unpack(data[:HEADER_BYTES])  # fmt: skip
    if magic != MAGIC:
        judge.fail("magicNumber", "this is no ESX sparse extent: it does not start with COWD")
    if version != _VERSION:
        judge.fail(
            "version",
            f"version {version} of ESX sparse extents is not known, only {_VERSION}",
            UnsupportedFormatError,
        )
    geometry = _GEOMETRY.unpack(union) if flags & ROOT else (0, 0, 0)
    parent = (b"", 0) if flags & ROOT else _PARENT.unpack(union)
    found = CowdHeader(
        capacity,
        grain,
        gd_offset,
        gd_entries,
        free_sector,
        version,
        flags,
        geometry[0],
        geometry[1],
        geometry[2],
        parent_name=_text(parent[0]),
        parent_generation=parent[1],
        generation=generation,
        name=_text(name),
        description=_text(description),
        saved_generation=saved_generation,
        unclean=unclean != 0,
    )
    _check_sizes(found, judge)
    return found


def check(header: CowdHeader, file: str, file_size: int) -> None:
    """Raises `FormatError` unless the directory is in the file and after the header.

    `file_size` is in bytes.
    """
    judge = _Judge(file)
    if header.gd_offset < HEADER_BYTES // SECTOR:
        judge.fail(
            "gdOffset",
            f"the grain directory is at sector {header.gd_offset}, in the header, which has "
            f"{HEADER_BYTES // SECTOR} sectors; the header is damaged",
        )
    if header.gd_offset * SECTOR + header.gd_bytes > file_size:
        judge.fail(
            "gdOffset",
            f"sector {header.gd_offset} and the {header.gd_bytes} bytes from there are not in the "
            f"file, which has {file_size} bytes; copy the file again, as a whole",
        )
    # A power cut may leave it beyond the end of a file that had not grown yet.
    if header.free_sector < header.gd_end:
        judge.fail(
            "freeSector",
            f"the next free sector is after the directory, which ends at {header.gd_end}, and not "
            f"{header.free_sector}; the header is damaged",
        )


def _check_sizes(header: CowdHeader, judge: _Judge) -> None:
    if header.capacity == 0:
        judge.fail("numSectors", "an extent of no sectors")
    grain = header.grain
    if not 1 <= grain <= MAX_GRAIN or grain & (grain - 1):
        judge.fail(
            "grainSize", f"a grain has a power of two up to {MAX_GRAIN} sectors, not {grain}"
        )
    if not header.gt_count <= header.gd_entries <= MAX_GD_BYTES // 4:
        judge.fail(
            "numGDEntries",
            f"a grain directory for {header.capacity} sectors has from {header.gt_count} to "
            f"{MAX_GD_BYTES // 4} entries, not {header.gd_entries}",
        )


def _text(data: bytes) -> bytes:
    return data.partition(b"\0")[0]


class _Judge:
    """Raises what a field of the header of `file` is found guilty of."""

    def __init__(self, file: str) -> None:
        self._file = file

    def fail(self, field: str, message: str, kind: type[FormatError] = FormatError) -> NoReturn:
        raise kind(message, file=self._file, offset=_PLACES[field], field=field)
