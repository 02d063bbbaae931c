"""A request that does not end makes a reopen that must wait for it give up, and nothing else."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import fdstash
from fdstash import Image, ImageIOError, ReopenError, reopen_all
from tests.support.disks import FlatDisk, make_flat, make_raw, noise
from tests.support.faultshim import PAUSE, FaultShim
from tests.support.fuse import HeldFs
from tests.support.kernel import open_descriptors, same_description
from tests.support.load import Worker
from tests.support.seen import assert_as_kernel_says, locked_bytes
from tests.support.uncured import bare_exchange

SIZE = 1 << 16
TIMEOUT = 0.2
SLACK = 10.0  #: far from for ever, whatever else the machine does


class Paused:
    """A write that has been let in and has not reached the kernel."""

    def __init__(self, shim: FaultShim, write: Callable[[], object]) -> None:
        self._shim = shim
        self.outcome: list[object] = []
        self._thread = threading.Thread(target=self._run, args=(write,))
        self._thread.start()
        shim.wait_paused()

    def _run(self, write: Callable[[], object]) -> None:
        self._shim.arm("pwrite", 0, PAUSE)
        try:
            self.outcome.append(write())
        except OSError as error:
            self.outcome.append(error)
        self._shim.disarm()

    def finish(self) -> object:
        self._shim.resume()
        self._thread.join(10)
        return self.outcome[0]


@pytest.fixture
def disk(tmp_path: Path) -> FlatDisk:
    return make_flat(tmp_path)


@pytest.fixture
def image(disk: FlatDisk) -> Iterator[Image]:
    with fdstash.open(disk.path, "r+") as opened:
        opened.pwrite(b"x", 0)  # the CID is written now and not later
        yield opened


def gives_up(image: Image, **options: Any) -> ReopenError:
    copies = [os.dup(file.fd) for file in image.files]
    before = image.files, image.mode, image.cache, open_descriptors()
    locks = [locked_bytes(file.fd) for file in image.files]
    start = time.monotonic()
    with pytest.raises(ReopenError) as caught:
        image.reopen(timeout=TIMEOUT, **options)
    assert TIMEOUT <= time.monotonic() - start < TIMEOUT + SLACK
    assert (image.files, image.mode, image.cache, open_descriptors()) == before
    assert [locked_bytes(file.fd) for file in image.files] == locks
    assert all(map(same_description, copies, (file.fd for file in image.files)))
    for copy in copies:
        os.close(copy)
    error = caught.value
    assert isinstance(error, TimeoutError)
    assert (error.errno, error.phase, error.rolled_back) == (errno.ETIMEDOUT, "gate", True)
    return error


def option_names(options: dict[str, Any]) -> str:
    return "+".join(
        f"{key}={value}" if isinstance(value, str) else key for key, value in options.items()
    )


HELD_BY_ANY_WRITE: list[dict[str, Any]] = [
    {"mode": "r"},
    {"cache": "writethrough", "mode": "r"},
    {"prepare": lambda: None},
    {"path": "link"},
]
HELD_BY_UNALIGNED_WRITES: list[dict[str, Any]] = [{"cache": "none"}, {"cache": "directsync"}]
NEVER_HELD: list[dict[str, Any]] = [
    {"cache": "writethrough"},
    {"cache": "unsafe"},
    {"path": "own"},
    {},
]


def with_paths(options: dict[str, Any], disk: FlatDisk) -> dict[str, Any]:
    options = dict(options)
    if options.get("path") == "own":
        options["path"] = str(disk.path)
    if options.get("path") == "link":
        options["path"] = str(disk.path.with_name("link.vmdk"))
        os.link(disk.path, options["path"])
    return options


@pytest.mark.preload
@pytest.mark.parametrize("options", HELD_BY_ANY_WRITE + HELD_BY_UNALIGNED_WRITES, ids=option_names)
def test_a_write_that_hangs_makes_the_reopen_give_up(
    image: Image, disk: FlatDisk, shim: FaultShim, options: dict[str, Any]
) -> None:
    paused = Paused(shim, lambda: image.pwrite(b"late", 20_001))
    options = with_paths(options, disk)
    gives_up(image, **options)
    # The gate is open again, for every class.
    for length in (1, 4096):
        image.pwrite(image.pread(length, 4096), 4096)
    image.flush()
    assert paused.finish() == 4
    assert image.pread(4, 20_001) == b"late"
    image.reopen(**options)
    assert_as_kernel_says(image)
    assert image.pread(4, 20_001) == b"late"


@pytest.mark.preload
@pytest.mark.parametrize("options", NEVER_HELD, ids=option_names)
def test_a_write_that_hangs_does_not_hold_what_leaves_it_right(
    image: Image, disk: FlatDisk, shim: FaultShim, options: dict[str, Any]
) -> None:
    paused = Paused(shim, lambda: image.pwrite(b"late", 20_001))
    image.reopen(timeout=TIMEOUT, **with_paths(options, disk))
    assert paused.finish() == 4
    assert image.pread(4, 20_001) == b"late"


@pytest.mark.preload
@pytest.mark.parametrize("options", HELD_BY_UNALIGNED_WRITES, ids=option_names)
def test_a_write_of_whole_pages_does_not_hold_a_switch_of_o_direct(
    tmp_path: Path, shim: FaultShim, options: dict[str, Any]
) -> None:
    with fdstash.open(make_raw(tmp_path, SIZE), "r+", format="raw") as image:
        paused = Paused(shim, lambda: image.pwrite(b"page" * 1024, 8192))
        image.reopen(timeout=TIMEOUT, **options)
        assert paused.finish() == 4096
        assert image.pread(4096, 8192) == b"page" * 1024
        assert_as_kernel_says(image)


@pytest.mark.preload
def test_requests_that_a_reopen_held_go_on_when_it_gives_up(image: Image, shim: FaultShim) -> None:
    paused = Paused(shim, lambda: image.pwrite(b"late", 20_001))
    worker = Worker("a later write")
    reopened = threading.Thread(target=lambda: gives_up(image, mode="r"))
    reopened.start()
    while not image._state.core.held and reopened.is_alive():
        time.sleep(0.001)
        if image._state.core.in_flight() == 1:
            break
    assert worker.call(lambda: image.pwrite(b"held", 30_001)) == 4
    assert image.pread(4, 30_001) == b"held", "reads never wait"
    reopened.join(10)
    paused.finish()
    worker.close()


@pytest.mark.preload
def test_one_image_that_does_not_drain_stops_the_reopen_of_all(
    image: Image, tmp_path: Path, shim: FaultShim
) -> None:
    with fdstash.open(make_raw(tmp_path, SIZE), "r+", format="raw") as other:
        paused = Paused(shim, lambda: image.pwrite(b"late", 20_001))
        before = other.files, open_descriptors()
        for pairs in ([other, image], [image, other]):
            with pytest.raises(ReopenError) as caught:
                reopen_all([(each, {"mode": "r"}) for each in pairs], timeout=TIMEOUT)
            assert (caught.value.errno, caught.value.phase) == (errno.ETIMEDOUT, "gate")
            assert (other.files, open_descriptors()) == before
            assert other.mode == image.mode == "r+"
            other.pwrite(b"goes on", 3)
        paused.finish()
        reopen_all([(each, {"mode": "r"}) for each in (image, other)], timeout=TIMEOUT)


@pytest.mark.preload
def test_without_the_gate_the_write_meets_a_description_that_refuses_it(
    image: Image, shim: FaultShim
) -> None:
    """A request fails because of a reopen."""
    paused = Paused(shim, lambda: image.pwrite(b"late", 20_001))
    bare_exchange(image, mode="r")
    outcome = paused.finish()
    assert isinstance(outcome, ImageIOError)
    assert outcome.errno == errno.EBADF
    bare_exchange(image, mode="r+")


@pytest.mark.root
def test_a_write_on_a_stopped_server_makes_the_reopen_give_up(stopped_fuse: HeldFs) -> None:
    """There the flush before the commit hangs first, and is given up like an open."""
    path = make_raw(stopped_fuse.folder, SIZE)
    with fdstash.open(path, "r+", format="raw", cache="none") as image:
        stopped_fuse.stop()
        writer = threading.Thread(target=lambda: image.pwrite(b"x" * 4096, 0))
        writer.start()
        start = time.monotonic()
        with pytest.raises(ReopenError) as caught:
            image.reopen(mode="r", timeout=TIMEOUT)
        assert time.monotonic() - start < TIMEOUT + SLACK
        assert isinstance(caught.value, TimeoutError)
        assert image.mode == "r+"
        stopped_fuse.resume()
        writer.join(10)
        while fdstash.pending_opens():
            time.sleep(0.01)
        image.reopen(mode="r")
        assert image.pread(SIZE, 0) == b"x" * 4096 + noise(SIZE, 1)[4096:]
