"""What a reopen that succeeded has to tell: what closing said, and what did not go as it should."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import fdstash
from fdstash import FDStash, Image, reopen_all
from tests.support.disks import FlatDisk, make_flat, make_raw
from tests.support.faultshim import FaultShim
from tests.support.kernel import open_descriptors
from tests.support.seen import READER_BYTES, assert_as_kernel_says, locked_bytes

pytestmark = [pytest.mark.usefixtures("no_descriptor_leaks"), pytest.mark.preload]


@pytest.fixture
def flat(tmp_path: Path) -> FlatDisk:
    return make_flat(tmp_path / "flat")


@pytest.fixture
def image(flat: FlatDisk) -> Iterator[Image]:
    with fdstash.open(flat.path, "r+") as opened:
        yield opened


def closes(image: Image, shim: FaultShim, **options: str) -> int:
    """How many closes such a reopen makes."""
    with shim.counting() as met:
        image.reopen(**options)  # type: ignore[arg-type]
    return met.counts["close"]


@pytest.mark.parametrize("code", [errno.EIO, errno.EDQUOT])
def test_what_closing_an_old_description_says_is_told_by_file(
    image: Image, flat: FlatDisk, shim: FaultShim, code: int, caplog: pytest.LogCaptureFixture
) -> None:
    """A network file system tells of a lost write by close alone."""
    image.reopen(mode="r")
    count = closes(image, shim, mode="r+")
    assert count >= len(flat.files)
    told: list[tuple[str, int]] = []
    for position in range(count):
        descriptors = len(open_descriptors())
        with (
            shim.fault("close", position, code) as met,
            caplog.at_level(logging.WARNING, "fdstash"),
        ):
            report = image.reopen(mode="r" if image.mode == "r+" else "r+")
        assert met.fired
        assert_as_kernel_says(image)
        assert len(open_descriptors()) == descriptors
        assert len(report.close_errors) <= 1
        for name, error in report.close_errors:
            assert error == code
            assert name in caplog.text
        told += report.close_errors
    assert sorted(name for name, _ in told) == sorted(map(str, flat.files))


def test_several_images_tell_each_of_its_own_files(
    image: Image, flat: FlatDisk, tmp_path: Path, shim: FaultShim
) -> None:
    raw = make_raw(tmp_path, 1 << 16)
    with fdstash.open(raw, "r+", format="raw") as other:
        with shim.fault("close", 0, errno.EIO, times=1000):
            reports = reopen_all([(other, {"mode": "r"}), (image, {"mode": "r"})])
        told = [[name for name, _ in report.close_errors] for report in reports]
        assert told == [[str(raw)], [str(path) for path in flat.files]]


def test_a_reopen_that_closes_nothing_of_the_image_tells_nothing(
    image: Image, shim: FaultShim
) -> None:
    image.reopen(cache="none")
    with shim.fault("close", 0, errno.EIO, times=1000):
        report = image.reopen(cache="writeback")
    assert set(report.routes.values()) == {"setfl"}
    assert report.close_errors == ()


def test_locks_that_could_not_be_dropped_are_told_and_still_held(
    image: Image, flat: FlatDisk, shim: FaultShim, caplog: pytest.LogCaptureFixture
) -> None:
    """The reopen itself has been made by then, and stays made."""
    with (
        shim.fault("F_SETLK", 0, errno.ENOMEM, times=1000) as met,
        caplog.at_level(logging.WARNING, "fdstash"),
    ):
        report = image.reopen(mode="r")
    assert met.fired
    assert report.warnings == ("the write locks could not be dropped and are still held",)
    assert report.warnings[0] in caplog.text
    assert image.mode == "r"
    assert_as_kernel_says(image)
    assert locked_bytes(flat.files[0]) != READER_BYTES
    # The way there and back again sets it right.
    image.reopen(mode="r+")
    assert image.reopen(mode="r").warnings == ()
    assert [locked_bytes(path) for path in flat.files] == [READER_BYTES] * len(flat.files)


def test_a_report_tells_the_route_of_each_file_and_how_many_changed(
    image: Image, flat: FlatDisk
) -> None:
    """A stash for one file, another route for the rest."""
    with FDStash() as stash:
        stash.give(str(flat.files[1]), os.open(flat.files[1], os.O_RDONLY))
        report = image.reopen(mode="r", stash=stash)
    assert report.routes == {
        str(path): "stash" if number == 1 else "proc" for number, path in enumerate(flat.files)
    }
    assert report.files_changed == len(flat.files)
