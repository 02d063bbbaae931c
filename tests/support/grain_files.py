"""Sparse extents for tests, byte by byte: KDMV, COWD and seSparse, of any entries."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from fdstash.formats.vmdk import cowd, grain_directory
from fdstash.formats.vmdk.cowd import CowdHeader
from fdstash.formats.vmdk.sesparse import Area, SeSparseHeader, VolatileHeader
from fdstash.formats.vmdk.sparse_header import Flag, SparseHeader

__all__ = [
    "MAKERS",
    "SECTOR",
    "Contents",
    "descriptor",
    "esx",
    "hosted",
    "one_extent",
    "space_efficient",
]

SECTOR = 512
#: By the number of the grain: its bytes, or an entry of the grain table as it is to stand there.
Contents = Mapping[int, bytes | int]


def descriptor(
    *lines: str,
    cid: int = 0x12345678,
    parent_cid: int = 0xFFFFFFFF,
    hint: str | None = None,
    create_type: str = "custom",
) -> str:
    """The text of a descriptor with these extent lines; `hint`: what it calls its parent."""
    named = f'parentFileNameHint="{hint}"\n' if hint is not None else ""
    return (
        f"# Disk DescriptorFile\nversion=1\nCID={cid:08x}\nparentCID={parent_cid:08x}\n"
        f'createType="{create_type}"\n{named}\n# Extent description\n'
        + "".join(f"{line}\n" for line in lines)
        + "\n# The Disk Data Base\n#DDB\n"
    )


def _sectors(n: int) -> int:
    return -(-n // SECTOR)


def _put(data: bytearray, sector: int, part: bytes) -> None:
    end = sector * SECTOR + len(part)
    data.extend(bytes(max(0, end - len(data))))
    data[end - len(part) : end] = part


def _whole(data: bytearray) -> bytes:
    return bytes(data.ljust(_sectors(len(data)) * SECTOR, b"\0"))


def hosted(
    grains: int,
    content: Contents,
    *,
    grain: int = 8,
    gtes: int = 4,
    redundant: bool = True,
    text: str = "",
    **fields: Any,
) -> bytes:
    """A "KDMV" file of `grains` grains, with those tables that `content` needs.

    `grain`: its sectors; `gtes`: entries of a table; `text`: of an embedded descriptor;
    `fields`: of the header, whatever follows from the rest.
    """
    embedded = text.encode()
    tables, used = -(-grains // gtes), sorted({number // gtes for number in content})
    table_sectors = _sectors(gtes * 4)
    whole = _sectors(tables * 4) + len(used) * table_sectors
    places = [1 + _sectors(len(embedded)) + whole * copy for copy in range(1 + redundant)]
    overhead = -(-(places[-1] + whole) // 8) * 8
    header = SparseHeader(
        capacity=grains * grain,
        version=2,
        flags=Flag.NEWLINES | Flag.ZEROED_GRAIN | (Flag.REDUNDANT if redundant else 0),
        grain=grain,
        gtes_per_gt=gtes,
        descriptor_offset=1 if embedded else 0,
        descriptor_size=_sectors(len(embedded)),
        rgd_offset=places[0] if redundant else 0,
        gd_offset=places[-1],
        overhead=overhead,
    )
    data = bytearray(overhead * SECTOR)
    entries = _fill(data, content, overhead, grain)
    _put(data, 0, replace(header, **fields).encode())
    _put(data, 1, embedded)
    for place in places:
        first = place + _sectors(tables * 4)
        sectors = {page: first + n * table_sectors for n, page in enumerate(used)}
        _put(data, place, grain_directory.encode(sectors.get(page, 0) for page in range(tables)))
        for page, sector in sectors.items():
            _put(data, sector, _table(entries, range(page * gtes, (page + 1) * gtes)))
    return _whole(data)


def esx(grains: int, content: Contents, *, grain: int = 8, **fields: Any) -> bytes:
    """A "COWD" file of `grains` grains; its tables come last."""
    gtes = cowd.GTES_PER_GT
    tables, used = -(-grains // gtes), sorted({number // gtes for number in content})
    first = -(-(4 + _sectors(tables * 4)) // 8) * 8
    data = bytearray(first * SECTOR)
    entries = _fill(data, content, first, grain)
    directory = [0] * tables
    for page in used:
        directory[page] = _sectors(len(data))
        table = _table(entries, range(page * gtes, (page + 1) * gtes))
        _put(data, directory[page], table.ljust(cowd.GT_BYTES, b"\0"))
    header = CowdHeader(grains * grain, grain, gd_entries=tables, free_sector=_sectors(len(data)))
    _put(data, 0, replace(header, **fields).encode())
    _put(data, 4, grain_directory.encode(directory))
    return _whole(data)


def space_efficient(grains: int, content: Contents, **fields: Any) -> bytes:
    """An seSparse file of `grains` grains of 4 KiB; its tables come last."""
    tables, used = -(-grains // 4096), sorted({number // 4096 for number in content})
    gd = Area(8, _sectors(tables * 8))
    start = -(-gd.end // 8) * 8
    places = {n: i for i, (n, what) in enumerate(sorted(content.items())) if not _is_int(what)}
    room = 8 * max(1, len(content))
    header = SeSparseHeader(
        grains * 8,
        volatile_header=Area(1, 1),
        journal_header=Area(2, 2),
        journal=Area(4, 4),
        grain_directory=gd,
        grains=Area(start, room),
        grain_tables=Area(start + room, 64 * max(1, len(used))),
        free_bitmap=Area(start + room + 64 * max(1, len(used)), 8),
        back_map=Area(start + room + 64 * max(1, len(used)) + 8, 8),
    )
    data = bytearray(header.back_map.end * SECTOR)
    _put(data, 0, replace(header, **fields).encode())
    _put(data, 1, VolatileHeader().encode())
    entries = dict.fromkeys(range(tables * 4096), 0)
    for number, what in content.items():
        if isinstance(what, bytes):
            _put(data, start + 8 * places[number], what)
        entries[number] = what if isinstance(what, int) else 3 << 60 | places[number] << 48
    directory = [1 << 60 | used.index(n) if n in used else 0 for n in range(tables)]
    _put(data, gd.offset, struct.pack(f"<{tables}Q", *directory))
    for n, page in enumerate(used):
        table = (entries[each] for each in range(page * 4096, (page + 1) * 4096))
        _put(data, header.grain_tables.offset + 64 * n, struct.pack("<4096Q", *table))
    return _whole(data)


#: By the type of the extent line.
MAKERS: Mapping[str, Callable[[int, Contents], bytes]] = {
    "SPARSE": hosted,
    "VMFSSPARSE": esx,
    "SESPARSE": space_efficient,
}


def one_extent(folder: Path, kind: str, data: bytes, sectors: int) -> Path:
    """An image of one extent of this kind, which is `data`, in ``extent.bin``."""
    (folder / "extent.bin").write_bytes(data)
    path = folder / "disk.vmdk"
    path.write_text(descriptor(f'RW {sectors} {kind} "extent.bin"'))
    return path


def _is_int(what: bytes | int) -> bool:
    return isinstance(what, int)


def _fill(data: bytearray, content: Contents, sector: int, grain: int) -> dict[int, int]:
    """Put the grains from `sector` on; the entries of all."""
    entries = {}
    for number, what in sorted(content.items()):
        if isinstance(what, int):
            entries[number] = what
        else:
            entries[number] = sector
            _put(data, sector, what.ljust(grain * SECTOR, b"\0"))
            sector += grain
    return entries


def _table(entries: Mapping[int, int], numbers: Iterable[int]) -> bytes:
    return grain_directory.encode(entries.get(number, 0) for number in numbers)
