"""What an open image says of itself."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

import fdstash
from fdstash import AlignedBuffer, Limits
from tests.support.disks import FlatDisk
from tests.support.images import SIZE

pytestmark = pytest.mark.usefixtures("no_descriptor_leaks")


def test_attributes_tell_what_is_open(flat: FlatDisk) -> None:
    with fdstash.open(flat.path, "r+", cache="none") as image:
        assert (image.size, image.format, image.mode, image.cache) == (
            *(flat.size, "vmdk"),
            *("r+", "none"),
        )
        assert (image.closed, image.backing, image.name) == (False, None, str(flat.path))
        assert repr(image) == f"<Image {str(flat.path)!r} vmdk r+ cache=none>"
        assert image.format_info["create-type"] == "custom"
        assert isinstance(image.files, tuple)
        assert [file.path for file in image.files] == [str(path) for path in flat.files]
    assert repr(image) == f"<Image {str(flat.path)!r} closed>"


def test_limits_tell_what_costs_least(raw: Path) -> None:
    with fdstash.open(raw, "r+", format="raw") as image:
        assert image.limits[:2] == (1, 1)
        image.reopen(cache="none")
        offset, memory, preferred, maximum = image.limits
        assert isinstance(image.limits, Limits)
        for alignment in (offset, memory):
            assert 0 < alignment <= 4096
            assert alignment & (alignment - 1) == 0
        assert preferred % offset == 0
        assert preferred <= maximum
        # And so they are: an aligned request goes through a plain O_DIRECT descriptor.
        with AlignedBuffer(offset) as buffer:
            assert os.preadv(image.files[0].fd, [buffer], offset) == offset


def test_the_limits_of_an_image_of_many_files_suit_each_of_them(flat: FlatDisk) -> None:
    with fdstash.open(flat.path, cache="none") as image:
        each = []
        for path in flat.files:
            with fdstash.open(path, format="raw", cache="none") as one:
                each.append(one.limits)
        assert image.limits.offset_alignment == max(limits.offset_alignment for limits in each)
        assert image.limits.memory_alignment == max(limits.memory_alignment for limits in each)


def test_files_follow_what_others_do_to_the_descriptors(raw: Path) -> None:
    with fdstash.open(raw, "r+", format="raw") as image:
        slot = image.files[0].fd
        fcntl.fcntl(slot, fcntl.F_SETFL, os.O_DIRECT)
        assert image.files[0].direct
        fcntl.fcntl(slot, fcntl.F_SETFL, 0)
        assert not image.files[0].direct
        os.truncate(raw, 2 * SIZE)
        assert image.files[0].size == 2 * SIZE
        os.truncate(raw, SIZE)


def test_files_are_the_same_files_however_much_the_host_has_allocated(raw: Path) -> None:
    with fdstash.open(raw, "r+", format="raw") as image:
        before = image.files[0]
        after = before._replace(allocated=before.allocated + 4096)
        assert (before == after, before != after, hash(before) == hash(after)) == (
            True,
            False,
            True,
        )
        assert before != before._replace(size=before.size + 1)
        assert before != tuple(before)
