"""A reopen from another path: the same content from other files, or a refusal."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

import fdstash
from fdstash import FDStash, Image
from tests.support.disks import FlatDisk, descriptor_text, make_flat, make_raw, noise
from tests.support.images import SIZE
from tests.support.refusals import refused
from tests.support.seen import READER_BYTES, assert_as_kernel_says, locked_bytes

pytestmark = pytest.mark.usefixtures("no_descriptor_leaks")


def test_another_path_serves_the_same_content_from_other_files(
    image: Image, tmp_path: Path, flat: FlatDisk
) -> None:
    copy = make_flat(tmp_path / "copy")
    old = image.files
    report = image.reopen(path=copy.path, mode="r")
    assert set(report.routes.values()) == {"path"}
    assert list(report.routes) == [str(path) for path in copy.files]
    assert report.files_changed == len(copy.files)
    assert [file.name for file in image.files] == [str(path) for path in copy.files]
    assert not {file.inode for file in old} & {file.inode for file in image.files}
    assert image.pread(image.size, 0) == copy.guest_bytes()
    assert_as_kernel_says(image)
    assert [locked_bytes(path) for path in flat.files] == [[]] * 5
    assert [locked_bytes(path) for path in copy.files] == [READER_BYTES] * 5


def test_a_new_path_of_another_size_is_refused(raw_image: Image, raw: Path) -> None:
    for size in (SIZE - 512, SIZE + 512, 0):
        other = make_raw(raw.parent, size, name="other.raw")
        error = refused(raw_image, path=other)
        assert (error.errno, error.file) == (errno.EINVAL, str(other))


def test_a_new_path_of_another_format_is_refused(raw: Path, flat: FlatDisk) -> None:
    for path, other in ((flat.path, raw), (raw, flat.path)):
        with fdstash.open(path) as image:
            error = refused(image, path=other)
            assert (error.errno, error.file) == (errno.EINVAL, str(other))


def test_a_new_path_that_is_missing_in_part_is_refused(
    image: Image, tmp_path: Path, flat: FlatDisk
) -> None:
    copy = make_flat(tmp_path / "copy")
    copy.files[4].unlink()
    error = refused(image, path=copy.path)
    assert isinstance(error, FileNotFoundError)
    assert (error.phase, error.file) == ("acquire", str(copy.files[4]))
    assert refused(image, path=tmp_path / "none").file == str(tmp_path / "none")


def test_a_new_path_is_held_to_what_the_resolver_allows(image: Image, tmp_path: Path) -> None:
    (tmp_path / "copy").mkdir()
    copy = tmp_path / "copy/disk.vmdk"
    copy.write_text(
        descriptor_text([s._replace(name=f"../{s.name}") for s in make_flat(tmp_path).extents])
    )
    assert isinstance(refused(image, path=copy), PermissionError)
    image.reopen(path=copy, resolver=fdstash.Beneath(tmp_path))


def test_a_path_change_can_be_served_by_a_stash_alone(
    raw_image: Image, raw: Path, stash: FDStash
) -> None:
    other = make_raw(raw.parent, SIZE, name="other.raw", seed=9)
    stash.give("not/a/path.raw", os.open(other, os.O_RDWR))
    report = raw_image.reopen(path="not/a/path.raw", stash=stash)
    assert report.routes == {"not/a/path.raw": "stash"}
    assert raw_image.files[0].path is None
    assert raw_image.pread(SIZE, 0) == noise(SIZE, 9)
    assert len(stash) == 1
