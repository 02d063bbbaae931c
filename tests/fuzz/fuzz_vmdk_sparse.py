"""Fuzzes the headers and grain directories of sparse extents: KDMV, COWD, seSparse.

python tests/fuzz/fuzz_vmdk_sparse.py [corpus folder] [-max_total_time=SECONDS]
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from fdstash.errors import FormatError
from fdstash.formats.vmdk import cowd, grain_directory, markers, sesparse, sparse_header
from fdstash.formats.vmdk.grain_directory import Directory
from fdstash.formats.vmdk.sparse_header import GD_AT_END, MAX_GD_BYTES
from tests.fuzz.harness import run

NAME = "disk.vmdk"


def one_input(data: bytes) -> None:
    for judge in (hosted, esx, space_efficient):
        try:
            judge(data)
        except FormatError as error:
            assert error.file == NAME
            assert error.field
            assert error.offset is not None
            assert error.offset >= 0


def directories(data: bytes, places: list[tuple[str, int, int, int]], first: int) -> None:
    """Each place: field, sector, bytes of entries, bytes of a table."""
    found = []
    for field, sector, length, table_bytes in places:
        assert length <= MAX_GD_BYTES
        at = sector * 512
        assert at + length <= len(data)
        entries = grain_directory.decode(data[at : at + length])
        directory = Directory(NAME, field, at, entries, table_bytes)
        grain_directory.check(directory, len(data), first)
        assert all(entry * 512 + table_bytes <= len(data) for entry in entries if entry)
        found.append(directory)
    grain_directory.check_apart(found, [(0, first)], len(data))


def hosted(data: bytes) -> None:
    header = sparse_header.parse(data, NAME)
    again = sparse_header.parse(header.encode(), NAME)
    assert again == header
    sparse_header.check(header, NAME, len(data))
    if header.gd_offset == GD_AT_END and header.capacity:
        header = markers.read_footer(lambda n, at: data[at : at + n], header, NAME, len(data))
    places = [
        (region.field, region.start, region.length_bytes, header.gt_bytes)
        for region in sparse_header.regions(header)
        if region.field in ("gdOffset", "rgdOffset")
    ]
    directories(data, places, 1)


def esx(data: bytes) -> None:
    header = cowd.parse(data, NAME)
    assert cowd.parse(header.encode(), NAME) == header
    cowd.check(header, NAME, len(data))
    place = ("gdOffset", header.gd_offset, header.gd_bytes, cowd.GT_BYTES)
    directories(data, [place], cowd.HEADER_BYTES // 512)


def space_efficient(data: bytes) -> None:
    header = sesparse.parse(data, NAME)
    assert sesparse.parse(header.encode(), NAME) == header
    sesparse.check(header, NAME, len(data))
    at = header.volatile_header.offset * 512
    sesparse.parse_volatile(data[at : at + 512], header, NAME)
    at = header.grain_directory.offset * 512
    for place in range(at, at + header.gd_bytes, 8):
        entry = int.from_bytes(data[place : place + 8], "little")
        for layout in (sesparse.GD_ENTRY, sesparse.GT_ENTRY):
            decoded = layout.decode(entry, header)
            assert decoded is None or decoded[1] >= 0


if __name__ == "__main__":
    run(one_input, "vmdk_sparse")
