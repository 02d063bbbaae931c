"""QEMU's locks against real qemu-io after every way to fail, and after several images at once.

Both directions each time: what qemu-io may do with each file, and that a program that comes and
writes still refuses us.
"""

from __future__ import annotations

import errno
import os
import resource
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

import fdstash
from fdstash import FDStash, Image, LockError, ReopenError, reopen_all
from fdstash.datapath import Requests
from tests.support.disks import ExtentSpec, descriptor_text, make_flat, make_raw
from tests.support.faultshim import PAUSE, FaultShim
from tests.support.kernel import open_descriptors
from tests.support.qemu_tools import QemuIo, qemu_io
from tests.support.seen import READER_BYTES, WRITER_BYTES, assert_as_kernel_says, locked_bytes

EXTENTS = tuple(ExtentSpec("RW", 128, name=f"disk-{i}.bin") for i in range(3))
SIZE = 128 * 512


class Disk:
    """An image of either format, its files, and itself open."""

    def __init__(self, folder: Path, format: str) -> None:
        folder.mkdir(exist_ok=True)
        flat = make_flat(folder, EXTENTS, create_type="twoGbMaxExtentFlat")
        self.format = format
        self.path = flat.path if format == "vmdk" else make_raw(folder, SIZE)
        self.files = flat.files if format == "vmdk" else [self.path]

    def open(self, mode: str) -> Image:
        return fdstash.open(self.path, mode, format=self.format)


