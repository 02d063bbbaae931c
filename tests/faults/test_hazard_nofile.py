"""A soft RLIMIT_NOFILE that is too low fails a reopen before anything changes.

dup3 refuses a number at or above the limit, also one that is in use: an exchange that only looked
for free numbers would find that out half-way.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import resource
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import fdstash
from fdstash import FDStash, Image, ImageIOError, ReopenError, raise_nofile, reopen_all
from fdstash.swap import SwapError
from tests.support.disks import FlatDisk, make_flat, make_raw
from tests.support.kernel import open_descriptors, same_description
from tests.support.sandbox import Sandbox
from tests.support.seen import assert_as_kernel_says, locked_bytes
from tests.support.uncured import bare_exchange

pytestmark = [pytest.mark.usefixtures("no_descriptor_leaks")]


@contextlib.contextmanager
def soft_limit(limit: int) -> Iterator[None]:
    before, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (before, hard))


@contextlib.contextmanager
def numbered_from(first: int) -> Iterator[None]:
    """What is opened in the block gets numbers from `first` on."""
    taken = []
    while (fd := os.open("/dev/null", os.O_RDONLY)) < first:
        taken.append(fd)
    os.close(fd)
    try:
        yield
    finally:
        for fd in taken:
            os.close(fd)


@contextlib.contextmanager
def room_for(more: int) -> Iterator[None]:
    """The limit lets the block open `more` descriptors beyond those that there are now."""
    next_number = max(open_descriptors()) + 1
    with numbered_from(next_number), soft_limit(next_number + more):
        yield


@contextlib.contextmanager
def unchanged(image: Image) -> Iterator[None]:
    """Bytes, modes, locks, descriptors and descriptions are the same afterwards."""
    copies = [os.dup(file.fd) for file in image.files]
    locks = [locked_bytes(file.fd) for file in image.files]
    before = image.mode, image.cache, image.files, image.pread(image.size, 0), open_descriptors()
    yield
    after = image.mode, image.cache, image.files, image.pread(image.size, 0), open_descriptors()
    assert after == before
    assert [locked_bytes(file.fd) for file in image.files] == locks
    assert all(map(same_description, copies, (file.fd for file in image.files)))
    assert_as_kernel_says(image)
    for copy in copies:
        os.close(copy)


@pytest.fixture
def disk(tmp_path: Path) -> FlatDisk:
    return make_flat(tmp_path)


def refused(image: Image, **options: Any) -> ReopenError:
    with pytest.raises(ReopenError) as caught:
        image.reopen(**options)
    assert caught.value.errno == errno.EMFILE
    assert caught.value.rolled_back
    return caught.value


def test_a_lowered_limit_is_refused_with_the_number_needed_and_works_once_raised(
    disk: FlatDisk,
) -> None:
    with fdstash.open(disk.path, "r+") as image:
        with unchanged(image), room_for(0):
            error = refused(image, mode="r")
            assert error.phase == "acquire"
            assert f"{3 * len(image.files) + 1} descriptors" in str(error)
            assert "raise_nofile" in str(error)
        with room_for(0):
            raise_nofile(resource.getrlimit(resource.RLIMIT_NOFILE)[0] + 64)
            image.reopen(mode="r")
        assert_as_kernel_says(image)


def test_slots_above_a_lowered_limit_are_seen_before_the_exchange(disk: FlatDisk) -> None:
    """There is room for every new description, but the slots are out of reach."""
    with numbered_from(300):
        image = fdstash.open(disk.path, "r+")
    with image:
        assert all(file.fd >= 300 for file in image.files)
        for limit in (128, 300, max(file.fd for file in image.files)):
            with unchanged(image), soft_limit(limit):
                error = refused(image, mode="r")
                assert error.phase == "prove"
                assert error.file in {file.name for file in image.files}
        with soft_limit(max(file.fd for file in image.files) + 1):
            image.reopen(mode="r")


def test_without_the_look_at_the_limit_the_exchange_itself_fails(disk: FlatDisk) -> None:
    """Half of the slots out of reach: the first half was exchanged, and had to be taken back."""
    with numbered_from(300):
        image = fdstash.open(disk.path, "r+")
    with image, soft_limit(image.files[2].fd):
        with pytest.raises(SwapError) as caught:
            bare_exchange(image, mode="r", prove=False)
        assert "the exchange of descriptors" in caught.value.message
        assert caught.value.errno == errno.EBADF
        assert caught.value.file == image.files[2].name


def test_what_needs_no_descriptor_works_under_any_limit(disk: FlatDisk) -> None:
    with fdstash.open(disk.path, "r+", cache="none") as image, soft_limit(3):
        for cache in ("writeback", "none", "directsync", "writethrough"):
            image.reopen(cache=cache)
            image.pwrite(b"abc", 20_001)
        assert image.pread(3, 20_001) == b"abc"


def test_several_images_are_refused_together(disk: FlatDisk, tmp_path: Path) -> None:
    raw = make_raw(tmp_path)
    with (
        fdstash.open(raw, "r+", format="raw") as first,
        fdstash.open(disk.path, "r+") as second,
        unchanged(first),
        unchanged(second),
        # Enough for the one, not for the other.
        room_for(4),
        pytest.raises(ReopenError) as caught,
    ):
        reopen_all([(first, {"mode": "r"}), (second, {"mode": "r"})])
    assert caught.value.errno == errno.EMFILE


def test_a_change_of_path_is_refused_with_the_number_needed(disk: FlatDisk, tmp_path: Path) -> None:
    (tmp_path / "copy").mkdir()
    copy = make_flat(tmp_path / "copy")
    with fdstash.open(disk.path, "r+") as image:
        for more in (1, 2, len(image.files), 2 * len(image.files) - 1):
            with unchanged(image), room_for(more):
                error = refused(image, path=copy.path)
            # Slots and locks of both graphs, and perhaps the look before an open.
            (named,) = map(int, re.findall(r"(\d+) descriptors", str(error)))
            assert 0 <= named - 4 * len(image.files) <= 1
        image.reopen(path=copy.path)


def test_a_stash_needs_room_for_its_dups_only(disk: FlatDisk) -> None:
    with fdstash.open(disk.path, "r+") as image, FDStash() as stash:
        for file in image.files:
            stash.add(file.name, os.open(file.name, os.O_RDONLY))
        with unchanged(image), room_for(3):
            error = refused(image, mode="r", stash=stash)
        assert error.phase == "acquire"
        image.reopen(mode="r", stash=stash)


# ------------------------------------------------------- the exact number, in a child


def close_gaps() -> None:
    """Every number below the highest is in use, or counts would not be numbers."""
    while os.open("/dev/null", os.O_RDONLY) <= max(open_descriptors()) - 1:
        pass


def scan_reopen(sock: socket.socket, path: str) -> dict[str, Any]:
    """Try every limit from too low to enough; where reopens begin to work, and what is said."""
    close_gaps()
    with fdstash.open(path, "r+") as image:
        files = len(image.files)
        others = len(open_descriptors()) - 2 * files
        named: set[int] = set()
        works: dict[int, bool] = {}
        for limit in range(others, others + 3 * files + 4):
            for mode in ("r", "r+"):
                before = (image.mode, image.files, open_descriptors())
                try:
                    with soft_limit(limit):
                        image.reopen(mode=mode)
                except ReopenError as error:
                    works[limit] = False
                    assert error.errno == errno.EMFILE
                    assert (image.mode, image.files, open_descriptors()) == before
                    named.update(map(int, re.findall(r"(\d+) descriptors", str(error))))
                else:
                    # From r to r would be no change at all.
                    works[limit] = works.get(limit, True)
                    assert len(open_descriptors()) == len(before[2])
    first = min((limit for limit, good in works.items() if good), default=-1)
    return {
        "files": files,
        "others": others,
        "first": first,
        "sharp": all(good == (limit >= first) for limit, good in works.items()),
        "named": sorted(named),
    }


def scan_open(sock: socket.socket, path: str) -> dict[str, Any]:
    """The same for `open`: nothing may stay open where it fails."""
    close_gaps()
    before = open_descriptors()
    works = {}
    for limit in range(len(before), len(before) + 24):
        try:
            with soft_limit(limit):
                image = fdstash.open(path, "r+")
        except ImageIOError as error:
            works[limit] = False
            assert error.errno == errno.EMFILE
            assert "raise_nofile" in str(error)
        else:
            works[limit] = True
            image.close()
        assert open_descriptors() == before
    first = min(limit for limit, good in works.items() if good)
    return {
        "others": len(before),
        "first": first,
        "sharp": all(good == (limit >= first) for limit, good in works.items()),
    }


@pytest.mark.root
def test_the_number_named_is_the_number_needed(disk: FlatDisk) -> None:
    """At that number beside the process's other descriptors it works, below it never."""
    with Sandbox(scan_reopen, str(disk.path), imports=[__name__]) as child:
        found = child.result()
    assert found["files"] == 5
    assert found["named"] == [3 * 5 + 1]
    assert found["first"] == found["others"] + 3 * 5 + 1
    assert found["sharp"]


@pytest.mark.root
def test_an_open_that_meets_the_limit_leaves_nothing_open(disk: FlatDisk) -> None:
    with Sandbox(scan_open, str(disk.path), imports=[__name__]) as child:
        found = child.result()
    assert found["sharp"]
    assert found["others"] + 10 <= found["first"] <= found["others"] + 12
