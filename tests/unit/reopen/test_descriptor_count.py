"""How many descriptors an image holds, and how many its reopen needs."""

from __future__ import annotations

import errno
import resource

import pytest

import fdstash
from fdstash import Image, ReopenError
from tests.support.disks import FlatDisk
from tests.support.kernel import open_descriptors
from tests.support.refusals import Snapshot

pytestmark = pytest.mark.usefixtures("no_descriptor_leaks")


def test_descriptors_below_a_lowered_limit_are_missed_before_anything_changes(
    image: Image,
) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with Snapshot(image) as before:
        held = open_descriptors()
        fourth_free = [n for n in range(max(held) + 5) if n not in held][3]
        resource.setrlimit(resource.RLIMIT_NOFILE, (fourth_free, limits[1]))
        try:
            with pytest.raises(ReopenError) as caught:
                image.reopen(mode="r")
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        before.assert_same()
    assert caught.value.errno == errno.EMFILE
    assert "raise_nofile" in str(caught.value)
    assert str(3 * len(image.files) + 1) in str(caught.value)


def test_a_change_of_mode_needs_three_descriptors_a_file_at_most(flat: FlatDisk) -> None:
    peaks: list[int] = []
    with fdstash.open(flat.path, "r+") as image:
        at_rest = len(open_descriptors())
        image.reopen(mode="r", prepare=lambda: peaks.append(len(open_descriptors())))
        assert peaks == [at_rest + len(image.files) + 1]
        assert len(open_descriptors()) == at_rest


def test_an_image_of_n_files_holds_two_n_descriptors(flat: FlatDisk) -> None:
    before = len(open_descriptors())
    with fdstash.open(flat.path, "r+") as image:
        assert len(open_descriptors()) == before + 2 * len(image.files)
    with fdstash.open(flat.path, "r+", lock=False) as image:
        assert len(open_descriptors()) == before + len(image.files)
