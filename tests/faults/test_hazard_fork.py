"""A forked child keeps neither the image's descriptors nor its locks, whenever it was forked.

A child shares the open file descriptions of its parent. While it holds them, the parent's locks
do not end with the parent's close, and flags that the one sets are set for the other.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import pkgutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

import fdstash
from fdstash import ClosedError, FDStash, Image
from tests.support.disks import FlatDisk, make_flat, make_raw
from tests.support.forked import PATIENCE, reap, run_in_child
from tests.support.kernel import is_direct
from tests.support.seen import WRITER_BYTES, assert_as_kernel_says, image_descriptors, locked_bytes
from tests.support.tier import count
from tests.support.uncured import running

pytestmark = [
    pytest.mark.usefixtures("no_descriptor_leaks"),
    # Python 3.12 warns of what this is about.
    pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning"),
]


def refuses_everything(image: Image) -> None:
    for use in (
        lambda: image.pread(1, 0),
        lambda: image.pwrite(b"x", 0),
        lambda: image.zero(512, 0),
        image.flush,
        lambda: image.files,
        lambda: image.reopen(mode="r"),
        lambda: image.extract_fds(FDStash()),
    ):
        with pytest.raises(ClosedError):
            use()
    image.close()


@pytest.fixture
def disk(tmp_path: Path) -> FlatDisk:
    return make_flat(tmp_path)


def reopen_without_pause(image: Image) -> Callable[[], None]:
    """Every kind of reopen in turn."""
    path = image.files[0].path
    kinds = [{"cache": "none"}, {"mode": "r"}, {"path": path}, {"cache": "writeback"}]
    kinds += [{"mode": "r+"}, {"mode": "r", "cache": "none"}, {"mode": "r+", "cache": "writeback"}]
    numbers = iter(range(1 << 62))
    return lambda: image.reopen(**kinds[next(numbers) % len(kinds)]) and None


def reader(image: Image) -> Callable[[], None]:
    expected = image.pread(image.size, 0)

    def read() -> None:
        assert image.pread(4097, 300) == expected[300:4397]

    return read


@pytest.mark.slow
@pytest.mark.forks
def test_children_forked_while_reopens_run_hold_nothing_of_the_image(disk: FlatDisk) -> None:
    with fdstash.open(disk.path, "r+") as image:
        reopen = reopen_without_pause(image)
        forked: list[int] = []

        def check() -> None:
            assert image_descriptors(*disk.files) == []
            refuses_everything(image)

        with running(reopen, reader(image)):
            for _ in range(count(6000)):
                forked.append(run_in_child(check))
                reap(forked[-1])
        assert len(forked) == count(6000)
        image.reopen(mode="r+", cache="writeback")
        assert_as_kernel_says(image)
        for path in disk.files:
            assert locked_bytes(path) == WRITER_BYTES


@pytest.mark.forks
def test_a_child_can_open_images_of_its_own(disk: FlatDisk, tmp_path: Path) -> None:
    """Also where a thread that is not in the child was inside a bounce, a stash or an open."""
    other = make_raw(tmp_path, name="other.raw")

    def check() -> None:
        with fdstash.open(other, "r", format="raw", cache="none", lock=False) as own:
            assert own.pread(100, 7) == expected
            own.reopen(cache="writeback")
            assert len(image_descriptors(other)) == 1
        assert image_descriptors(other) == []

    expected = other.read_bytes()[7:107]
    with fdstash.open(disk.path, "r+", cache="none") as image, FDStash() as stash:

        def bounce() -> None:
            for _ in range(100):
                image.pread(1, 3)

        def store() -> None:
            image.extract_fds(stash)

        with running(bounce, bounce, store):
            for _ in range(count(4000)):
                reap(run_in_child(check))


@contextmanager
def living_child(fork: Callable[[], int]) -> Iterator[None]:
    """A child that does nothing until the block ends."""
    ready, told = os.pipe()
    end, ended = os.pipe()
    pid = fork()
    if pid == 0:
        os.write(told, b"x")
        os.close(ended)
        os.read(end, 1)
        os._exit(0)
    os.read(ready, 1)
    try:
        yield
    finally:
        for fd in (ready, told, end, ended):
            os.close(fd)
        os.waitpid(pid, 0)


def bare_fork() -> int:
    """As fork, but nobody's at-fork handlers run."""
    numbers = {"x86_64": 57}
    machine = os.uname().machine
    if machine not in numbers:
        pytest.skip(f"no fork by number on {machine}")
    pid: int = ctypes.CDLL(None).syscall(numbers[machine])
    return pid


def test_locks_end_with_the_parents_close_though_a_child_lives(disk: FlatDisk) -> None:
    image = fdstash.open(disk.path, "r+")
    with living_child(os.fork):
        assert [locked_bytes(path) for path in disk.files] == [WRITER_BYTES] * len(disk.files)
        image.close()
        assert [locked_bytes(path) for path in disk.files] == [[]] * len(disk.files)
        fdstash.open(disk.path, "r+").close()


def test_locks_outlive_the_parents_close_where_the_child_was_not_told(disk: FlatDisk) -> None:
    """What the handler at fork is for."""
    image = fdstash.open(disk.path, "r+")
    with living_child(bare_fork):
        image.close()
        assert [locked_bytes(path) for path in disk.files] == [WRITER_BYTES] * len(disk.files)
        with pytest.raises(fdstash.LockError):
            fdstash.open(disk.path, "r+")


