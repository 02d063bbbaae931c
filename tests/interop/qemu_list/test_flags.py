"""Rows 5 and 6: flags that tell the truth, also after a rollback."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

import fdstash
from fdstash import ReopenError
from fdstash import reopen_all as reopen_together
from tests.support.disks import FlatDisk
from tests.support.faultshim import FaultShim
from tests.support.images import read_all
from tests.support.kernel import getfl, is_direct, open_descriptors
from tests.support.qmp import StorageDaemon, file_node
from tests.support.seen import assert_as_kernel_says


def test_row_5_files_say_what_the_kernel_says_also_after_a_reopen_of_nothing(
    flat: FlatDisk,
) -> None:
    with fdstash.open(flat.path, "r+") as image:
        image.reopen()
        for mode in ("r", "r", "r+", "r+", "r"):
            image.reopen(mode=mode)
            assert {file.mode for file in image.files} == {mode}
            assert_as_kernel_says(image)
            image.reopen()
            assert_as_kernel_says(image)


def test_row_5_qemu_keeps_a_writable_descriptor_under_a_read_only_node(
    daemon: StorageDaemon, raw: Path
) -> None:
    daemon.execute("blockdev-add", file_node(raw))
    daemon.reopen(file_node(raw))
    daemon.reopen(file_node(raw, **{"read-only": True}))
    assert daemon.execute("query-named-block-nodes")[0]["ro"]
    assert daemon.flags_in(raw.parent) == {"disk.raw": os.O_RDWR}


@pytest.mark.preload
@pytest.mark.parametrize("cache", ["none", "writeback"])
def test_row_6_a_rollback_restores_the_flags_of_a_description(
    raw: Path, flat: FlatDisk, shim: FaultShim, cache: str
) -> None:
    before = "writeback" if cache == "none" else "none"
    with (
        fdstash.open(raw, "r+", format="raw", cache=before) as image,
        fdstash.open(flat.path, "r+") as other,
    ):
        pairs: list[tuple[fdstash.Image, dict[str, str]]] = [
            (image, {"cache": cache}),  # by F_SETFL
            (other, {"mode": "r"}),  # by an exchange, which fails after it
        ]
        descriptors = open_descriptors()
        with shim.fault("dup3", 0, errno.EBADF, times=20) as fault:
            with pytest.raises(ReopenError) as caught:
                reopen_together(pairs)
            assert caught.value.phase == "commit"
            assert caught.value.rolled_back
        assert fault.fired
        assert fault.counts["F_SETFL"] >= 2
        assert (image.cache, other.mode) == (before, "r+")
        for each in (image, other):
            assert_as_kernel_says(each)
            assert each.pread(3, 5) == read_all(each)[5:8]
            each.pwrite(b"odd", 5)
        assert open_descriptors() == descriptors


def test_row_6_a_description_that_others_hold_keeps_its_flags(raw: Path) -> None:
    fd = os.open(raw, os.O_RDWR)
    with fdstash.open(fd, "r+", format="raw") as image:
        for cache in ("none", "directsync"):
            with pytest.raises(ReopenError):
                image.reopen(cache=cache, prepare=lambda: 1 // 0)
            assert not is_direct(fd)
            assert os.pread(fd, 3, 5) == image.pread(3, 5)
            assert set(image.reopen(cache=cache).routes.values()) <= {"proc", "setfl", "keep"}
            assert not is_direct(fd)
            assert os.pread(fd, 3, 5) == image.pread(3, 5)
        assert getfl(fd) & os.O_ACCMODE == os.O_RDWR
    os.close(fd)
