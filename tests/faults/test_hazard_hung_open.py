"""An open that hangs costs its caller no more than `timeout`, and the image nothing.

A file server that has stopped answers no open, and the call cannot be taken back. So it is made on
a thread that can be left behind, which closes what still arrives.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import fdstash
from fdstash import Image, ImageIOError, ReopenError, opening, pending_opens
from tests.support.disks import make_flat, make_raw, noise
from tests.support.fuse import HeldFs
from tests.support.kernel import descriptor_count, open_descriptors, same_description
from tests.support.seen import assert_as_kernel_says, locked_bytes
from tests.support.tier import count

pytestmark = [pytest.mark.usefixtures("no_descriptor_leaks"), pytest.mark.root]

SIZE = 1 << 16
TIMEOUT = 0.3
SLACK = 5.0 if os.environ.get("FDSTASH_SANITIZER") else 1.5
"""Seconds beyond the timeout that a busy machine may need."""


def wait_until(condition: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    start = time.monotonic()
    yield
    assert time.monotonic() - start < seconds


def hung(image: Image, **options: Any) -> ReopenError:
    """Reopen, which must give up in time and leave the image as it was."""
    copies = [os.dup(file.fd) for file in image.files]
    before = image.files, image.mode, image.cache, [file.path for file in image.files]
    locks = [locked_bytes(file.fd) for file in image.files]
    with at_most(TIMEOUT + SLACK), pytest.raises(ReopenError) as caught:
        image.reopen(timeout=TIMEOUT, **options)
    assert (image.files, image.mode, image.cache, [f.path for f in image.files]) == before
    assert all(map(same_description, copies, (file.fd for file in image.files)))
    assert [locked_bytes(file.fd) for file in image.files] == locks
    for copy in copies:
        os.close(copy)
    error = caught.value
    assert isinstance(error, TimeoutError)
    assert (error.errno, error.phase, error.rolled_back) == (errno.ETIMEDOUT, "acquire", True)
    return error


def serves(image: Image) -> None:
    data = image.pread(image.size, 0)
    assert len(data) == image.size
    image.pwrite(data[100:200], 100)
    assert image.pread(image.size, 0) == data


# ---------------------------------------------------------------------- FIFOs


def test_a_fifo_in_place_of_an_image_is_refused_at_once(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for mode in ("r", "r+"):
        with at_most(SLACK), pytest.raises(ImageIOError) as caught:
            fdstash.open(fifo, mode, format="raw")
        assert caught.value.errno == errno.ENXIO
    with at_most(SLACK), pytest.raises(ImageIOError):
        fdstash.probe(fifo)


@pytest.mark.parametrize("victim", [0, 3])
def test_a_fifo_in_place_of_a_file_of_the_image_is_refused_at_once(
    tmp_path: Path, victim: int
) -> None:
    disk = make_flat(tmp_path)
    with fdstash.open(disk.path, "r+") as image:
        disk.files[victim].rename(tmp_path / "moved")
        os.mkfifo(disk.files[victim])
        before = open_descriptors()
        with at_most(SLACK), pytest.raises(ReopenError) as caught:
            image.reopen(path=disk.path)
        assert (caught.value.phase, caught.value.file) == ("acquire", str(disk.files[victim]))
        assert caught.value.errno == errno.ENXIO
        assert open_descriptors() == before
        serves(image)


def test_a_fifo_as_the_new_path_is_refused_at_once(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with fdstash.open(make_raw(tmp_path, SIZE), "r+", format="raw") as image:
        with at_most(SLACK), pytest.raises(ReopenError):
            image.reopen(path=fifo)
        serves(image)
    assert pending_opens() == 0


def test_a_plain_open_of_a_fifo_hangs(tmp_path: Path) -> None:
    """What the look before the open is for."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    thread = threading.Thread(target=lambda: os.close(os.open(fifo, os.O_RDONLY)))
    thread.start()
    thread.join(TIMEOUT)
    assert thread.is_alive()
    os.close(os.open(fifo, os.O_WRONLY))
    thread.join()


# ------------------------------------------------- a server that answers no opens


