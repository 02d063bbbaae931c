"""Grain tables and grains that are added to sparse extents."""

from __future__ import annotations

from pathlib import Path

import pytest

import fdstash
from fdstash import clusters
from fdstash.formats.vmdk import cowd
from fdstash.hostfile import HostFile
from tests.support.sparse_disks import make_cowd, make_delta
from tests.support.sparse_files import guest_bytes, sparse_trouble

REAL_PWRITE = HostFile.pwrite

pytestmark = pytest.mark.usefixtures("no_descriptor_leaks")


def test_an_extent_that_is_smaller_than_a_table_reads_and_grows(tmp_path: Path) -> None:
    disk = make_cowd(tmp_path, [(90, 1), (400, 8)])
    assert disk.extents[0].stat().st_size < cowd.GT_BYTES
    model = bytearray(guest_bytes(disk.path))
    with fdstash.open(disk.path, "r+") as image:
        assert image.pread(image.size, 0) == model
        image.pwrite(b"grown" * 20_000, 7)
        model[7:100_007] = b"grown" * 20_000
    assert guest_bytes(disk.path) == model
    assert not list(sparse_trouble(disk.path))


def test_a_header_knows_of_a_table_whose_first_write_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else an ESX host would put the next grain over it."""
    disk = make_cowd(tmp_path, [(400, 8)], seed=None)
    with fdstash.open(disk.path, "r+") as image:
        image.pwrite(b"x" * 4096, 0)
        with monkeypatch.context() as broken:
            broken.setattr(HostFile, "pwrite", _write_headers_alone)
            with pytest.raises(OSError, match="no table"):
                image.flush()
        image.flush()
    assert not list(sparse_trouble(disk.path))


def _write_headers_alone(file: HostFile, data: bytes, offset: int) -> int:
    if offset >= cowd.HEADER_BYTES:
        raise OSError(28, "no table")
    return REAL_PWRITE(file, data, offset)


def test_a_guest_that_never_flushes_changes_more_tables_than_memory_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once, a page that was loaded was also the only one that could be evicted, for ever."""
    monkeypatch.setattr(clusters, "PAGE_BYTES", 0)
    disk = make_cowd(tmp_path, [(100_000, 1)] * 3, seed=None)
    with fdstash.open(disk.path, "r+") as image:
        tables = image._state.graph.layer.tables
        for offset in range(0, image.size, 1 << 20):
            image.pwrite(offset.to_bytes(8), offset)
            assert sum(table.loaded for table in tables) <= 9
        for offset in range(0, image.size, 1 << 20):
            assert image.pread(8, offset) == offset.to_bytes(8)
    assert not list(sparse_trouble(disk.path))


def test_one_request_changes_more_tables_than_memory_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clusters, "PAGE_BYTES", 0)
    disk = make_delta(tmp_path, 1 << 30, 1 << 30)
    with fdstash.open(disk.path, "r+") as image:
        for _ in range(2):
            image.zero(image.size, 0, unmap=True)
            assert sum(table.loaded for table in image._state.graph.layer.tables) <= 9
        assert image.pread(100, 0) == bytes(100)
    assert not list(sparse_trouble(disk.path))
