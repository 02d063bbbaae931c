"""Extents: where the bytes of an image are, and which are holes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fdstash
from fdstash import ClosedError, Extent
from tests.support.disks import ExtentSpec, FlatDisk, make_flat, noise

pytestmark = pytest.mark.usefixtures("no_descriptor_leaks")


def spread(path: Path, runs: list[tuple[int, int]], size: int) -> None:
    """A sparse file with data in those runs."""
    with path.open("wb") as file:
        file.truncate(size)
        for start, length in runs:
            file.seek(start)
            file.write(noise(length, start))
        file.flush()
        os.fsync(file.fileno())


def test_extents_tell_data_and_holes_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    spread(path, [(65536, 65536), (262144, 4096)], 1 << 20)
    name = str(path)
    with fdstash.open(path) as image:
        assert list(image.extents()) == [
            Extent(0, 65536, "zero", name, 0, 0),
            Extent(65536, 65536, "data", name, 65536, 0),
            Extent(131072, 131072, "zero", name, 131072, 0),
            Extent(262144, 4096, "data", name, 262144, 0),
            Extent(266240, (1 << 20) - 266240, "zero", name, 266240, 0),
        ]
        assert list(image.extents(10, 65530)) == [
            Extent(65530, 6, "zero", name, 65530, 0),
            Extent(65536, 4, "data", name, 65536, 0),
        ]
        assert list(image.extents(offset=1 << 20)) == []
        assert list(image.extents(0, 5)) == []
        assert sum(e.length for e in image.extents(1 << 60, 100)) == (1 << 20) - 100


KINDS = (
    ExtentSpec("RW", 8, name="a.bin"),
    ExtentSpec("RW", 16, "ZERO"),
    ExtentSpec("RDONLY", 24, name="b.bin", start=8),
    ExtentSpec("NOACCESS", 8, name="gone.bin"),
    ExtentSpec("RW", 8, name="a.bin", start=8),
)


def test_extents_name_every_kind_and_where_its_bytes_are(tmp_path: Path) -> None:
    disk = make_flat(tmp_path, KINDS)
    (tmp_path / "gone.bin").unlink()
    a, b = str(tmp_path / "a.bin"), str(tmp_path / "b.bin")
    with fdstash.open(disk.path) as image:
        assert list(image.extents()) == [
            Extent(0, 4096, "data", a, 0, 0),
            Extent(4096, 8192, "zero", None, None, 0),
            Extent(12288, 12288, "data", b, 4096, 0),
            Extent(24576, 4096, "denied", None, None, 0),
            Extent(28672, 4096, "data", a, 4096, 0),
        ]


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_extents_cover_any_range_without_gap_or_overlap(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    disk = make_flat(tmp_path_factory.mktemp("extents"))
    offset = data.draw(st.integers(0, disk.size))
    n = data.draw(st.none() | st.integers(0, disk.size + 10))
    end = disk.size if n is None else min(disk.size, offset + n)
    with fdstash.open(disk.path) as image:
        at = offset
        for extent in image.extents(n, offset):
            assert extent.offset == at
            assert extent.length > 0
            at += extent.length
            assert extent.file is not None
            assert extent.file_offset is not None
            with open(extent.file, "rb") as file:
                file.seek(extent.file_offset)
                assert file.read(extent.length) == image.pread(extent.length, extent.offset)
        assert at == max(offset, end)


def test_extents_are_looked_up_as_they_are_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    size = 1 << 30
    spread(path, [(start, 4096) for start in range(0, 1 << 26, 1 << 17)], size)
    with fdstash.open(path, "r+", format="raw") as image:
        extents = image.extents()
        first = [next(extents) for _ in range(3)]
        assert [extent.kind for extent in first] == ["data", "zero", "data"]
        # What changes behind the iterator is still seen.
        image.pwrite(bytes([1]) * 4096, 1 << 18 | 1 << 16)
        image.flush()
        rest = list(extents)
        assert (1 << 18 | 1 << 16) in [extent.offset for extent in rest if extent.kind == "data"]
        assert sum(extent.length for extent in [*first, *rest]) == size


def test_an_extent_iterator_ends_with_its_image(flat: FlatDisk) -> None:
    image = fdstash.open(flat.path)
    extents = image.extents()
    next(extents)
    image.close()
    with pytest.raises(ClosedError):
        next(extents)
