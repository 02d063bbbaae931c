"""Rows 11 and 12: locks and names that are the image's own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import fdstash
from fdstash import FDStash, LockError, ReopenError
from tests.support.disks import ExtentSpec, FlatDisk, make_flat
from tests.support.images import read_all
from tests.support.qemu_tools import QemuIo, qemu_io
from tests.support.seen import READER_BYTES, WRITER_BYTES, locked_bytes


def test_row_11_images_of_one_passed_descriptor_have_locks_of_their_own(raw: Path) -> None:
    fd = os.open(raw, os.O_RDWR)
    one = fdstash.open(fd, format="raw")
    two = fdstash.open(fd, format="raw")
    assert locked_bytes(raw) == sorted(READER_BYTES * 2)
    one.close()
    assert locked_bytes(raw) == READER_BYTES
    assert qemu_io(raw, "write 0 512").refused_by_a_lock
    with pytest.raises(LockError):
        fdstash.open(fd, "r+", format="raw")
    two.close()
    assert locked_bytes(raw) == []
    assert qemu_io(raw, "write 0 512").status == 0
    os.close(fd)


def test_row_11_an_image_that_is_read_only_again_lets_others_in(flat: FlatDisk) -> None:
    fd = os.open(flat.path, os.O_RDWR)
    with fdstash.open(fd, "r+", name=str(flat.path)) as image:
        assert [locked_bytes(path) for path in flat.files] == [WRITER_BYTES] * 3
        assert qemu_io(flat.path, "read 0 512", format="vmdk", options=["-r"]).refused_by_a_lock
        image.reopen(mode="r")
        assert [locked_bytes(path) for path in flat.files] == [READER_BYTES] * 3
        with QemuIo(flat.path, "vmdk", readonly=True) as reader:
            assert "read 512/512 bytes" in reader.do("read 0 512")
            with pytest.raises(ReopenError) as caught:
                image.reopen(mode="r+")
            assert isinstance(caught.value, BlockingIOError)
        image.reopen(mode="r+")
        assert [locked_bytes(path) for path in flat.files] == [WRITER_BYTES] * 3
    os.close(fd)


def test_row_12_extents_of_a_passed_descriptor_have_the_names_that_the_image_uses(
    tmp_path: Path, stash: FDStash, monkeypatch: pytest.MonkeyPatch
) -> None:
    extents = [ExtentSpec("RW", 128, name="a.bin"), ExtentSpec("RW", 128, name="sub/b.bin")]
    disk = make_flat(tmp_path / "real", extents)
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    for name, path in zip(("disk.vmdk", "a.bin", "sub/b.bin"), disk.files, strict=True):
        stash.give(name, os.open(path, os.O_RDWR))
    with fdstash.open("disk.vmdk", "r+", stash=stash) as image:
        assert [file.name for file in image.files] == ["disk.vmdk", "a.bin", "sub/b.bin"]
        assert read_all(image) == disk.guest_bytes()
    # The same under the name of a set of descriptors, which is a folder to nobody but QEMU.
    fd = stash.take("disk.vmdk")
    stash.give("/dev/fdset/1", fd)
    with fdstash.open("/dev/fdset/1", "r+", stash=stash) as image:
        assert [file.name for file in image.files][1:] == [
            "/dev/fdset/a.bin",
            "/dev/fdset/sub/b.bin",
        ]
        assert read_all(image) == disk.guest_bytes()
