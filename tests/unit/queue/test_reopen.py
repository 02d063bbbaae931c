"""Reopens under a queue: nobody waits for its owner, and no request fails."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import fdstash
from fdstash import Image, Queue
from tests.support.disks import noise

pytestmark = pytest.mark.usefixtures("no_descriptor_leaks")

_CHANGES: tuple[dict[str, Any], ...] = (
    {"cache": "none"},
    {"cache": "writeback"},
    {"mode": "r"},
    {"mode": "r+"},
    {"cache": "directsync"},
    {"cache": "writethrough"},
)


@pytest.fixture
def names(image: Image) -> Iterator[list[str]]:
    """Two paths of the image."""
    path = Path(image.files[0].path)
    other = path.with_name(f"other-{path.name}")
    os.link(path, other)
    yield [str(other), str(path)]
    other.unlink()


def test_the_owner_reopens_with_requests_in_flight(
    image: Image, queue: Queue, names: list[str]
) -> None:
    image.pwrite(noise(65536), 0)
    for change in (*_CHANGES, {"path": names[0]}, {"path": names[1]}):
        for number in range(4):
            queue.read(bytearray(4096), number * 8192, ("read", number))
            queue.write(noise(513, number), 60_000 + number * 600, ("write", number))
        queue.submit()
        report = image.reopen(**change, timeout=20)
        assert report is not None
        found: dict[Any, int] = {}
        while queue.in_flight:
            found |= dict(queue.wait())
        for tag, result in found.items():
            assert result == (4096 if tag[0] == "read" else 513), (change, tag)
        if image.mode == "r":
            image.reopen(mode="r+")
    for number in range(4):
        assert image.pread(513, 60_000 + number * 600) == noise(513, number)


def test_another_thread_reopens_while_the_owner_does_something_else(
    image: Image, queue: Queue
) -> None:
    for change in _CHANGES:
        if image.mode == "r+":
            queue.write(noise(777), 100, "write")
        queue.read(bytearray(100), 0, "read")
        queue.submit()
        with ThreadPoolExecutor(1) as elsewhere:
            elsewhere.submit(image.reopen, **change, timeout=20).result(30)
        while queue.in_flight:
            assert all(each.result >= 0 for each in queue.wait())


def test_what_a_reopen_holds_waits_and_does_not_fail(image: Image, engine: str) -> None:
    image.pwrite(bytes(8192), 0)
    held, go = threading.Event(), threading.Event()

    def prepare() -> None:
        held.set()
        assert go.wait(30)

    with image.queue(8, engine=engine) as queue:
        thread = threading.Thread(target=lambda: image.reopen(prepare=prepare))
        thread.start()
        assert held.wait(30)
        queue.write(noise(100), 0, "write")
        queue.read(bytearray(100), 4096, "read")
        queue.submit()
        assert queue.wait(2, timeout=0.2) == [("read", 100)]
        assert image.pread(100, 0) == bytes(100)
        go.set()
        assert queue.wait() == [("write", 100)]
        thread.join()
    assert image.pread(100, 0) == noise(100)


def test_an_event_loop_is_told_when_the_gate_opens(image: Image, engine: str) -> None:
    import select  # noqa: PLC0415 - of this test alone

    image.pwrite(bytes(8192), 0)
    held, go = threading.Event(), threading.Event()

    def prepare() -> None:
        held.set()
        assert go.wait(30)

    with image.queue(8, engine=engine) as queue:
        poll = select.poll()
        poll.register(queue.fileno(), select.POLLIN)
        thread = threading.Thread(target=lambda: image.reopen(prepare=prepare))
        thread.start()
        assert held.wait(30)
        queue.write(noise(100), 0, "write")
        queue.submit()
        assert queue.wait(0) == []
        assert not poll.poll(50)
        go.set()
        found: list[Any] = []
        while not found:
            assert poll.poll(10_000), "no wake-up"
            found = queue.wait(0)
        thread.join()
        assert found == [("write", 100)]


def test_a_write_within_prepare_is_refused_and_not_waited_for(image: Image, queue: Queue) -> None:
    image.pwrite(b"1", 0)
    found = []

    def prepare() -> None:
        queue.write(b"x" * 4096, 0, "write")
        queue.read(bytearray(1), 0, "read")
        while queue.in_flight:
            found.extend(queue.wait())

    image.reopen(prepare=prepare, timeout=20)
    assert dict(found) == {"write": -errno.EDEADLK, "read": 1}


def test_a_synchronous_write_over_one_in_flight_does_not_wait_for_ever(
    image: Image, queue: Queue
) -> None:
    """Both want the range of a page."""
    for turn in range(50):
        for number in range(4):
            queue.write(noise(1000, turn), number * 1000, number)
        queue.submit()
        image.pwrite(b"between", 990)
        while queue.in_flight:
            assert all(each.result == 1000 for each in queue.wait())
    assert image.pread(990, 0) == noise(1000, 49)[:990]


def test_no_description_outlives_a_reopen(tmp_path: Path, engine: str) -> None:
    """The kernel says who has a file open for writing: a lease for reading is refused then."""
    import fcntl  # noqa: PLC0415 - of this test alone

    path = tmp_path / "disk.raw"
    path.write_bytes(bytes(1 << 16))
    with (
        fdstash.open(path, "r+", format="raw", lock=False) as image,
        image.queue(4, engine=engine) as queue,
    ):
        queue.read(bytearray(4096), 0)
        queue.write(bytes(4096), 0)
        while queue.in_flight:
            queue.wait()
        image.reopen(mode="r")
        with path.open("rb") as file:
            fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_RDLCK)
            fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_UNLCK)