@pytest.fixture
def remote(stopped_fuse: HeldFs) -> Iterator[Image]:
    path = make_raw(stopped_fuse.folder, SIZE)
    with fdstash.open(path, "r+", format="raw") as image:
        yield image
        stopped_fuse.resume()
        stopped_fuse.release_opens()
        wait_until(lambda: pending_opens() == 0)


def test_an_open_that_hangs_is_given_up_and_closed_when_it_arrives(
    stopped_fuse: HeldFs, remote: Image
) -> None:
    descriptors = open_descriptors()
    stopped_fuse.hold_opens()
    error = hung(remote, mode="r")
    assert "goes on by itself" in str(error)
    assert pending_opens() == 1
    serves(remote)
    remote.flush()
    stopped_fuse.release_opens()
    wait_until(lambda: pending_opens() == 0)
    wait_until(lambda: open_descriptors() == descriptors)
    assert set(remote.reopen(mode="r").routes.values()) == {"proc"}
    assert_as_kernel_says(remote)
    assert remote.pread(SIZE, 0) == noise(SIZE, 1)


def test_opens_that_fail_late_leave_nothing_behind(stopped_fuse: HeldFs, remote: Image) -> None:
    descriptors = open_descriptors()
    stopped_fuse.hold_opens()
    hung(remote, mode="r")
    stopped_fuse.refuse_opens(errno.EIO)
    wait_until(lambda: pending_opens() == 0)
    wait_until(lambda: open_descriptors() == descriptors)
    with pytest.raises(ReopenError) as caught:
        remote.reopen(mode="r", timeout=10)
    assert caught.value.errno == errno.EIO
    stopped_fuse.refuse_opens(0)
    serves(remote)


def test_every_kind_of_reopen_gives_up(stopped_fuse: HeldFs, remote: Image) -> None:
    assert remote.files[0].path is not None
    kinds: list[dict[str, Any]] = [
        {"mode": "r"},
        {"mode": "r", "cache": "none"},
        {"path": remote.files[0].path},
        {"path": stopped_fuse.folder / "other.raw"},
    ]
    make_raw(stopped_fuse.folder, SIZE, name="other.raw")
    descriptors = open_descriptors()
    stopped_fuse.hold_opens()
    for number, options in enumerate(kinds, 1):
        hung(remote, **options)
        assert pending_opens() == number
        serves(remote)
    stopped_fuse.release_opens()
    wait_until(lambda: pending_opens() == 0)
    wait_until(lambda: open_descriptors() == descriptors)


def test_the_many_extents_of_an_image_are_given_up_together(stopped_fuse: HeldFs) -> None:
    disk = make_flat(stopped_fuse.folder)
    with fdstash.open(disk.path, "r+") as image:
        descriptors = open_descriptors()
        stopped_fuse.hold_opens()
        for _ in range(count(40)):
            hung(image, mode="r")
        serves(image)
        stopped_fuse.release_opens()
        wait_until(lambda: pending_opens() == 0)
        wait_until(lambda: open_descriptors() == descriptors)
        image.reopen(mode="r")
        assert_as_kernel_says(image)


def test_an_image_can_be_closed_while_its_open_still_hangs(stopped_fuse: HeldFs) -> None:
    path = make_raw(stopped_fuse.folder, SIZE)
    descriptors = open_descriptors()
    image = fdstash.open(path, "r+", format="raw")
    stopped_fuse.hold_opens()
    hung(image, mode="r")
    with at_most(SLACK):
        image.close()
    stopped_fuse.release_opens()
    wait_until(lambda: pending_opens() == 0)
    wait_until(lambda: open_descriptors() == descriptors)
    assert locked_bytes(path) == []
    fdstash.open(path, "r+", format="raw").close()


# ------------------------------------------------ a server that answers nothing


def test_a_stopped_server_is_given_up(stopped_fuse: HeldFs, remote: Image) -> None:
    descriptors = open_descriptors()
    stopped_fuse.stop()
    with at_most(TIMEOUT + SLACK), pytest.raises(ReopenError) as caught:
        remote.reopen(mode="r", timeout=TIMEOUT)
    assert isinstance(caught.value, TimeoutError)
    assert pending_opens() == 1
    stopped_fuse.resume()
    wait_until(lambda: pending_opens() == 0)
    wait_until(lambda: open_descriptors() == descriptors)
    serves(remote)
    remote.reopen(mode="r")


