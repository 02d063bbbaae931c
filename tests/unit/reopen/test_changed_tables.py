"""Entries of cluster tables that are not on disk yet, and a reopen that comes meanwhile."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fdstash import Image, ReopenError, needs
from fdstash.slot_change import SlotChange
from tests.support.sparse_files import guest_bytes, sparse_trouble
from tests.support.thread_disk import Disk

pytestmark = pytest.mark.usefixtures("no_descriptor_leaks")

GRAIN = 64 << 10


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    made = Disk(tmp_path, "delta")
    made.close()  # the stash
    return made


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("write", lambda image: image.pwrite(b"w" * GRAIN, 0)),
        ("zero", lambda image: image.zero(GRAIN, 0)),
        ("trim", lambda image: image.trim(GRAIN, 0)),
        ("flush", lambda image: image.flush()),
    ],
)
def test_a_request_that_needs_the_map_takes_the_one_after_a_reopen(
    name: str, change: Callable[[Image], object], disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = getattr(needs, name)

    def reopen_first(*arguments: Any) -> Any:
        image.reopen(path=disk.link)
        return real(*arguments)

    with disk.open() as image:
        image.pwrite(b"x" * 100, 5 * GRAIN)
        with monkeypatch.context() as slow:
            slow.setattr(needs, name, reopen_first)
            change(image)
        image.flush()
        found = image.pread(image.size, 0)
    assert guest_bytes(disk.path) == found
    if name in ("write", "zero"):
        assert found[:GRAIN] == (b"w" if name == "write" else b"\0") * GRAIN
    assert not list(sparse_trouble(disk.path))


def test_a_cache_mode_that_writes_through_has_earlier_entries_on_disk(disk: Disk) -> None:
    with disk.open() as image:
        image.pwrite(b"w" * 100, 7)
        image.reopen(cache="writethrough")
        assert guest_bytes(disk.path) == image.pread(image.size, 0)


def test_a_callable_finds_everything_in_the_files(disk: Disk) -> None:
    """It may copy them, and flush the image itself."""
    seen = []

    def copy() -> None:
        image.flush()
        seen.append(guest_bytes(disk.path) == image.pread(image.size, 0))

    with disk.open() as image:
        for options in ({"cache": "none"}, {"mode": "r"}, {"mode": "r+"}, {"path": disk.link}):
            if image.mode == "r+":
                image.pwrite(b"w" * 100, 7 * GRAIN * (len(seen) + 1))
            image.reopen(prepare=copy, **options)
    assert seen == [True] * 4


def test_no_write_is_let_in_between_a_commit_and_its_rollback(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would be acknowledged, and its entries dropped with the map."""
    found: list[object] = []

    def write() -> None:
        try:
            found.append(image.pwrite(b"lost", 0))
        except OSError as error:
            found.append(error.errno)

    def fail(change: SlotChange) -> None:
        writer.start()
        time.sleep(0.1)
        raise OSError(errno.EIO, "after the commit")

    monkeypatch.setattr(SlotChange, "settle", fail)
    with disk.open("r") as image:
        before = image.pread(4, 0)
        writer = threading.Thread(target=write)
        with pytest.raises(ReopenError):
            image.reopen(mode="r+")
        writer.join(10)
        assert found == [errno.EBADF]
        assert image.pread(4, 0) == before