def test_locks_survive_a_child_that_ends(disk: FlatDisk) -> None:
    with fdstash.open(disk.path, "r+") as image:
        for _ in range(3):
            reap(run_in_child(image.close))
            assert [locked_bytes(path) for path in disk.files] == [WRITER_BYTES] * len(disk.files)


def test_flags_are_never_set_on_what_a_child_may_hold(disk: FlatDisk) -> None:
    with fdstash.open(disk.path, "r+") as image:
        assert set(image.reopen(cache="none").routes.values()) == {"setfl"}
        with living_child(os.fork):
            assert set(image.reopen(cache="writeback").routes.values()) == {"proc"}
            # These descriptions were made after the fork.
            assert set(image.reopen(cache="none").routes.values()) == {"setfl"}


def test_flags_set_on_a_shared_description_change_under_the_child(tmp_path: Path) -> None:
    """Why: the fork that nobody saw leaves the route as it was."""
    path = make_raw(tmp_path)
    with fdstash.open(path, "r+", format="raw") as image:
        slot = image.files[0].fd
        ready, told = os.pipe()
        pid = bare_fork()
        if pid == 0:
            before = is_direct(slot)
            os.write(told, b"x")
            deadline = time.monotonic() + 10
            while is_direct(slot) == before and time.monotonic() < deadline:
                time.sleep(0.001)
            os._exit(is_direct(slot) != before)
        os.read(ready, 1)
        assert set(image.reopen(cache="none").routes.values()) == {"setfl"}
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1
        os.close(ready)
        os.close(told)


def test_a_fork_within_prepare_is_seen(tmp_path: Path) -> None:
    """Between the acquisition and the commit: the child holds neither the old nor the new."""
    path = make_raw(tmp_path)
    with fdstash.open(path, "r+", format="raw") as image:

        def check() -> None:
            assert image_descriptors(path) == []
            refuses_everything(image)

        image.reopen(mode="r", prepare=lambda: reap(run_in_child(check)))
        assert image.mode == "r"
        assert_as_kernel_says(image)
        # The fork came after the new description was made.
        assert set(image.reopen(cache="none").routes.values()) == {"proc"}


def _use_in_process(pipe: Connection, path: str) -> None:
    handles = [repr(type(error)) for error in _errors(_inherited[0])]
    pipe.send((handles, image_descriptors(path)))


def _errors(image: Image) -> Iterator[BaseException]:
    for use in (lambda: image.pread(1, 0), lambda: image.pwrite(b"x", 0), image.flush):
        try:
            use()
        except fdstash.Error as error:
            yield error


_inherited: list[Image] = []


@pytest.mark.forks
def test_multiprocessing_forks_the_same_way(tmp_path: Path) -> None:
    path = make_raw(tmp_path)
    context = multiprocessing.get_context("fork")
    with fdstash.open(path, "r+", format="raw") as image:
        _inherited.append(image)
        with running(reopen_without_pause(image)):
            for _ in range(count(200)):
                ours, theirs = context.Pipe()
                process = context.Process(target=_use_in_process, args=(theirs, str(path)))
                process.start()
                theirs.close()
                assert ours.poll(PATIENCE), "the child hangs"
                assert ours.recv() == ([repr(ClosedError)] * 3, [])
                process.join(PATIENCE)
                assert process.exitcode == 0
                ours.close()
                process.close()
        _inherited.clear()


def test_no_lock_of_the_package_is_taken_for_ever_in_a_child() -> None:
    """A thread that is not in the child may have held any of them."""
    modules = []
    for each in pkgutil.walk_packages(fdstash.__path__, "fdstash."):
        with suppress(ImportError):  # of an extra that is not installed
            modules.append(import_module(each.name))
    kinds = (type(threading.Lock()), type(threading.RLock()))
    locks = [
        (each, name)
        for each in modules
        for name, is_a in vars(each).items()
        if isinstance(is_a, kinds)
    ]
    assert (fdstash.locking, "_claims_lock") in locks
    taken, over = threading.Event(), threading.Event()

    def hold() -> None:
        with ExitStack() as held:
            for module, name in locks:
                held.enter_context(getattr(module, name))
            taken.set()
            over.wait(PATIENCE)

    def check() -> None:
        held = [
            f"{module.__name__}.{name}"
            for module, name in locks
            if not getattr(module, name).acquire(blocking=False)
        ]
        assert held == []

    with ThreadPoolExecutor(1) as pool:
        holder = pool.submit(hold)
        assert taken.wait(PATIENCE)
        try:
            reap(run_in_child(check))
        finally:
            over.set()
        holder.result()


@pytest.mark.forks
def test_many_threads_fork_at_once(disk: FlatDisk) -> None:
    def check() -> None:
        assert image_descriptors(*disk.files) == []

    def fork() -> None:
        for _ in range(count(400)):
            reap(run_in_child(check))

    with (
        fdstash.open(disk.path, "r+") as image,
        running(reopen_without_pause(image)),
        ThreadPoolExecutor(4) as pool,
    ):
        for done in [pool.submit(fork) for _ in range(4)]:
            done.result()