def test_a_change_of_path_onto_a_stopped_server_is_given_up(
    stopped_fuse: HeldFs, tmp_path: Path
) -> None:
    target = make_raw(stopped_fuse.folder, SIZE)
    local = make_raw(tmp_path, SIZE)
    with fdstash.open(local, "r+", format="raw") as image:
        count_before = descriptor_count()
        stopped_fuse.stop()
        for pending in (1, 2):
            hung(image, path=target)
            assert pending_opens() == pending
            serves(image)
        stopped_fuse.resume()
        wait_until(lambda: pending_opens() == 0)
        wait_until(lambda: descriptor_count() == count_before)
        assert locked_bytes(target) == []
        image.reopen(path=target)
        assert image.files[0].path == str(target)


def test_an_extent_that_became_a_link_onto_a_stopped_server_is_given_up(
    stopped_fuse: HeldFs, tmp_path: Path
) -> None:
    """The file system of the image is local: that the path leaves it is seen in time."""
    (stopped_fuse.folder / "disk.raw").write_bytes(noise(SIZE, 1))
    local = make_raw(tmp_path, SIZE)
    with fdstash.open(local, "r+", format="raw") as image:
        before = open_descriptors()
        local.rename(tmp_path / "moved")
        local.symlink_to(stopped_fuse.folder / "disk.raw")
        stopped_fuse.stop()
        hung(image, path=local)
        serves(image)
        stopped_fuse.resume()
        wait_until(lambda: pending_opens() == 0)
        wait_until(lambda: len(open_descriptors()) == len(before))


def test_no_limit_waits(stopped_fuse: HeldFs, remote: Image) -> None:
    stopped_fuse.hold_opens()
    done: list[object] = []
    thread = threading.Thread(target=lambda: done.append(remote.reopen(mode="r", timeout=None)))
    thread.start()
    stopped_fuse.wait_open_hanging()
    thread.join(TIMEOUT)
    assert thread.is_alive()
    stopped_fuse.release_opens()
    thread.join(10)
    assert len(done) == 1
    assert remote.mode == "r"


def test_an_open_on_the_callers_own_thread_hangs(stopped_fuse: HeldFs, remote: Image) -> None:
    """The open of the first test, made where it is wanted: what the thread is for."""
    stopped_fuse.hold_opens()
    opened: list[int] = []
    slot = remote.files[0].fd
    thread = threading.Thread(
        target=lambda: opened.append(opening.open_again(slot, os.O_RDONLY, "disk"))
    )
    thread.start()
    stopped_fuse.wait_open_hanging()
    thread.join(3 * TIMEOUT)
    assert thread.is_alive()
    stopped_fuse.release_opens()
    thread.join(10)
    opening.close_owned(opened[0])


# ---------------------------------------------------- what hangs after the opens


def gives_up_while_stopped(server: HeldFs, image: Image, **options: Any) -> bool:
    """Whether reopen and then a write come back in time though the server stops in `prepare`."""
    done: list[object] = []

    def reopen() -> None:
        try:
            done.append(image.reopen(timeout=TIMEOUT, prepare=server.stop, **options))
        except ReopenError as error:
            done.append(error.errno)

    def write() -> None:
        image.pwrite(b"still served", 512)
        done.append("written")

    threads = [threading.Thread(target=reopen)]
    threads[0].start()
    threads[0].join(TIMEOUT + SLACK)
    threads.append(threading.Thread(target=write))
    threads[1].start()
    threads[1].join(SLACK)
    came_back = not any(thread.is_alive() for thread in threads)
    server.resume()
    for thread in threads:
        thread.join(10)
    assert len(done) == 2
    return came_back


def test_a_new_server_that_stops_before_the_commit_does_not_keep_the_gate_closed(
    stopped_fuse: HeldFs, tmp_path: Path
) -> None:
    """The image is local and well; only what it was to become is not."""
    target = make_raw(stopped_fuse.folder, SIZE)
    with fdstash.open(make_raw(tmp_path, SIZE), "r+", format="raw") as image:
        assert gives_up_while_stopped(stopped_fuse, image, path=target, cache="none")
