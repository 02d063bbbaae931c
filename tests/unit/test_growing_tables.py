"""Grain tables and grains that are added to sparse extents."""

from __future__ import annotations

from pathlib import Path

import pytest

import fdstash
from fdstash.formats.vmdk import cowd
from fdstash.hostfile import HostFile
from tests.support.sparse_disks import make_cowd
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
