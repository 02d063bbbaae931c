"""A queue that is bound to one thread: what that thread leaves behind, and who may have it."""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import fdstash
from fdstash import AlignedBuffer, Image, Queue
from tests.support.disks import make_raw, noise
from tests.support.fuse import HeldFs

pytestmark = [pytest.mark.usefixtures("no_descriptor_leaks"), pytest.mark.threads]

PART = 4096
PARTS = 64
LIMIT = 30  # seconds, after which a wait is one without end


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = make_raw(tmp_path, PARTS * PART)
    made.write_bytes(noise(PARTS * PART))
    return made


@pytest.fixture
def opened(path: Path) -> Iterator[Image]:
    with fdstash.open(path, "r+", format="raw", cache="none") as image:
        yield image


@pytest.fixture(params=["io_uring", "auto", "threads"])
def engine(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def held_fs(tmp_path: Path) -> Iterator[HeldFs]:
    backing = tmp_path / "backing"
    backing.mkdir()
    filesystem = HeldFs(backing, tmp_path / "held")
    try:
        yield filesystem
    finally:
        filesystem.close()


def on_another_thread(call: Callable[[], object]) -> None:
    """Its end is that of a thread of the system, and not only of the interpreter's."""
    failed = []

    def run() -> None:
        try:
            call()
        except BaseException as error:  # noqa: BLE001 - told below
            failed.append(error)

    before = set(os.listdir("/proc/self/task"))
    thread = threading.Thread(target=run)
    thread.start()
    number = str(thread.native_id)
    thread.join(LIMIT)
    while number in set(os.listdir("/proc/self/task")) - before:
        pass
    assert not failed


def collected(queue: Queue) -> dict[Any, int]:
    found: dict[Any, int] = {}
    while queue.in_flight:
        completions = queue.wait(1, timeout=LIMIT)
        assert completions, "it waits without end"
        found |= dict(completions)
    return found


def begin(queue: Queue, memory: AlignedBuffer) -> None:
    """Reads of the first half, writes of the second; some that are no whole pages."""
    view = memoryview(memory)
    for number in range(PARTS // 2):
        at = number * PART
        queue.read(view[at : at + PART], at, ("read", number))
    for number in range(PARTS // 2, PARTS):
        at = number * PART
        queue.write(view[at : at + PART - number % 2], at, ("write", number))
    view.release()


def check(found: dict[Any, int], memory: AlignedBuffer, path: Path) -> None:
    assert found == {
        (("read", number) if number < PARTS // 2 else ("write", number)): PART
        - (number % 2 if number >= PARTS // 2 else 0)
        for number in range(PARTS)
    }
    half = PARTS // 2 * PART
    original, written = noise(PARTS * PART), noise(PARTS * PART, 1)
    assert memory[:half] == original[:half]
    data = path.read_bytes()
    for number in range(PARTS // 2, PARTS):
        at, n = number * PART, PART - number % 2
        assert data[at : at + n] == written[at : at + n]
        assert data[at + n : at + PART] == original[at + n : at + PART]


@pytest.mark.parametrize("user", ["waits", "closes", "closes the image", "reopens"])
def test_its_thread_ends_with_requests_in_flight(
    opened: Image, path: Path, engine: str, user: str
) -> None:
    with AlignedBuffer(PARTS * PART) as memory:
        memory[:] = noise(PARTS * PART, 1)
        queue = opened.queue(PARTS, engine=engine, bound=True)
        on_another_thread(lambda: (begin(queue, memory), queue.submit()))
        if user == "closes":
            queue.close()
            found = {("read", n): PART for n in range(PARTS // 2)}
            found |= {("write", n): PART - n % 2 for n in range(PARTS // 2, PARTS)}
        else:
            if user == "closes the image":
                opened.close()
            elif user == "reopens":
                opened.reopen(mode="r", timeout=LIMIT)
            found = collected(queue)
        check(found, memory, path)
        queue.close()


@pytest.mark.parametrize("engine", ["io_uring", "threads"])
def test_its_thread_ends_while_the_host_does_not_answer(held_fs: HeldFs, engine: str) -> None:
    """Nobody reads or writes the memory of requests once they are said to be done."""
    (held_fs.backing / "disk").write_bytes(noise(PARTS * PART))
    with (
        fdstash.open(held_fs.folder / "disk", "r+", format="raw", cache="none") as image,
        image.queue(PARTS, engine=engine, bound=True) as queue,
        AlignedBuffer(PARTS * PART) as memory,
    ):
        with image.queue(1, engine=engine) as first:
            first.read(memory, 0)  # FUSE asks once, while it is submitted, whether there is poll
            assert first.wait()
        held_fs.stop()

        def some() -> None:  # not more at once than FUSE takes without waiting
            with memoryview(memory) as view:
                for number in range(4):
                    at = number * PART
                    queue.read(view[at : at + PART], at, number)
            queue.submit()

        thread = threading.Thread(target=some)
        thread.start()
        thread.join(LIMIT)
        assert not thread.is_alive()
        threading.Timer(0.1, held_fs.resume).start()
        assert collected(queue) == dict.fromkeys(range(4), PART)
        assert memory[: 4 * PART] == noise(PARTS * PART)[: 4 * PART]
        # What has come late would be seen here.
        memory[:] = bytes(PARTS * PART)
        queue.close()
        assert memory[:] == bytes(PARTS * PART)


def test_it_does_not_sleep_through_a_completion_beside_what_the_gate_holds(
    opened: Image, engine: str
) -> None:
    opened.pwrite(bytes(PART), 0)
    held, go = threading.Event(), threading.Event()

    def prepare() -> None:
        held.set()
        assert go.wait(LIMIT)

    with opened.queue(8, engine=engine, bound=True) as queue, AlignedBuffer(PART) as memory:
        reopening = threading.Thread(target=lambda: opened.reopen(prepare=prepare))
        reopening.start()
        assert held.wait(LIMIT)
        queue.write(noise(100), 0, "write")
        for turn in range(100):
            queue.read(memory, turn % PARTS * PART, turn)
            assert queue.wait(1, timeout=LIMIT) == [(turn, PART)]
        go.set()
        assert queue.wait(1, timeout=LIMIT) == [("write", 100)]
        reopening.join()


def test_it_looks_for_completions_without_sleeping(opened: Image, engine: str) -> None:
    with opened.queue(8, engine=engine, bound=True) as queue, AlignedBuffer(PART) as memory:
        for turn in range(20):
            queue.read(memory, turn * PART, turn)
            while not (found := queue.wait(0)):
                pass
            assert found == [(turn, PART)]


def test_an_event_loop_is_told(opened: Image, engine: str) -> None:
    with opened.queue(8, engine=engine, bound=True) as queue, AlignedBuffer(PART) as memory:
        poll = select.poll()
        poll.register(queue.fileno(), select.POLLIN)
        queue.wait(0)
        for turn in range(50):
            queue.read(memory, turn * PART, turn)
            queue.submit()
            found: list[Any] = []
            while not found:
                assert poll.poll(LIMIT * 1000), "no wake-up"
                found = queue.wait(0)
            assert found == [(turn, PART)]


def test_its_thread_reopens_with_requests_in_flight(opened: Image, engine: str) -> None:
    with opened.queue(8, engine=engine, bound=True) as queue, AlignedBuffer(8 * PART) as memory:
        memory[:] = noise(8 * PART, 1)
        for mode in ("r", "r+"):
            move = Queue.write if opened.mode == "r+" else Queue.read
            with memoryview(memory) as view:
                for number in range(8):
                    at = number * PART
                    move(queue, view[at : at + PART], at, number)
            queue.submit()
            opened.reopen(mode=mode, timeout=LIMIT)
            assert collected(queue) == dict.fromkeys(range(8), PART)
        assert opened.pread(8 * PART, 0) == noise(8 * PART, 1)


def test_another_thread_has_it_all_the_same(opened: Image, path: Path, engine: str) -> None:
    with (
        opened.queue(PARTS, engine=engine, bound=True) as queue,
        AlignedBuffer(PARTS * PART) as memory,
    ):
        memory[:] = noise(PARTS * PART, 1)
        begin(queue, memory)
        queue.submit()
        found: dict[Any, int] = {}
        on_another_thread(lambda: found.update(collected(queue)))
        check(found, memory, path)
        queue.read(memory, 0, "again")
        assert queue.wait(1, timeout=LIMIT) == [("again", PARTS * PART)]


def test_a_pinned_buffer_outlives_the_thread(opened: Image, path: Path, engine: str) -> None:
    with AlignedBuffer(PARTS * PART) as memory:
        memory[:] = noise(PARTS * PART, 1)
        queue = opened.queue(PARTS, engine=engine, bound=True)
        on_another_thread(lambda: (queue.pin(memory), begin(queue, memory), queue.submit()))
        check(collected(queue), memory, path)
        queue.close()


def test_many_turns_leave_nothing_behind(path: Path, engine: str) -> None:
    descriptors = len(os.listdir("/proc/self/fd"))
    with fdstash.open(path, "r+", format="raw") as image:
        for turn in range(10):
            queue = image.queue(4, engine=engine, bound=True)
            buffer = bytearray(PART)

            def one(queue: Queue = queue, buffer: bytearray = buffer, turn: int = turn) -> None:
                queue.read(buffer, turn * PART)
                queue.submit()

            on_another_thread(one)
            queue.close()
            assert buffer == noise(PARTS * PART)[turn * PART :][:PART]
    assert len(os.listdir("/proc/self/fd")) == descriptors
