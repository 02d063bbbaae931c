"""Mode and cache mode after a reopen: those asked for, in every file."""

from __future__ import annotations

import errno
import os

import pytest

import fdstash
from fdstash import FDStash, Image, ImageIOError
from tests.support.disks import FlatDisk
from tests.support.images import CACHES, SIZE
from tests.support.kernel import access_mode, open_descriptors
from tests.support.seen import assert_as_kernel_says

pytestmark = pytest.mark.usefixtures("no_descriptor_leaks")


@pytest.mark.parametrize(
    ("cache", "changed"), [("writethrough", False), ("unsafe", False), ("directsync", True)]
)
def test_a_cache_mode_that_differs_in_no_flag_needs_no_descriptor(
    image: Image, cache: str, changed: bool
) -> None:
    report = image.reopen(cache=cache)
    assert image.cache == cache
    assert (report.files_changed > 0) == changed
    assert_as_kernel_says(image)


def test_an_option_left_out_stays_as_it_is(image: Image) -> None:
    image.reopen(cache="directsync")
    assert image.mode == "r+"
    image.reopen(mode="r")
    assert image.cache == "directsync"
    image.reopen(cache="unsafe")
    assert image.mode == "r"


def test_every_change_of_mode_and_cache_is_possible_and_leaks_nothing(image: Image) -> None:
    expected = image.pread(image.size, 0)
    combinations = [(mode, cache) for mode in ("r", "r+") for cache in CACHES]
    descriptors = len(open_descriptors())
    for first in combinations:
        for second in combinations:
            for mode, cache in (first, second):
                image.reopen(mode=mode, cache=cache)
                assert (image.mode, image.cache) == (mode, cache)
                assert_as_kernel_says(image)
            assert len(open_descriptors()) == descriptors
    assert image.pread(image.size, 0) == expected


def test_writes_follow_the_mode(image: Image) -> None:
    image.reopen(mode="r")
    with pytest.raises(ImageIOError) as caught:
        image.pwrite(b"x", 0)
    assert caught.value.errno == errno.EBADF
    image.reopen(mode="r+")
    image.pwrite(b"x", 0)
    assert image.pread(1, 0) == b"x"


def test_reopen_works_after_the_image_was_made_smaller(raw_image: Image) -> None:
    raw_image.resize(4096)
    raw_image.reopen(mode="r")
    raw_image.reopen(mode="r+")
    raw_image.resize(SIZE)
    raw_image.reopen(mode="r", path=raw_image.files[0].path)
    assert raw_image.pread(SIZE, 4096) == bytes(SIZE - 4096)


def test_a_readonly_image_stays_readonly_for_every_file(flat: FlatDisk, stash: FDStash) -> None:
    for path in flat.files:
        stash.give(str(path), os.open(path, os.O_RDONLY))
    with fdstash.open(flat.path, stash=stash) as image:
        image.reopen(cache="none")
        assert [access_mode(file.fd) for file in image.files] == ["r"] * 5
