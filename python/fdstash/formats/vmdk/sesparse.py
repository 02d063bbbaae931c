"""The headers of a space-efficient sparse extent (seSparse), and what its entries mean.

VMware has not published the format. What is known is what QEMU's driver reads,
and nothing else is taken for granted: any value that it does not know is refused.
Lengths and places are sectors of 512 bytes, but for names that end in `bytes`.
"""

from __future__ import annotations

import struct
from dataclasses import astuple, dataclass
from typing import NamedTuple, NoReturn

from fdstash.errors import FormatError, UnsupportedFormatError
from fdstash.formats.base import MAX_OFFSET, Kind
from fdstash.formats.vmdk.layout import MAX_CAPACITY, SECTOR

__all__ = [
    "GD_ENTRY",
    "GRAIN",
    "GTES_PER_GT",
    "GT_BYTES",
    "GT_ENTRY",
    "HEADER_BYTES",
    "MAX_GD_BYTES",
    "Area",
    "EntryLayout",
    "Part",
    "SeSparseHeader",
    "VolatileHeader",
    "check",
    "parse",
    "parse_volatile",
]

HEADER_BYTES = 512
#: Sectors of a grain, always.
GRAIN = 8
#: Entries of a grain table, always.
GTES_PER_GT = 4096
GT_BYTES = GTES_PER_GT * 8
#: Bytes of a grain directory: enough for 64 TiB, the largest disk that ESX makes.
MAX_GD_BYTES = 32 << 20

_MAGIC = 0x00000000CAFEBABE
_VERSION = 0x0000000200000001
_VOLATILE_MAGIC = 0x00000000CAFECAFE
_GT_SECTORS = GT_BYTES // SECTOR
# The numbers of the constant header, 64 bits each, little-endian; zeros follow.
_STRUCT = struct.Struct("<26Q")
_VOLATILE = struct.Struct("<4Q")
_AREAS = (
    "volatileHeader",
    "journalHeader",
    "journal",
    "grainDirectory",
    "grainTables",
    "freeBitmap",
    "backMap",
    "grains",
)
_FIRST_AREA_BYTES = 10 * 8
# Those that are read before a grain is; the others may be longer than what is there yet.
_NEEDED = ("volatileHeader", "grainDirectory")


class Area(NamedTuple):
    """A part of the file."""

    offset: int
    size: int

    @property
    def end(self) -> int:
        """The first sector after it."""
        return self.offset + self.size


