"""The gate: which requests a hold lets through, which it waits for, and how it ends."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

import fdstash
from fdstash import ClosedError, Image, ImageIOError
from fdstash.datapath import DataPath, Requests
from tests.support.disks import ExtentSpec, make_flat, make_raw
from tests.support.tier import count
from tests.support.uncured import running

pytestmark = [pytest.mark.threads, pytest.mark.usefixtures("no_descriptor_leaks")]

SIZE = 1 << 16
SOON = 0.05
"""Seconds in which what does not wait is done, and after which what is not done waits."""
PATIENCE = 30.0

READS, WRITES = int(Requests.READS), int(Requests.WRITES)
UNALIGNED, FLUSHES = int(Requests.UNALIGNED_WRITES), int(Requests.FLUSHES)
CLASSES = [READS, WRITES, UNALIGNED, FLUSHES]
ALL_WRITES = WRITES | UNALIGNED


@pytest.fixture
def image(tmp_path: Path) -> Iterator[Image]:
    with fdstash.open(make_raw(tmp_path, SIZE), "r+", format="raw") as opened:
        opened.pwrite(b"x", 0)  # the first write is one of metadata too
        yield opened


@pytest.fixture
def core(image: Image) -> DataPath:
    return image._state.core


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as made:
        yield made


def waits(future: Future[object]) -> bool:
    time.sleep(SOON)
    return not future.done()


@contextmanager
def held(core: DataPath, mask: int) -> Iterator[None]:
    core.hold(mask, PATIENCE)
    try:
        yield
    finally:
        core.release()


REQUESTS: dict[str, tuple[Callable[[Image], object], int]] = {
    "pread": (lambda image: image.pread(100, 3), READS),
    "preadv": (lambda image: image.preadv([bytearray(9), bytearray(5000)], 3), READS),
    "whole pages": (lambda image: image.pwrite(b"x" * 8192, 4096), WRITES),
    "part of a page": (lambda image: image.pwrite(b"x" * 512, 4096), UNALIGNED),
    "two parts of pages": (lambda image: image.pwrite(b"x" * 4096, 512), UNALIGNED),
    "pwritev": (lambda image: image.pwritev([b"x" * 1000, b"y" * 3096], 0), WRITES),
    "zero pages": (lambda image: image.zero(8192, 4096), WRITES),
    "zero bytes": (lambda image: image.zero(100, 4096), UNALIGNED),
    "trim pages": (lambda image: image.trim(8192, 4096), WRITES),
    "trim bytes": (lambda image: image.trim(8192, 1), UNALIGNED),
    "flush": (lambda image: image.flush(), FLUSHES),
}


@pytest.mark.parametrize("name", REQUESTS)
@pytest.mark.parametrize("mask", CLASSES)
def test_a_hold_lets_every_other_class_through(
    image: Image, core: DataPath, pool: ThreadPoolExecutor, name: str, mask: int
) -> None:
    request, kind = REQUESTS[name]
    with held(core, mask):
        future = pool.submit(request, image)
        if mask == kind:
            assert waits(future)
        else:
            future.result(PATIENCE)
    future.result(PATIENCE)


def test_what_waited_in_vain_changes_nothing_meanwhile(
    image: Image, core: DataPath, pool: ThreadPoolExecutor
) -> None:
    before = image.pread(SIZE, 0)
    with held(core, ALL_WRITES):
        future = pool.submit(image.pwrite, b"later", 100)
        assert waits(future)
        assert image.pread(SIZE, 0) == before
    assert future.result(PATIENCE) == 5
    assert image.pread(5, 100) == b"later"


def test_where_extents_move_pages_apart_every_write_is_unaligned(
    tmp_path: Path, pool: ThreadPoolExecutor
) -> None:
    """Guest pages that are no host pages share blocks with their neighbours."""
    odd = make_flat(tmp_path, [ExtentSpec("RW", 128, name="odd.bin", start=1)])
    with fdstash.open(odd.path, "r+") as image:
        image.pwrite(b"x" * 4096, 0)
        with held(image._state.core, UNALIGNED):
            future = pool.submit(image.pwrite, b"x" * 4096, 0)
            assert waits(future)
        future.result(PATIENCE)
        with held(image._state.core, WRITES):
            pool.submit(image.pwrite, b"x" * 4096, 0).result(PATIENCE)


def test_a_switch_to_such_extents_makes_waiting_writes_unaligned(
    tmp_path: Path, pool: ThreadPoolExecutor
) -> None:
    """A write that waited as one of whole pages meets the other layout when it goes on."""
    whole = make_flat(tmp_path, [ExtentSpec("RW", 128, name="whole.bin")], name="whole.vmdk")
    odd = make_flat(tmp_path, [ExtentSpec("RW", 128, name="odd.bin", start=1)], name="odd.vmdk")
    with fdstash.open(whole.path, "r+") as image:
        core = image._state.core
        image.pwrite(b"x" * 4096, 0)
        futures = []

        def prepare() -> None:
            futures.append(pool.submit(image.pwrite, b"y" * 4096, 4096))
            assert waits(futures[0])

        image.reopen(path=odd.path, prepare=prepare)
        futures[0].result(PATIENCE)
        with held(core, UNALIGNED):
            future = pool.submit(image.pwrite, b"z" * 4096, 0)
            assert waits(future)
        future.result(PATIENCE)
        assert image.pread(8192, 0) == b"z" * 4096 + b"y" * 4096


# ----------------------------------------------------------------------- draining


@pytest.mark.parametrize("kind", CLASSES)
def test_a_hold_waits_for_requests_in_flight(
    core: DataPath, pool: ThreadPoolExecutor, kind: int
) -> None:
    ticket = core.enter(kind)
    assert core.in_flight() == 1
    future = pool.submit(core.hold, kind, PATIENCE)
    assert waits(future)
    core.leave(ticket, kind)
    future.result(PATIENCE)
    assert core.in_flight() == 0
    core.release()


@pytest.mark.parametrize("kind", CLASSES)
def test_a_hold_does_not_wait_for_other_classes(core: DataPath, kind: int) -> None:
    others = [other for other in CLASSES if other != kind]
    tickets = [(core.enter(other), other) for other in others]
    with held(core, kind):
        assert core.in_flight() == len(others)
    for ticket, other in tickets:
        core.leave(ticket, other)


@pytest.mark.parametrize("seconds", [0.0, 0.01, 0.2])
def test_a_hold_that_times_out_leaves_the_gate_open(
    image: Image, core: DataPath, seconds: float
) -> None:
    ticket = core.enter(WRITES)
    start = time.monotonic()
    with pytest.raises(TimeoutError):
        core.hold(ALL_WRITES, seconds)
    assert seconds <= time.monotonic() - start < seconds + 5
    for request, _ in REQUESTS.values():
        request(image)
    core.leave(ticket, WRITES)
    with held(core, ALL_WRITES):
        pass


def test_a_wider_hold_that_times_out_leaves_the_narrow_one(
    image: Image, core: DataPath, pool: ThreadPoolExecutor
) -> None:
    ticket = core.enter(READS)
    core.hold(UNALIGNED, 0)
    with pytest.raises(TimeoutError):
        core.hold(READS, 0.01)
    future = pool.submit(image.pwrite, b"x", 1)
    assert waits(future)
    pool.submit(image.pread, 1, 1).result(PATIENCE)
    core.leave(ticket, READS)
    core.release()
    future.result(PATIENCE)


def test_requests_that_waited_for_a_hold_that_timed_out_go_on(
    image: Image, core: DataPath, pool: ThreadPoolExecutor
) -> None:
    ticket = core.enter(WRITES)
    hold = pool.submit(core.hold, ALL_WRITES, 0.2)
    time.sleep(SOON)
    write = pool.submit(image.pwrite, b"x", 1)
    with pytest.raises(TimeoutError):
        hold.result(PATIENCE)
    assert write.result(PATIENCE) == 1
    core.leave(ticket, WRITES)


def test_no_limit_waits_for_ever(core: DataPath, pool: ThreadPoolExecutor) -> None:
    ticket = core.enter(READS)
    future = pool.submit(core.hold, READS, None)
    assert waits(future)
    core.leave(ticket, READS)
    future.result(PATIENCE)
    core.release()


# -------------------------------------------------- the thread that holds, and close


@pytest.mark.parametrize("name", REQUESTS)
def test_the_thread_that_holds_gets_an_error_instead_of_a_deadlock(
    image: Image, core: DataPath, name: str
) -> None:
    request, kind = REQUESTS[name]
    with held(core, kind):
        with pytest.raises(ImageIOError) as caught:
            request(image)
        assert caught.value.errno == errno.EDEADLK
    request(image)


def test_the_thread_that_held_is_nobody_special_afterwards(
    image: Image, core: DataPath, pool: ThreadPoolExecutor
) -> None:
    with held(core, WRITES):
        pass
    begun, end = threading.Event(), threading.Event()

    def other() -> None:
        with held(core, ALL_WRITES):
            begun.set()
            end.wait(PATIENCE)

    holder = pool.submit(other)
    assert begun.wait(PATIENCE)
    write = threading.Thread(target=lambda: image.pwrite(b"mine", 0))
    write.start()
    write.join(SOON)
    assert write.is_alive()
    end.set()
    write.join(PATIENCE)
    holder.result(PATIENCE)
    assert image.pread(4, 0) == b"mine"


def test_closing_wakes_those_who_wait(
    image: Image, core: DataPath, pool: ThreadPoolExecutor
) -> None:
    core.hold(ALL_WRITES, 0)
    waiting = [pool.submit(image.pwrite, b"x", number) for number in range(4)]
    time.sleep(SOON)
    image.close()
    for future in waiting:
        with pytest.raises(ClosedError):
            future.result(PATIENCE)


@pytest.mark.parametrize("kind", CLASSES)
def test_closing_waits_for_requests_in_flight(
    image: Image, core: DataPath, pool: ThreadPoolExecutor, kind: int
) -> None:
    ticket = core.enter(kind)
    future = pool.submit(image.close)
    assert waits(future)
    with pytest.raises(ClosedError):
        core.enter(kind)
    core.leave(ticket, kind)
    future.result(PATIENCE)


# -------------------------------------------------------------------------- grace


def test_a_grace_period_ends_while_new_requests_keep_coming(core: DataPath) -> None:
    """Two readers hand over to each other, so that there is never a moment without one."""
    turns = [threading.Semaphore(1), threading.Semaphore(0)]

    def reader(number: int) -> Callable[[], None]:
        def read() -> None:
            if not turns[number].acquire(timeout=0.1):
                return
            ticket = core.enter(READS)
            turns[1 - number].release()
            time.sleep(0.0005)
            core.leave(ticket, READS)

        return read

    with running(reader(0), reader(1)):
        ended = [core.grace(PATIENCE) for _ in range(count(2000))]
    assert all(ended)


def test_a_grace_period_waits_for_requests_that_were_there_and_not_for_later_ones(
    core: DataPath, pool: ThreadPoolExecutor
) -> None:
    old = core.enter(READS)
    future = pool.submit(core.grace, PATIENCE)
    assert waits(future)
    new = core.enter(READS)
    core.leave(old, READS)
    assert future.result(PATIENCE)
    assert not core.grace(0)
    core.leave(new, READS)
    assert core.grace(0)


# ------------------------------------------------------------------- all together


def test_nothing_of_a_held_class_is_in_flight_and_nothing_else_waits(core: DataPath) -> None:
    """Eight threads count themselves in; the ninth looks, while it holds."""
    inside = dict.fromkeys(CLASSES, 0)
    lock = threading.Lock()
    passed = dict.fromkeys(CLASSES, 0)

    def worker(kind: int) -> Callable[[], None]:
        def request() -> None:
            ticket = core.enter(kind)
            with lock:
                inside[kind] += 1
            passed[kind] += 1
            with lock:
                inside[kind] -= 1
            core.leave(ticket, kind)

        return request

    masks = [WRITES, UNALIGNED, ALL_WRITES, FLUSHES, READS, READS | FLUSHES]
    with running(*(worker(kind) for kind in CLASSES * 2)):
        for number in range(count(6000)):
            mask = masks[number % len(masks)]
            with held(core, mask):
                with lock:
                    found = {kind: inside[kind] for kind in CLASSES if kind & mask}
                assert not any(found.values()), found
        before = dict(passed)
        with held(core, ALL_WRITES):
            deadline = time.monotonic() + PATIENCE
            while passed[READS] == before[READS] or passed[FLUSHES] == before[FLUSHES]:
                assert time.monotonic() < deadline, "other classes stand still"
                time.sleep(0.001)
    assert core.in_flight() == 0