@pytest.fixture(params=["raw", "vmdk"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Disk:
    return Disk(tmp_path / "own", request.param)


def wait_locked(path: Path, held: list[int]) -> None:
    """The listing of the system's locks is not of one moment: where others lock, it may lie."""
    deadline = time.monotonic() + 5
    while (found := locked_bytes(path)) != held and time.monotonic() < deadline:
        time.sleep(0.01)
    assert found == held, path


def assert_locked(disk: Disk, mode: str) -> None:
    """By /proc/locks, by qemu-io, and by another image of ours."""
    held = {"r": READER_BYTES, "r+": WRITER_BYTES, "": []}[mode]
    for path in disk.files:
        wait_locked(path, held)
        assert qemu_io(path, "read 0 512", options=["-r"]).status == 0
        writing = qemu_io(path, "read 0 512")  # opened to be written
        assert writing.refused_by_a_lock if mode else writing.status == 0, path
    if mode:
        with pytest.raises(LockError):
            disk.open("r+")
    # A reader of the whole format, who lets nobody write beside it.
    reading = qemu_io(disk.path, "read 0 512", format=disk.format, options=["-r"])
    if mode == "r+" and disk.format == "vmdk":
        assert reading.refused_by_a_lock
    else:
        assert reading.status == 0


# ------------------------------------------------------------- ways to fail


@contextmanager
def moved_away(image: Image, disk: Disk) -> Iterator[dict[str, Any]]:
    away = disk.files[-1].with_name("away")
    disk.files[-1].rename(away)
    yield {"path": str(disk.path)}
    away.rename(disk.files[-1])


@contextmanager
def another_file_in_the_stash(image: Image, disk: Disk) -> Iterator[dict[str, Any]]:
    other = make_raw(disk.path.parent, SIZE, name="other")
    with FDStash() as stash:
        for flags in (os.O_RDONLY, os.O_RDWR):
            stash.add(str(disk.files[-1]), os.open(other, flags))
        yield {"stash": stash}


@contextmanager
def low_limit(image: Image, disk: Disk) -> Iterator[dict[str, Any]]:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    held = open_descriptors()
    free = next(number for number in range(1 << 16) if number not in held)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free + 1, limits[1]))
    try:
        yield {}
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@contextmanager
def prepare_raises(image: Image, disk: Disk) -> Iterator[dict[str, Any]]:
    yield {"prepare": lambda: 1 // 0}


@contextmanager
def requests_that_hang(image: Image, disk: Disk) -> Iterator[dict[str, Any]]:
    core = image._state.core
    kind = int(Requests.UNALIGNED_WRITES)
    ticket = core.enter(kind)
    try:
        yield {"timeout": 0.1, "prepare": lambda: None}
    finally:
        core.leave(ticket, kind)


WAYS: dict[str, tuple[Callable[..., Any], str]] = {
    "moved away": (moved_away, "acquire"),
    "another file in the stash": (another_file_in_the_stash, "acquire"),
    "descriptors at their limit": (low_limit, "acquire"),
    "requests that hang": (requests_that_hang, "gate"),
    "prepare raises": (prepare_raises, "prepare"),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("mode", "wanted"), [("r", "r+"), ("r+", "r")])
def test_a_reopen_that_fails_leaves_the_locks(disk: Disk, way: str, mode: str, wanted: str) -> None:
    fail, phase = WAYS[way]
    with disk.open(mode) as image:
        with fail(image, disk) as options, pytest.raises(ReopenError) as caught:
            image.reopen(mode=wanted, **options)
        assert (caught.value.phase, caught.value.rolled_back) == (phase, True)
        assert_locked(disk, mode)
        image.reopen(mode=wanted)
        assert_locked(disk, wanted)
    assert_locked(disk, "")


@pytest.mark.preload
@pytest.mark.parametrize(("mode", "wanted"), [("r", "r+"), ("r+", "r")])
def test_a_commit_that_fails_leaves_the_locks(
    disk: Disk, shim: FaultShim, mode: str, wanted: str
) -> None:
    """In the middle of the exchange, when the locks of a writer were already taken."""
    with disk.open(mode) as image:
        position = 0 if disk.format == "raw" else 4
        with (
            shim.fault("dup3", position, errno.EINTR, times=4) as met,
            pytest.raises(ReopenError) as caught,
        ):
            image.reopen(mode=wanted)
        assert met.fired
        assert (caught.value.phase, caught.value.rolled_back) == ("commit", True)
        assert_locked(disk, mode)
        assert_as_kernel_says(image)


@pytest.mark.parametrize("index", range(1, 4))
def test_a_qemu_io_that_reads_one_extent_refuses_the_way_to_writing_for_all(
    tmp_path: Path, index: int
) -> None:
    """What was taken on the extents before it is given up again, and its own locks stay."""
    disk = Disk(tmp_path / "own", "vmdk")
    # A raw reader lets others write; one of a format does not.
    own = tmp_path / "own" / "of-one-extent.vmdk"
    one = ExtentSpec("RW", 128, name=disk.files[index].name)
    own.write_text(descriptor_text([one], "monolithicFlat"))
    with disk.open("r") as image:
        with QemuIo(own, "vmdk", readonly=True):
            before = [locked_bytes(path) for path in disk.files]
            assert before[index] != READER_BYTES
            with pytest.raises(ReopenError) as caught:
                image.reopen(mode="r+")
            assert isinstance(caught.value, BlockingIOError)
            assert caught.value.file == str(disk.files[index])
            for path, held in zip(disk.files, before, strict=True):
                wait_locked(path, held)
        assert_locked(disk, "r")
        image.reopen(mode="r+")
        assert_locked(disk, "r+")


# -------------------------------------------------------------- forks meanwhile


@pytest.mark.preload
@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
def test_a_child_forked_in_a_reopen_leaves_the_locks_to_its_parent(
    disk: Disk, shim: FaultShim
) -> None:
    """The commit waits in the middle of its exchange, and the process forks there."""
    with disk.open("r+") as image:
        failed: list[BaseException] = []

        def reopen() -> None:
            shim.arm("dup3", 1, PAUSE)
            try:
                image.reopen(mode="r")
            except BaseException as error:  # noqa: BLE001 - raised below
                failed.append(error)
            shim.disarm()

        thread = threading.Thread(target=reopen)
        thread.start()
        shim.wait_paused()
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(writing)
            os.read(reading, 1)
            os._exit(0)
        os.close(reading)
        shim.resume()
        thread.join(10)
        assert not failed
        assert_locked(disk, "r")
        image.reopen(mode="r+")
        assert_locked(disk, "r+")
    # The child that lives on keeps none of them.
    assert_locked(disk, "")
    os.close(writing)
    assert os.waitpid(child, 0)[1] == 0


# -------------------------------------------------------------- many at once


@pytest.fixture
def two(tmp_path: Path) -> list[Disk]:
    return [Disk(tmp_path / "one", "raw"), Disk(tmp_path / "two", "vmdk")]


@pytest.mark.parametrize("modes", [("r", "r"), ("r+", "r"), ("r", "r+"), ("r+", "r+")])
def test_images_that_are_reopened_together_are_locked_as_each_is_then(
    two: list[Disk], modes: tuple[str, str]
) -> None:
    others = {"r": "r+", "r+": "r"}
    with two[0].open(modes[0]) as one, two[1].open(modes[1]) as other:
        wanted = [others[mode] for mode in modes]
        reopen_all([(one, {"mode": wanted[0]}), (other, {"mode": wanted[1], "cache": "none"})])
        for disk, mode in zip(two, wanted, strict=True):
            assert_locked(disk, mode)
        reopen_all([(one, {"mode": modes[0], "path": str(two[0].path)}), (other, {})])
        assert_locked(two[0], modes[0])
        assert_locked(two[1], wanted[1])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("modes", [("r", "r+"), ("r+", "r")])
def test_one_image_that_fails_leaves_the_locks_of_all(
    two: list[Disk], way: str, modes: tuple[str, str]
) -> None:
    fail, phase = WAYS[way]
    before, wanted = modes
    with two[0].open(before) as one, two[1].open(before) as other:
        with fail(other, two[1]) as options:
            timeout = options.pop("timeout", 30.0)
            pairs = [(one, {"mode": wanted}), (other, {"mode": wanted} | options)]
            with pytest.raises(ReopenError) as caught:
                reopen_all(pairs, timeout=timeout)
        assert (caught.value.phase, caught.value.rolled_back) == (phase, True)
        for disk in two:
            assert_locked(disk, before)


def test_a_qemu_io_that_writes_one_of_several_images_stops_all(two: list[Disk]) -> None:
    """We are refused: the widening of the other image is taken back too."""
    with two[0].open("r") as one, ExitStack() as stack:
        other = stack.enter_context(fdstash.open(two[1].path, "r", lock=False))
        copy = Disk(two[1].path.parent.parent / "copy", "vmdk")
        stack.enter_context(QemuIo(copy.path, "vmdk"))
        held = [locked_bytes(path) for path in copy.files]
        third = stack.enter_context(two[1].open("r"))
        with pytest.raises(ReopenError) as caught:
            reopen_all([(one, {"mode": "r+"}), (third, {"path": str(copy.path)}), (other, {})])
        assert isinstance(caught.value, BlockingIOError)
        assert [locked_bytes(path) for path in copy.files] == held
        assert_locked(two[0], "r")
        assert [locked_bytes(path) for path in two[1].files] == [READER_BYTES] * 4
