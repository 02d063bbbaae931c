"""Row 7: what forbids writing at an open forbids it at a reopen."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

import fdstash
from fdstash import FormatError, ReopenError
from tests.support.disks import ExtentSpec, make_flat, make_raw
from tests.support.images import SIZE
from tests.support.seen import READER_BYTES, assert_as_kernel_says, locked_bytes

READ_ONLY = [ExtentSpec("RDONLY", 128, name="a.bin"), ExtentSpec("NOACCESS", 8, name="b.bin")]


def refusals(path: Path) -> tuple[FormatError, FormatError]:
    """Why an image cannot be written, as told by an open and by a reopen."""
    with pytest.raises(FormatError) as opened:
        fdstash.open(path, "r+")
    with fdstash.open(path) as image:
        before = image.files
        with pytest.raises(ReopenError) as reopened:
            image.reopen(mode="r+")
        assert reopened.value.errno == errno.EINVAL
        assert reopened.value.rolled_back
        assert image.files == before
        assert all(locked_bytes(file.fd) == READER_BYTES for file in image.files)
        assert_as_kernel_says(image)
    assert isinstance(reopened.value.__cause__, FormatError)
    return opened.value, reopened.value.__cause__


def test_row_7_what_forbids_writing_at_open_forbids_it_at_a_reopen(
    tmp_path: Path, raw: Path
) -> None:
    disk = make_flat(tmp_path, READ_ONLY)
    for path in (disk.path, raw):
        at_open, at_reopen = refusals(path)
        assert str(at_open) == str(at_reopen)
        assert (at_open.file, at_open.field) == (at_reopen.file, at_reopen.field)


def test_row_7_a_path_change_is_held_to_the_same(tmp_path: Path, raw: Path) -> None:
    disk = make_flat(tmp_path, [ExtentSpec("RW", 128, name="a.bin")])
    other = make_flat(tmp_path / "other", [READ_ONLY[0]])
    with fdstash.open(disk.path, "r+") as image:
        with pytest.raises(ReopenError) as caught:
            image.reopen(path=other.path)
        assert isinstance(caught.value.__cause__, FormatError)
        image.reopen(path=other.path, mode="r")
    with fdstash.open(raw) as guessed:
        copy = make_raw(tmp_path, SIZE, name="copy.raw")
        with pytest.raises(ReopenError):
            guessed.reopen(path=copy, mode="r+")
        guessed.reopen(path=copy)