@dataclass(frozen=True, slots=True)
class SeSparseHeader:
    """The constant header: where in the file everything is."""

    capacity: int
    volatile_header: Area
    journal_header: Area
    journal: Area
    grain_directory: Area
    grain_tables: Area
    free_bitmap: Area
    back_map: Area  #: from grains to guest sectors
    grains: Area

    @property
    def areas(self) -> dict[str, Area]:
        """All parts but this header itself, by the name that errors give them."""
        return dict(zip(_AREAS, (Area(*pair) for pair in astuple(self)[1:]), strict=True))

    @property
    def grain_count(self) -> int:
        """Grains of the extent, the last of which may be cut by the capacity."""
        return -(-self.capacity // GRAIN)

    @property
    def gt_count(self) -> int:
        """Grain tables that the capacity needs."""
        return -(-self.grain_count // GTES_PER_GT)

    @property
    def gd_bytes(self) -> int:
        """Bytes of the entries of the directory that the capacity needs."""
        return self.gt_count * 8

    def encode(self) -> bytes:
        """The 512 bytes. Raises `FormatError` for a number that its field cannot hold."""
        numbers = [number for area in self.areas.values() for number in area]
        try:
            head = _STRUCT.pack(
                _MAGIC, _VERSION, self.capacity, GRAIN, _GT_SECTORS, *[0] * 5, *numbers
            )
        except struct.error as error:
            raise FormatError(f"the seSparse header cannot be written: {error}") from error
        return head.ljust(HEADER_BYTES, b"\0")


@dataclass(frozen=True, slots=True)
class VolatileHeader:
    """The header that changes with the image."""

    free_gt_number: int = 0  #: the next grain table that is free
    next_sequence: int = 0  #: of the journal's transactions
    replay: bool = False  #: the journal holds what the tables do not yet

    def encode(self) -> bytes:
        """The 512 bytes."""
        numbers = (self.free_gt_number, self.next_sequence, int(self.replay))
        return _VOLATILE.pack(_VOLATILE_MAGIC, *numbers).ljust(HEADER_BYTES, b"\0")


class Part(NamedTuple):
    """Some bits of an entry, and where in the number that they make they belong."""

    mask: int
    shift: int  #: positive: to the left; negative: to the right

    def of(self, entry: int) -> int:
        """This part's share in the number."""
        bits = entry & self.mask
        return bits << self.shift if self.shift >= 0 else bits >> -self.shift


class EntryLayout(NamedTuple):
    """How a 64-bit entry is read: ``kinds[(entry & kind_mask) >> kind_shift]``, and a number.

    The number is the sum of `parts`, and counts units of `unit_bytes` from the
    start of the area `area`. A kind that is not in `kinds` is damage, and so is any
    other bit of `must_be_zero`, or any bit at all in a hole.
    """

    kind_mask: int
    kind_shift: int
    kinds: dict[int, Kind]
    parts: tuple[Part, ...]
    must_be_zero: int
    unit_bytes: int
    area: str

    def decode(self, entry: int, header: SeSparseHeader) -> tuple[Kind, int] | None:
        """The kind and, for data, the byte in the file; None if the entry is damaged."""
        kind = self.kinds.get((entry & self.kind_mask) >> self.kind_shift)
        if kind is None or (kind == Kind.HOLE and entry) or entry & self.must_be_zero:
            return None
        if kind != Kind.DATA:
            return kind, 0
        number = sum(part.of(entry) for part in self.parts)
        offset = header.areas[self.area].offset * SECTOR + number * self.unit_bytes
        return None if offset + self.unit_bytes > MAX_OFFSET else (kind, offset)


#: An entry of the directory. The upper half says that there is a table, the
#: lower half is its number: a disk of 64 TiB has but 2**22 of them.
GD_ENTRY = EntryLayout(
    kind_mask=0xF << 60,
    kind_shift=60,
    kinds={0: Kind.HOLE, 1: Kind.DATA},
    parts=(Part(0xFFFFFFFF, 0),),
    must_be_zero=0x0FFFFFFF << 32,
    unit_bytes=GT_BYTES,
    area="grainTables",
)

#: An entry of a table: nothing, unmapped by the guest, zeros, or a grain, whose
#: number has its lowest 12 bits in bits 48 to 59 and the others in bits 0 to 47.
GT_ENTRY = EntryLayout(
    kind_mask=0xF << 60,
    kind_shift=60,
    kinds={0: Kind.HOLE, 1: Kind.ZERO, 2: Kind.ZERO, 3: Kind.DATA},
    parts=(Part(0xFFF << 48, -48), Part((1 << 48) - 1, 12)),
    must_be_zero=0,
    unit_bytes=GRAIN * SECTOR,
    area="grains",
)


def parse(data: bytes, file: str) -> SeSparseHeader:
    """The constant header in the first 512 bytes of `data`, the start of the file.

    `file` is the name for errors. Raises `FormatError`, and `UnsupportedFormatError`
    for whatever is not known of the format.
    """
    judge = _Judge(file)
    if len(data) < HEADER_BYTES:
        judge.fail(
            "magic",
            0,
            f"an seSparse extent starts with a header of {HEADER_BYTES} bytes, and there are only "
            f"{len(data)}; copy the file again, as a whole",
        )
    numbers = _STRUCT.unpack_from(data)
    if numbers[0] != _MAGIC:
        judge.fail("magic", 0, f"this is no seSparse extent: it starts with {numbers[0]:#018x}")
    for place, field, known in (
        (1, "version", _VERSION),
        (3, "grainSize", GRAIN),
        (4, "grainTableSize", _GT_SECTORS),
        (5, "flags", 0),
        *((place, "reserved", 0) for place in range(6, 10)),
    ):
        if numbers[place] != known:
            judge.unknown(field, 8 * place, f"{numbers[place]:#x}", f"{known:#x}")
    _check_padding(data, _STRUCT.size, judge)
    areas = (Area(*numbers[at : at + 2]) for at in range(10, 26, 2))
    found = SeSparseHeader(numbers[2], *areas)
    if not 0 < found.capacity <= MAX_CAPACITY // SECTOR:
        judge.fail(
            "capacity",
            16,
            f"an extent has from 1 to {MAX_CAPACITY // SECTOR} sectors, not {found.capacity}",
        )
    size = found.grain_directory.size
    if not found.gd_bytes <= size * SECTOR <= MAX_GD_BYTES:
        judge.fail_area(
            "grainDirectory",
            f"a grain directory for {found.capacity} sectors has from {found.gd_bytes} to "
            f"{MAX_GD_BYTES} bytes, not {size} sectors",
            field="size",
        )
    return found


def check(header: SeSparseHeader, file: str, file_size: int) -> None:
    """Raises `FormatError` unless the parts are apart, and what is read first is in the file.

    `file_size` is in bytes. A table or a grain is to be looked for in the file
    when an entry leads to it.
    """
    judge = _Judge(file)
    for name, area in header.areas.items():
        if area.end * SECTOR > MAX_OFFSET:
            judge.fail_area(name, f"it ends beyond the largest offset of a file, {MAX_OFFSET}")
        if name in _NEEDED and (area.size == 0 or area.end * SECTOR > file_size):
            judge.fail_area(
                name,
                f"sectors {area.offset} to {area.end} are not in the file, which has {file_size} "
                "bytes; copy the file again, as a whole",
            )
    used = [(area.offset, area.end, name) for name, area in header.areas.items() if area.size]
    end, last = 1, "the header"
    for start, stop, name in sorted(used):
        if start < end:
            judge.fail_area(name, f"it starts at sector {start}, inside {last}, up to {end}")
        end, last = stop, name


def parse_volatile(data: bytes, header: SeSparseHeader, file: str) -> VolatileHeader:
    """The volatile header in `data`, which was read at ``header.volatile_header``.

    Raises `FormatError`, and `UnsupportedFormatError` for a journal that has to be
    replayed: until an ESX host has done so, the tables are not those of the image.
    """
    at = header.volatile_header.offset * SECTOR
    judge = _Judge(file, at)
    if len(data) < HEADER_BYTES:
        judge.fail(
            "volatile magic",
            0,
            f"the volatile header has {HEADER_BYTES} bytes, and there are only {len(data)}; "
            "copy the file again, as a whole",
        )
    magic, free_gt_number, next_sequence, replay = _VOLATILE.unpack_from(data)
    if magic != _VOLATILE_MAGIC:
        judge.fail("volatile magic", 0, f"the volatile header starts with {magic:#018x}")
    if replay:
        judge.fail(
            "replayJournal",
            24,
            "the journal is to be replayed, which is not done here; "
            "let an ESX host open and close the disk first",
            UnsupportedFormatError,
        )
    _check_padding(data, _VOLATILE.size, judge)
    return VolatileHeader(free_gt_number, next_sequence)


def _check_padding(data: bytes, start: int, judge: _Judge) -> None:
    padding = data[start:HEADER_BYTES]
    if padding.strip(b"\0"):
        at = len(padding) - len(padding.lstrip(b"\0"))
        judge.unknown("padding", start + at, f"{padding[at]:#x}", "0x0")


class _Judge:
    """Raises what a field of the header at byte `at` of `file` is found guilty of."""

    def __init__(self, file: str, at: int = 0) -> None:
        self._file = file
        self._at = at

    def fail(
        self, field: str, place: int, message: str, kind: type[FormatError] = FormatError
    ) -> NoReturn:
        raise kind(message, file=self._file, offset=self._at + place, field=field)

    def fail_area(self, name: str, message: str, *, field: str = "offset") -> NoReturn:
        place = _FIRST_AREA_BYTES + 16 * _AREAS.index(name) + 8 * (field == "size")
        self.fail(f"{name} {field}", place, f"{message}; the header is damaged")

    def unknown(self, field: str, place: int, value: str, known: str) -> NoReturn:
        self.fail(
            field,
            place,
            f"{value} is not known here, only {known}: the format is not published",
            UnsupportedFormatError,
        )
