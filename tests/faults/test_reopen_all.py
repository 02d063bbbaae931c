"""Several images at once: one that hangs, one whose stash does not fit, one that is gone.

Whichever it is, all are left as they were, and what was opened for the others is closed.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import fdstash
from fdstash import FDStash, Image, ReopenError, pending_opens, reopen_all
from tests.support.disks import FlatDisk, make_flat, make_raw
from tests.support.fuse import HeldFs
from tests.support.kernel import open_descriptors, same_description
from tests.support.seen import READER_BYTES, WRITER_BYTES, assert_as_kernel_says, locked_bytes

pytestmark = [pytest.mark.usefixtures("no_descriptor_leaks"), pytest.mark.root]

SIZE = 1 << 16
TIMEOUT = 0.3
SLACK = 5.0 if os.environ.get("FDSTASH_SANITIZER") else 1.5


@pytest.fixture
def flat(tmp_path: Path) -> FlatDisk:
    return make_flat(tmp_path / "flat")


@pytest.fixture
def local(flat: FlatDisk) -> Iterator[Image]:
    with fdstash.open(flat.path, "r+") as image:
        yield image


@pytest.fixture
def stash() -> Iterator[FDStash]:
    with FDStash() as made:
        yield made


def wait_until(condition: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def all_refused(pairs: list[tuple[Image, dict[str, Any]]], timeout: float = 30.0) -> ReopenError:
    images = [image for image, _ in pairs]
    copies = [[os.dup(file.fd) for file in image.files] for image in images]
    before = [(image.files, image.mode, image.cache) for image in images]
    locks = [[locked_bytes(file.fd) for file in image.files] for image in images]
    start = time.monotonic()
    with pytest.raises(ReopenError) as caught:
        reopen_all(pairs, timeout=timeout)
    assert time.monotonic() - start < timeout + SLACK
    for image, kept, was, held in zip(images, copies, before, locks, strict=True):
        assert (image.files, image.mode, image.cache) == was
        assert all(map(same_description, kept, (file.fd for file in image.files)))
        assert [locked_bytes(file.fd) for file in image.files] == held
        data = image.pread(image.size, 0)
        if image.mode == "r+":
            image.pwrite(data[100:5000], 100)
        assert image.pread(image.size, 0) == data
        for copy in kept:
            os.close(copy)
    assert caught.value.rolled_back
    return caught.value


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("options", [{"mode": "r"}, {"mode": "r", "cache": "none"}])
def test_one_open_that_hangs_gives_up_all(
    stopped_fuse: HeldFs, local: Image, place: int, options: dict[str, Any]
) -> None:
    path = make_raw(stopped_fuse.folder, SIZE)
    with fdstash.open(path, "r+", format="raw") as remote:
        pairs = [(local, options)]
        pairs.insert(place, (remote, options))
        descriptors = open_descriptors()
        stopped_fuse.hold_opens()
        error = all_refused(pairs, TIMEOUT)
        assert isinstance(error, TimeoutError)
        assert (error.errno, error.phase) == (errno.ETIMEDOUT, "acquire")
        assert error.file == remote.name
        assert pending_opens() == 1
        # What hangs keeps nobody from a reopen that does without it.
        local.reopen(mode="r", timeout=TIMEOUT)
        local.reopen(mode="r+", timeout=TIMEOUT)
        stopped_fuse.release_opens()
        wait_until(lambda: pending_opens() == 0)
        wait_until(lambda: open_descriptors() == descriptors)
        reopen_all(pairs)
        for image in (local, remote):
            assert_as_kernel_says(image)


def test_a_stash_for_each_image_serves_each(
    local: Image, flat: FlatDisk, tmp_path: Path, stash: FDStash
) -> None:
    """One stash may serve all: names tell the files apart."""
    raw = make_raw(tmp_path, SIZE)
    with fdstash.open(raw, "r+", format="raw") as other:
        for path in [*flat.files, raw]:
            stash.add(str(path), os.open(path, os.O_RDONLY))
        held = len(stash)
        reports = reopen_all(
            [(local, {"mode": "r", "stash": stash}), (other, {"mode": "r", "stash": stash})]
        )
        assert {route for report in reports for route in report.routes.values()} == {"stash"}
        assert len(stash) == held
        for image in (local, other):
            assert_as_kernel_says(image)
            assert [locked_bytes(file.fd) for file in image.files] == [READER_BYTES] * len(
                image.files
            )


@pytest.mark.parametrize("place", [0, 1])
def test_a_stash_that_does_not_fit_one_image_refuses_all(
    local: Image, flat: FlatDisk, tmp_path: Path, stash: FDStash, place: int
) -> None:
    raw, stranger = make_raw(tmp_path, SIZE), make_raw(tmp_path, SIZE, name="stranger")
    with fdstash.open(raw, "r+", format="raw") as other:
        for path in flat.files:
            stash.add(str(path), os.open(path, os.O_RDONLY))
        stash.add(str(raw), os.open(stranger, os.O_RDONLY))
        pairs: list[tuple[Image, dict[str, Any]]] = [(local, {"mode": "r", "stash": stash})]
        pairs.insert(place, (other, {"mode": "r", "stash": stash}))
        descriptors = open_descriptors()
        error = all_refused(pairs)
        assert (error.errno, error.file, error.phase) == (errno.ESTALE, str(raw), "acquire")
        assert open_descriptors() == descriptors
        assert [locked_bytes(path) for path in flat.files] == [WRITER_BYTES] * len(flat.files)


def test_many_images_are_one_change(tmp_path: Path) -> None:
    """The last of twenty is the one that fails; the first has been acquired long before."""
    images = []
    for number in range(20):
        path = make_raw(tmp_path, SIZE, name=f"{number}.raw", seed=number)
        images.append(fdstash.open(path, "r+", format="raw"))
    paths = [image.files[0].path for image in images]
    pairs: list[tuple[Image, dict[str, Any]]] = [(image, {"mode": "r"}) for image in images]
    os.rename(str(paths[-1]), str(tmp_path / "away"))
    pairs[-1] = (images[-1], {"path": paths[-1], "mode": "r"})
    descriptors = open_descriptors()
    error = all_refused(pairs)
    assert (error.errno, error.file) == (errno.ENOENT, paths[-1])
    assert open_descriptors() == descriptors
    os.rename(str(tmp_path / "away"), str(paths[-1]))
    reports = reopen_all(pairs)
    assert [set(report.routes.values()) for report in reports] == [{"proc"}] * 19 + [{"path"}]
    for image in images:
        assert_as_kernel_says(image)
        image.close()
