"""Who may use a queue, and how it ends."""

from __future__ import annotations

import array
import errno
import fcntl
import gc
import signal
import threading
import warnings
from pathlib import Path

import pytest

import fdstash
from fdstash import AlignedBuffer, ClosedError, Image
from tests.support.disks import make_raw, noise
from tests.support.forked import reap, run_in_child

pytestmark = pytest.mark.usefixtures("no_descriptor_leaks")


def test_after_close_every_call_is_a_closed_error(image: Image, engine: str) -> None:
    queue = image.queue(4, engine=engine)
    queue.read(bytearray(512), 0)
    queue.close()
    queue.close()
    assert queue.closed
    calls = (
        queue.submit,
        queue.wait,
        queue.fileno,
        queue.flush,
        lambda: queue.in_flight,
        lambda: queue.engine,
        lambda: queue.read(bytearray(1), 0),
        lambda: queue.write(b"1", 0),
        lambda: queue.zero(1, 0),
        lambda: queue.trim(1, 0),
        queue.__enter__,
    )
    for call in calls:
        with pytest.raises(ClosedError):
            call()


def test_closing_waits_for_what_is_in_flight(image: Image, engine: str) -> None:
    data = noise(image.size // 8 * 8)
    n = len(data) // 8
    queue = image.queue(8, engine=engine)
    for number in range(8):
        queue.write(data[number * n :][:n], number * n)
    queue.submit()
    queue.close()
    assert image.pread(len(data), 0) == data


def test_an_image_is_closed_with_requests_in_flight(image: Image, engine: str) -> None:
    queue = image.queue(8, engine=engine)
    size, sparse = image.size, image.format_info.get("create-type") == "monolithicSparse"
    for number in range(6):
        queue.read(bytearray(size), 0, number)
    queue.submit()
    queue.read(bytearray(1), 0, "not submitted")
    image.close()
    found = {}
    while queue.in_flight:
        found |= dict(queue.wait())
    assert found.pop("not submitted") == -errno.ESHUTDOWN
    # What waits for the driver is not in flight yet.
    refused = {-errno.ESHUTDOWN} if sparse else set()
    assert set(found) == set(range(6))
    assert set(found.values()) <= {size} | refused
    with pytest.raises(ClosedError):
        queue.read(bytearray(1), 0)
    queue.close()


def test_a_closed_queue_holds_no_file(tmp_path: Path, engine: str) -> None:
    path = make_raw(tmp_path, 1 << 16)
    for _ in range(20):
        with (
            fdstash.open(path, "r+", format="raw", cache="none") as image,
            image.queue(4, engine=engine) as queue,
            AlignedBuffer(4096) as memory,
        ):
            queue.read(memory, 0)
            assert queue.wait()[0].result == 4096
        with path.open("r+b") as file:
            # Granted only to who has it open alone.
            fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)


def test_flushes_in_flight_end_before_an_image_does(tmp_path: Path, engine: str) -> None:
    with (
        fdstash.open(make_raw(tmp_path, 4096), "r+", format="raw") as image,
        image.queue(64, engine=engine) as queue,
    ):
        for number in range(64):
            queue.flush(number)
        queue.submit()
        image.close()
        found: dict[int, int] = {}
        while queue.in_flight:
            found |= dict(queue.wait())
    assert found == dict.fromkeys(range(64), 0)


def test_a_kept_error_pins_no_buffer(image: Image, engine: str) -> None:
    kept = []
    with image.queue(1, engine=engine) as queue:
        queue.read(bytearray(1), 0)
        for call in (
            lambda buffer: queue.read(buffer, 0),
            lambda buffer: queue.write(buffer, 0),
            lambda buffer: queue.read(buffer, -1),
            lambda buffer: queue.read_many(buffer, 8, buffer),
            lambda buffer: queue.read_many(array.array("q", [0, 8]), 8, buffer),
            lambda buffer: queue.write_many(array.array("q", [0]), 8, buffer),
        ):
            buffer = bytearray(8)
            with pytest.raises((OSError, TypeError)) as caught:
                call(buffer)
            buffer.append(0)  # BufferError, if it were pinned
            kept.append(caught)
    assert len(kept) == 6


def test_another_thread_is_refused_and_never_waits(image: Image, engine: str) -> None:
    held, go = threading.Event(), threading.Event()
    image.pwrite(b"0" * 100, 0)  # the first write of all waits for a reopen by itself
    with image.queue(4, engine=engine) as queue:

        def prepare() -> None:
            held.set()
            assert go.wait(30)

        reopening = threading.Thread(target=lambda: image.reopen(prepare=prepare))
        reopening.start()
        assert held.wait(30)
        queue.write(b"x" * 100, 0, "held")
        waiting = threading.Thread(target=queue.wait)
        waiting.start()
        while queue.in_flight and not queue._owner.locked():
            pass
        for call in (queue.submit, lambda: queue.wait(0), queue.close):
            with pytest.raises(RuntimeError, match="another thread"):
                call()
        go.set()
        reopening.join(30)
        waiting.join(30)
        assert not waiting.is_alive()
        assert queue.in_flight == 0
    assert image.pread(100, 0) == b"x" * 100


def test_a_queue_moves_between_threads(image: Image, engine: str) -> None:
    with image.queue(4, engine=engine) as queue:
        failed = []

        def turn(number: int) -> None:
            try:
                queue.write(noise(4096, number), 0, number)
                queue.submit()
            except BaseException as error:  # noqa: BLE001 - told by the test
                failed.append(error)

        for number in range(20):
            thread = threading.Thread(target=turn, args=(number,))
            thread.start()
            thread.join()
            assert [each.tag for each in queue.wait()] == [number]
        assert not failed
    assert image.pread(4096, 0) == noise(4096, 19)


def test_a_forked_child_is_shut_out_and_harms_nothing(image: Image, engine: str) -> None:
    def check() -> None:
        with pytest.raises(ClosedError):
            queue.wait()
        queue.close()

    with image.queue(4, engine=engine) as queue:
        buffer = bytearray(4096)
        image.pwrite(noise(4096), 0)
        queue.read(buffer, 0, "parent's")
        queue.submit()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a fork beside threads
            child = run_in_child(check)
        reap(child)
        assert queue.wait() == [("parent's", 4096)]
        assert buffer == noise(4096)


def test_an_unclosed_queue_is_told_and_closed(image: Image, engine: str) -> None:
    queue = image.queue(4, engine=engine)
    queue.read(bytearray(4096), 0)
    queue.submit()
    with pytest.warns(ResourceWarning, match="unclosed queue"):  # noqa: PT031 - one thing
        del queue
        gc.collect()


def test_a_signal_is_handled_while_a_queue_waits(tmp_path: Path, engine: str) -> None:
    class Alarm(Exception):
        pass

    def handler(*_: object) -> None:
        raise Alarm

    def prepare() -> None:
        held.set()
        assert go.wait(30)

    held, go = threading.Event(), threading.Event()
    before = signal.signal(signal.SIGALRM, handler)
    try:
        with (
            fdstash.open(make_raw(tmp_path, 8192), "r+", format="raw") as image,
            image.queue(4, engine=engine) as queue,
        ):
            reopening = threading.Thread(target=lambda: image.reopen(prepare=prepare))
            image.pwrite(b"1", 0)  # the first write of all is not held here
            reopening.start()
            assert held.wait(30)
            queue.write(b"x" * 100, 0, "held")
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            with pytest.raises(Alarm):
                queue.wait()
            go.set()
            reopening.join()
            assert queue.wait() == [("held", 100)]
    finally:
        signal.signal(signal.SIGALRM, before)
