"""`check` sees each kind of damage, and repairs what can be repaired without loss."""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

import fdstash
from fdstash.formats.check import Severity
from fdstash.formats.vmdk import grain_directory, sparse_header
from fdstash.formats.vmdk.sparse_header import SparseHeader
from tests.support.qemu_tools import qemu_img

GRAIN = 65536
SIZE = 80 << 20  # three tables
USED = (0, 1, 5, 513, 1030)


class Extent:
    """A monolithicSparse, looked at and damaged without the driver."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.header: SparseHeader = sparse_header.parse(path.read_bytes()[:512], str(path))

    def table(self, page: int, *, redundant: bool = False) -> int:
        """Where a table is, bytes."""
        sector = self.header.rgd_offset if redundant else self.header.gd_offset
        return 512 * struct.unpack("<I", self.at(512 * sector + 4 * page, 4))[0]

    def at(self, offset: int, n: int) -> bytes:
        with self.path.open("rb") as file:
            file.seek(offset)
            return file.read(n)

    def put(self, offset: int, data: bytes) -> None:
        with self.path.open("r+b") as file:
            file.seek(offset)
            file.write(data)

    def entry(self, grain: int, *, redundant: bool = False) -> int:
        return self.table(grain // 512, redundant=redundant) + 4 * (grain % 512)

    def sector(self, grain: int, *, redundant: bool = False) -> int:
        found: int = struct.unpack("<I", self.at(self.entry(grain, redundant=redundant), 4))[0]
        return found

    def set(self, grain: int, sector: int, *, both: bool = True) -> None:
        self.put(self.entry(grain), struct.pack("<I", sector))
        if both:
            self.put(self.entry(grain, redundant=True), struct.pack("<I", sector))


@pytest.fixture
def extent(tmp_path: Path) -> Extent:
    path = tmp_path / "disk.vmdk"
    fdstash.create(path, "vmdk", SIZE, subformat="monolithicSparse")
    pick = random.Random(3)
    with fdstash.open(path, "r+") as image:
        for grain in USED:
            image.pwrite(pick.randbytes(GRAIN), grain * GRAIN)
    return Extent(path)


def content(path: Path) -> bytes:
    with fdstash.open(path) as image:
        return image.pread(image.size, 0)


def test_a_good_image_is_clean_and_counted(extent: Extent) -> None:
    report = fdstash.check(extent.path)
    assert report.clean
    assert report.findings == []
    assert report.total_clusters == SIZE // GRAIN
    assert report.allocated_clusters == len(USED)
    assert report.image_end == extent.path.stat().st_size


@pytest.mark.parametrize("redundant", [False, True])
def test_a_table_outside_the_file_is_corruption(extent: Extent, redundant: bool) -> None:
    sector = extent.header.rgd_offset if redundant else extent.header.gd_offset
    extent.put(512 * sector + 4, struct.pack("<I", 1 << 30))
    report = fdstash.check(extent.path, repair=True)
    assert report.corruptions >= 1
    assert report.findings[0].offset == 512 * sector + 4
    assert "not in the file" in report.findings[0].message


@pytest.mark.parametrize("sector", [1, 60, 1 << 30])
def test_a_grain_where_none_can_be_is_corruption_and_left(extent: Extent, sector: int) -> None:
    extent.set(7, sector)
    before = extent.path.read_bytes()
    report = fdstash.check(extent.path, repair=True)
    assert report.corruptions == 1
    (found,) = (each for each in report.findings if each.severity is Severity.CORRUPTION)
    assert found.offset == extent.entry(7)
    assert "grain 7" in found.message
    assert extent.path.read_bytes() == before


def test_a_grain_with_two_entries_is_corruption_and_left(extent: Extent) -> None:
    extent.set(8, extent.sector(5))
    extent.set(9, extent.sector(1) + 8)
    before = extent.path.read_bytes()
    report = fdstash.check(extent.path, repair=True)
    assert report.corruptions == 3  # what lies askew begins in one grain and ends in another
    assert report.corruptions_fixed == 0
    assert extent.path.read_bytes() == before


def test_tables_that_differ_are_made_to_agree(extent: Extent) -> None:
    good = content(extent.path)
    extent.put(extent.entry(5, redundant=True), bytes(4))
    report = fdstash.check(extent.path)
    assert (report.corruptions, report.leaks) == (1, 0)
    assert "grain 5" in report.findings[0].message
    report = fdstash.check(extent.path, repair=True)
    assert (report.corruptions, report.corruptions_fixed) == (0, 1)
    assert extent.sector(5, redundant=True) == extent.sector(5)
    assert content(extent.path) == good
    assert fdstash.check(extent.path).findings == []


def test_of_two_entries_the_one_that_leads_somewhere_is_taken(extent: Extent) -> None:
    good = content(extent.path)
    extent.set(5, 1 << 30, both=False)
    assert fdstash.check(extent.path, repair=True).corruptions == 0
    assert content(extent.path) == good


def test_repair_of_leaks_leaves_tables_that_differ_alone(extent: Extent) -> None:
    extent.set(5, 0, both=False)
    before = extent.path.read_bytes()
    report = fdstash.check(extent.path, repair="leaks")
    assert (report.corruptions, report.leaks) == (1, 1)
    assert extent.path.read_bytes() == before


def test_a_leaked_tail_is_cut_off(extent: Extent) -> None:
    good, size = content(extent.path), extent.path.stat().st_size
    with extent.path.open("r+b") as file:
        file.truncate(size + 3 * GRAIN)
    report = fdstash.check(extent.path)
    assert (report.leaks, report.image_end) == (3, size)
    report = fdstash.check(extent.path, repair="leaks")
    assert (report.leaks, report.leaks_fixed) == (0, 3)
    assert extent.path.stat().st_size == size
    assert content(extent.path) == good


@pytest.mark.parametrize("given_up", [[0], [1, 513], [1030], [0, 1, 5, 513], list(USED)])
def test_holes_are_filled_from_the_end(extent: Extent, given_up: list[int]) -> None:
    size = extent.path.stat().st_size
    for grain in given_up:
        extent.set(grain, 0)
    wanted = content(extent.path)
    assert fdstash.check(extent.path).leaks == len(given_up)
    report = fdstash.check(extent.path, repair=True)
    assert (report.leaks, report.leaks_fixed) == (0, len(given_up))
    assert extent.path.stat().st_size == size - GRAIN * len(given_up)
    again = fdstash.check(extent.path)
    assert again.findings == []
    assert again.allocated_clusters == len(USED) - len(given_up)
    assert content(extent.path) == wanted
    qemu_img("check", "-f", "vmdk", extent.path)
    with fdstash.open(extent.path, "r+") as image:
        image.pwrite(b"goes on", 77 * GRAIN)
    assert fdstash.check(extent.path).findings == []


def test_what_a_session_has_trimmed_is_found_and_taken_back(extent: Extent) -> None:
    with fdstash.open(extent.path, "r+") as image:
        image.trim(2 * GRAIN, 0)
        image.flush()
    assert fdstash.check(extent.path).leaks == 2
    fdstash.check(extent.path, repair="leaks")
    assert fdstash.check(extent.path).findings == []


class _Torn(Exception):
    pass


@pytest.mark.parametrize("call", ["pwrite", "flush", "truncate"])
def test_a_repair_that_is_cut_short_loses_nothing(
    extent: Extent, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fdstash.hostfile import HostFile  # noqa: PLC0415

    extent.set(0, 0)
    extent.set(5, 0)
    extent.put(extent.entry(513, redundant=True), bytes(4))
    wanted, damaged = content(extent.path), extent.path.read_bytes()
    real: Callable[..., object] = getattr(HostFile, call)
    step = 0
    while True:
        extent.path.write_bytes(damaged)
        left = step

        def fail(file: HostFile, *arguments: object) -> object:
            nonlocal left
            if left == 0:
                raise _Torn
            left -= 1
            return real(file, *arguments)

        with monkeypatch.context() as patch:
            patch.setattr(HostFile, call, fail)
            try:
                fdstash.check(extent.path, repair=True)
            except _Torn:
                torn = True
            else:
                torn = False
        assert content(extent.path) == wanted
        fdstash.check(extent.path, repair=True)
        assert fdstash.check(extent.path).findings == []
        assert content(extent.path) == wanted
        if not torn:
            break
        step += 1
    assert step > 0


def test_a_file_that_was_not_closed_is_noted_and_marked(extent: Extent) -> None:
    extent.put(72, b"\1")
    report = fdstash.check(extent.path)
    assert report.clean
    assert [each.field for each in report.findings] == ["uncleanShutdown"]
    assert fdstash.check(extent.path, repair=True).findings[0].fixed
    assert extent.at(72, 1) == b"\0"


def test_an_image_in_use_is_not_repaired(extent: Extent) -> None:
    with extent.path.open("r+b") as file:
        file.truncate(extent.path.stat().st_size + GRAIN)
    with fdstash.open(extent.path):
        assert fdstash.check(extent.path).leaks == 1
        with pytest.raises(fdstash.LockError):
            fdstash.check(extent.path, repair=True)
    with fdstash.open(extent.path, "r+"), pytest.raises(fdstash.LockError):
        fdstash.check(extent.path)


def test_every_extent_of_many_is_looked_at(tmp_path: Path) -> None:
    path = tmp_path / "many.vmdk"
    fdstash.create(path, "vmdk", 8 << 20, subformat="twoGbMaxExtentSparse", extent_size=2 << 20)
    with (tmp_path / "many-s003.vmdk").open("r+b") as file:
        file.truncate(file.seek(0, 2) + GRAIN)
    report = fdstash.check(path)
    assert report.leaks == 1
    assert report.findings[0].file == str(tmp_path / "many-s003.vmdk")
    assert fdstash.check(path, repair=True).leaks_fixed == 1


def _stream(tmp_path: Path) -> Path:
    raw = tmp_path / "disk.raw"
    raw.write_bytes(random.Random(1).randbytes(4 * GRAIN))
    path = tmp_path / "stream.vmdk"
    with fdstash.open(raw, format="raw") as source:
        fdstash.convert(source, path, "vmdk", subformat="streamOptimized")
    return path


def test_a_good_stream_is_clean(tmp_path: Path) -> None:
    report = fdstash.check(_stream(tmp_path))
    assert report.clean
    assert report.compressed_clusters == 4


@pytest.mark.parametrize(("place", "field"), [(0, "marker value"), (400, "grain data")])
def test_each_grain_of_a_stream_is_looked_at(tmp_path: Path, place: int, field: str) -> None:
    path = _stream(tmp_path)
    with fdstash.open(path) as image:
        offset = next(each.file_offset for each in image.extents() if each.offset == GRAIN)
    assert offset is not None
    with path.open("r+b") as file:
        file.seek(offset + place)
        file.write(struct.pack("<Q", 256) if place == 0 else b"\xff" * 40)
    report = fdstash.check(path)
    assert report.corruptions == 1
    assert report.findings[0].field == field


def test_a_flat_file_that_is_too_short_is_told(tmp_path: Path) -> None:
    path = tmp_path / "flat.vmdk"
    fdstash.create(path, "vmdk", 1 << 20, subformat="monolithicFlat")
    assert fdstash.check(path).clean
    os.truncate(tmp_path / "flat-flat.vmdk", 4096)
    with pytest.raises(fdstash.FormatError, match="has 4096 bytes"):
        fdstash.check(path)


def test_raw_has_nothing_to_check(tmp_path: Path) -> None:
    path = tmp_path / "disk.raw"
    path.write_bytes(bytes(4096))
    with pytest.raises(fdstash.UnsupportedFormatError, match="no metadata"):
        fdstash.check(path, format="raw")


def test_the_parent_is_not_looked_at(tmp_path: Path) -> None:
    base, delta = tmp_path / "base.vmdk", tmp_path / "delta.vmdk"
    fdstash.create(base, "vmdk", 1 << 20, subformat="monolithicSparse")
    fdstash.create(delta, "vmdk", 1 << 20, subformat="monolithicSparse", backing_file="base.vmdk")
    base.unlink()
    assert fdstash.check(delta).clean


def test_tables_of_the_two_directories_are_compared_as_a_whole(extent: Extent) -> None:
    both = [
        grain_directory.decode(extent.at(extent.table(page, redundant=redundant), 2048))
        for page in range(3)
        for redundant in (False, True)
    ]
    assert both[0::2] == both[1::2]
