"""A reopen from the thread that does the I/O works, and one that would wait for itself says so.

With the gate closed the thread that closed it must not wait for it: what would be a deadlock is an
error with EDEADLK, at once.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import fdstash
from fdstash import ClosedError, FDStash, Image, ReopenError, reopen_all
from fdstash.datapath import Requests
from tests.support.disks import make_flat, make_raw, noise
from tests.support.hosts import FailingLoop
from tests.support.kernel import is_direct, same_description
from tests.support.load import Hang, Worker
from tests.support.requests import request_in_flight
from tests.support.seen import WRITER_BYTES, assert_as_kernel_says, locked_bytes
from tests.support.tier import count

pytestmark = [pytest.mark.usefixtures("no_descriptor_leaks"), pytest.mark.threads]

SIZE = 1 << 16


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return make_raw(tmp_path, SIZE)


@pytest.fixture
def image(path: Path) -> Iterator[Image]:
    with fdstash.open(path, "r+", format="raw") as opened:
        yield opened


@pytest.fixture
def worker() -> Iterator[Worker]:
    """Bounds what must not hang."""
    made = Worker("the caller")
    yield made
    made.close()


def kinds(image: Image, other: Path) -> Iterator[dict[str, Any]]:
    own = image.files[0].path
    return itertools.cycle(
        [
            {"cache": "none"},
            {"mode": "r"},
            {"cache": "writeback"},
            {"mode": "r+"},
            {"path": own},
            {"path": other},
            {"path": own, "cache": "directsync"},
            {"cache": "writethrough"},
        ]
    )


@pytest.mark.parametrize("vmdk", [False, True])
def test_one_thread_does_both(tmp_path: Path, worker: Worker, *, vmdk: bool) -> None:
    file = make_flat(tmp_path).path if vmdk else make_raw(tmp_path, SIZE)
    other = file.with_name("other")
    os.link(file, other)

    def run() -> None:
        with fdstash.open(file, "r+", format=None if vmdk else "raw") as image:
            model = bytearray(image.pread(image.size, 0))
            for number, options in zip(range(count(4000)), kinds(image, other), strict=False):
                offset = number * 7919 % (image.size - 700)
                if image.mode == "r+":
                    data = noise(1 + number % 700, number)
                    image.pwrite(data, offset)
                    model[offset : offset + len(data)] = data
                image.reopen(**options)
                assert image.pread(700, offset) == model[offset : offset + 700]
            assert image.pread(image.size, 0) == model

    worker.call(run)


def test_a_file_object_goes_on_where_it_was_across_reopens(image: Image, worker: Worker) -> None:
    def run() -> None:
        file = image.as_file()
        found = b""
        for number in range(SIZE // 4096):
            found += file.read(4096) or b""
            image.reopen(cache=["none", "writeback"][number % 2])
        assert found == noise(SIZE, 1)

    worker.call(run)


# ------------------------------------------------------------- from within prepare


def code_of(call: Callable[[], object]) -> int:
    """The errno that it raises, 0 when it does not."""
    try:
        call()
    except OSError as error:
        return error.errno or -1
    return 0


def test_prepare_may_read_and_not_write(image: Image, worker: Worker) -> None:
    codes: dict[str, int] = {}

    def prepare() -> None:
        assert image.pread(SIZE, 0) == noise(SIZE, 1)
        assert image.preadv([bytearray(10), bytearray(9000)], 3) == 9010
        assert len(list(image.extents())) == 1
        assert image.files[0].size == SIZE
        image.flush()
        codes["pwrite"] = code_of(lambda: image.pwrite(b"x" * 4096, 0))
        codes["unaligned"] = code_of(lambda: image.pwrite(b"x", 5))
        codes["pwritev"] = code_of(lambda: image.pwritev([b"x", b"y"], 5))
        codes["zero"] = code_of(lambda: image.zero(4096, 0))
        codes["trim"] = code_of(lambda: image.trim(4096, 0))
        codes["file"] = code_of(lambda: image.as_file().write(b"x"))
        codes["reopen"] = code_of(lambda: image.reopen(cache="none"))
        codes["reopen_all"] = code_of(lambda: reopen_all([(image, {"mode": "r"})]))
        codes["resize"] = code_of(lambda: image.resize(2 * SIZE))
        codes["close"] = code_of(image.close)

    worker.call(lambda: image.reopen(mode="r", prepare=prepare))
    assert set(codes.values()) == {errno.EDEADLK}, codes
    assert image.mode == "r"
    assert image.pread(SIZE, 0) == noise(SIZE, 1)


def test_a_nested_reopen_fails_and_the_outer_one_goes_on(image: Image, worker: Worker) -> None:
    caught: list[ReopenError] = []

    def prepare() -> None:
        with pytest.raises(ReopenError) as error:
            image.reopen(mode="r+", timeout=None)
        caught.append(error.value)

    worker.call(lambda: image.reopen(cache="none", prepare=prepare))
    assert (caught[0].errno, caught[0].rolled_back) == (errno.EDEADLK, True)
    assert image.cache == "none"
    assert_as_kernel_says(image)


def test_an_error_of_prepare_changes_nothing(image: Image, worker: Worker) -> None:
    def prepare() -> None:
        image.pwrite(b"x", 0)  # raises EDEADLK, which nobody catches

    with pytest.raises(ReopenError) as caught:
        worker.call(lambda: image.reopen(mode="r", prepare=prepare))
    assert (caught.value.errno, caught.value.phase) == (errno.EDEADLK, "prepare")
    assert image.mode == "r+"
    image.pwrite(b"the gate is open again", 0)
    assert locked_bytes(image.files[0].fd) == WRITER_BYTES


def test_without_that_error_the_write_would_wait_for_the_reopen_and_it_for_the_write(
    image: Image, worker: Worker
) -> None:
    """The same write on another thread, which the gate does make wait."""
    writer = Worker("a writer")

    def prepare() -> None:
        with pytest.raises(Hang):
            writer.call(lambda: image.pwrite(b"x", 0), patience=0.3)

    worker.call(lambda: image.reopen(cache="none", prepare=prepare))
    writer.close()
    assert image.pread(1, 0) == b"x", "it went on once the gate was open"


def test_without_that_error_a_nested_reopen_would_open_the_gate_under_prepare(
    path: Path, image: Image, worker: Worker
) -> None:
    """A write gets in after the last copy, and is lost with the old path."""
    copy = path.with_name("copy.raw")
    copy.write_bytes(path.read_bytes())
    writer = Worker("a writer")

    def prepare() -> None:
        copy.write_bytes(path.read_bytes())
        image._state.busy = False  # the cure, taken away
        image.reopen(cache="none")
        writer.call(lambda: image.pwrite(b"acknowledged", 0))

    worker.call(lambda: image.reopen(path=copy, prepare=prepare))
    writer.close()
    assert image.pread(12, 0) != b"acknowledged"


def test_a_reopen_that_waits_for_its_own_threads_request_times_out(
    image: Image, worker: Worker
) -> None:
    """A request of several calls that reopens half-way."""

    def run() -> None:
        with request_in_flight(image, Requests.WRITES):
            image.reopen(mode="r", timeout=0.2)

    with pytest.raises(ReopenError) as caught:
        worker.call(run)
    assert (caught.value.errno, caught.value.phase) == (errno.ETIMEDOUT, "gate")
    assert image.mode == "r+"
    worker.call(lambda: image.reopen(mode="r", timeout=0.2))


# -------------------------------------------------------------- close and others


def test_close_waits_for_a_reopen_and_then_closes(image: Image) -> None:
    order: list[str] = []
    begun = threading.Event()

    def prepare() -> None:
        begun.set()
        time.sleep(0.1)
        order.append("reopened")

    reopen = threading.Thread(target=lambda: image.reopen(mode="r", prepare=prepare))
    reopen.start()
    assert begun.wait(10)
    image.close()
    order.append("closed")
    reopen.join(10)
    assert order == ["reopened", "closed"]
    assert image.closed
    for use in (lambda: image.pread(1, 0), lambda: image.reopen(mode="r"), image.flush):
        with pytest.raises(ClosedError):
            use()


def test_a_reopen_that_waits_for_another_gives_up_in_time(image: Image) -> None:
    go_on = threading.Event()
    begun = threading.Event()

    def prepare() -> None:
        begun.set()
        go_on.wait(10)

    first = threading.Thread(target=lambda: image.reopen(mode="r", prepare=prepare))
    first.start()
    assert begun.wait(10)
    start = time.monotonic()
    with pytest.raises(ReopenError) as caught:
        image.reopen(cache="none", timeout=0.2)
    assert time.monotonic() - start < 2
    assert (caught.value.errno, caught.value.phase) == (errno.ETIMEDOUT, "acquire")
    go_on.set()
    first.join(10)
    assert (image.mode, image.cache) == ("r", "writeback")


def test_close_from_many_threads_while_reopens_run(path: Path) -> None:
    for _ in range(count(400)):
        image = fdstash.open(path, "r+", format="raw")
        started = threading.Barrier(4)

        def reopen(image: Image = image, started: threading.Barrier = started) -> None:
            started.wait(10)
            try:
                for number in range(1000):
                    image.reopen(mode="r+" if number % 2 else "r")
            except ClosedError:
                pass

        def close(image: Image = image, started: threading.Barrier = started) -> None:
            started.wait(10)
            image.close()

        threads = [threading.Thread(target=target) for target in (reopen, reopen, close, close)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
            assert not thread.is_alive()
        assert image.closed
        assert locked_bytes(path) == []


def test_what_prepare_hands_out_is_the_old_description(image: Image) -> None:
    with FDStash() as stash:
        slot = os.dup(image.files[0].fd)
        image.reopen(mode="r", prepare=lambda: image.extract_fds(stash))
        given = stash.take(stash.names()[0])
        assert same_description(given, slot)
        assert not same_description(given, image.files[0].fd)
        os.close(given)
        os.close(slot)
        # The new one is the image's own.
        assert set(image.reopen(cache="none").routes.values()) == {"setfl"}


@pytest.mark.root
def test_what_prepare_hands_out_stays_shared_when_the_reopen_is_rolled_back(
    image: Image, failing_loop: Callable[..., FailingLoop]
) -> None:
    """The other image cannot be made durable, after this one has committed."""
    failing = failing_loop()
    assert failing.folder is not None
    bad = make_raw(failing.folder, SIZE)
    with FDStash() as stash, fdstash.open(bad, "r+", format="raw") as other:
        failing.poison(bad, length=SIZE)
        other.pwrite(b"x" * SIZE, 0)
        with pytest.raises(ReopenError) as caught:
            reopen_all(
                [
                    (image, {"mode": "r", "prepare": lambda: image.extract_fds(stash)}),
                    (other, {"cache": "writethrough"}),
                ]
            )
        assert (caught.value.phase, caught.value.rolled_back) == ("commit", True)
        failing.repair()
        other.pwrite(b"x" * SIZE, 0)
        with contextlib.suppress(OSError):
            other.flush()
        assert image.mode == "r+"
        given = stash.take(stash.names()[0])
        assert same_description(given, image.files[0].fd)
        assert set(image.reopen(cache="none").routes.values()) == {"proc"}
        assert not is_direct(given)
        os.close(given)
