"""The shim itself: exactly the call that was named fails, and only on the thread that said so."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import platform
import resource
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.support.faultshim import EOF, PAUSE, SHORT, FaultShim, run_preloaded

pytestmark = pytest.mark.preload

LIBC = ctypes.CDLL(None, use_errno=True)
SYS_OPENAT2 = 437


@pytest.fixture
def file(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    os.pwrite(fd, bytes(range(256)) * 32, 0)
    yield fd
    os.close(fd)


def native(name: str, *arguments: object) -> int:
    """A libc call; -errno where it fails."""
    function = getattr(LIBC, name)
    function.restype = ctypes.c_int
    ctypes.set_errno(0)
    result = int(function(*arguments))
    return -ctypes.get_errno() if result == -1 else result


def outcome(name: str, *arguments: object) -> int:
    """0 or -errno, for calls that return a count, an offset or flags."""
    return min(0, native(name, *arguments))


def opened(name: str, *arguments: object) -> int:
    """0 or -errno, for calls that return a new descriptor."""
    fd = native(name, *arguments)
    return native("close", fd) if fd >= 0 else fd


OPENAT2 = (
    ctypes.c_long(SYS_OPENAT2),
    -100,
    b"/dev/null",
    (ctypes.c_uint64 * 3)(os.O_RDONLY, 0, 0),
    ctypes.c_size_t(24),
)


def calls(fd: int) -> dict[str, tuple[str, Callable[[], int]]]:
    """Every interposed name: its class, and how to call it so that it would succeed."""
    offset, size, end = ctypes.c_long(0), ctypes.c_size_t(64), ctypes.c_long(8192)
    room = ctypes.create_string_buffer(4096)
    vector = (ctypes.c_void_p * 2)(ctypes.cast(room, ctypes.c_void_p).value, 64)
    vector.room = room  # type: ignore[attr-defined] # the address alone would not keep it
    table: dict[str, tuple[str, Callable[[], int]]] = {}

    def add(call_class: str, call: Callable[..., int], name: str, *arguments: object) -> None:
        table[name] = call_class, partial(call, name, *arguments)

    add("openat", opened, "syscall", *OPENAT2)
    add("dup", opened, "dup", fd)
    add("dup3", opened, "dup2", fd, 900)
    add("dup3", opened, "dup3", fd, 900, os.O_CLOEXEC)
    add("statx", native, "statx", fd, b"", 0x1000, 0x7FF, room)
    add("fsync", native, "fsync", fd)
    add("fdatasync", native, "fdatasync", fd)
    add("sync_file_range", native, "sync_file_range", fd, offset, offset, 0)
    add("ioctl", native, "ioctl", fd, ctypes.c_ulong(0x5451), None)
    table["close"] = "close", lambda: native("close", os.dup(fd))
    for plain in ("", "64"):
        fortified = f"{plain}_2"
        add("openat", opened, f"open{plain}", b"/dev/null", 0)
        add("openat", opened, f"__open{fortified}", b"/dev/null", 0)
        add("openat", opened, f"openat{plain}", -100, b"/dev/null", 0)
        add("openat", opened, f"__openat{fortified}", -100, b"/dev/null", 0)
        add("pread", outcome, f"pread{plain}", fd, room, size, offset)
        add("pread", outcome, f"__pread{plain}_chk", fd, room, size, offset, end)
        add("pwrite", outcome, f"pwrite{plain}", fd, room, size, offset)
        add("pread", outcome, f"preadv{plain}", fd, vector, 1, offset)
        add("pwrite", outcome, f"pwritev{plain}", fd, vector, 1, offset)
        version_2 = f"{plain}v2" if plain else "2"
        add("pread", outcome, f"preadv{version_2}", fd, vector, 1, offset, 0)
        add("pwrite", outcome, f"pwritev{version_2}", fd, vector, 1, offset, 0)
        add("fstat", native, f"fstat{plain}", fd, room)
        add("fstat", native, f"__fxstat{plain}", 1, fd, room)
        add("fstatfs", native, f"fstatfs{plain}", fd, room)
        add("lseek", native, f"lseek{plain}", fd, offset, 0)
        add("F_GETFL", outcome, f"fcntl{plain}", fd, fcntl.F_GETFL, offset)
        add("ftruncate", native, f"ftruncate{plain}", fd, end)
        add("fallocate", native, f"fallocate{plain}", fd, 0, offset, end)
        add("getrlimit", native, f"getrlimit{plain}", resource.RLIMIT_NOFILE, room)
        add("getrlimit", native, f"prlimit{plain}", 0, resource.RLIMIT_NOFILE, None, room)
    return table


NAMES = sorted(calls(0)) if platform.machine() == "x86_64" else ["open", "close"]


@pytest.mark.parametrize("name", NAMES)
def test_every_interposed_name_is_counted_and_fails_once(
    name: str, shim: FaultShim, file: int
) -> None:
    call_class, call = calls(file)[name]
    with shim.fault(call_class, 1, errno.EIO) as met:
        results = [call() for _ in range(3)]
    assert results == [0, -errno.EIO, 0]
    assert met.fired
    assert met.times == 1
    assert met.counts[call_class] >= 3
    assert met.trace.count(call_class) == met.counts[call_class]
    assert [call() for _ in range(3)] == [0, 0, 0]


def test_only_the_nth_call_of_the_class_fails(shim: FaultShim, file: int) -> None:
    for position in range(5):
        with shim.fault("pread", position, errno.EIO) as met:
            results = []
            for _ in range(5):
                os.fstat(file)
                try:
                    results.append(os.pread(file, 1, 0))
                except OSError as error:
                    assert error.errno == errno.EIO
                    results.append(b"failed")
        assert results.index(b"failed") == position
        assert results.count(b"failed") == 1
        assert met.counts["pread"] == 5
        assert met.counts["fstat"] == 5
        assert met.counts["any"] == 10


def test_a_position_beyond_the_last_call_does_not_fire(shim: FaultShim, file: int) -> None:
    with shim.fault("pread", 1, errno.EIO) as met:
        os.pread(file, 1, 0)
    assert not met.fired
    assert met.counts["pread"] == 1


def test_only_the_armed_thread_is_touched(shim: FaultShim, file: int) -> None:
    stop = threading.Event()
    failures: list[BaseException] = []
    done = [0]

    def load() -> None:
        while not stop.is_set():
            try:
                os.pread(file, 1, 0)
                os.close(os.dup(file))
            except OSError as error:
                failures.append(error)
            done[0] += 1

    thread = threading.Thread(target=load)
    thread.start()
    try:
        with shim.fault("any", 0, errno.EMFILE, times=10**6) as met:
            before = done[0]
            while done[0] < before + 100:
                time.sleep(0.001)
            with pytest.raises(OSError, match="Too many"):
                os.dup(file)
    finally:
        stop.set()
        thread.join()
    assert failures == []
    assert met.times == 1
    assert met.counts["any"] == 1


def test_several_calls_in_a_row_and_a_second_fault(shim: FaultShim, file: int) -> None:
    shim.arm("pread", 1, errno.EIO, times=2)
    shim.also("fsync", 0, errno.ENOSPC)
    results = []
    for _ in range(4):
        try:
            results.append(len(os.pread(file, 1, 0)))
        except OSError as error:
            results.append(-(error.errno or 0))
    with pytest.raises(OSError, match="No space"):
        os.fsync(file)
    os.fsync(file)
    met = shim.disarm()
    assert results == [1, -errno.EIO, -errno.EIO, 1]
    assert met.times == 3


def test_groups_hold_their_kinds(shim: FaultShim, file: int) -> None:
    with shim.trace() as met:
        os.close(os.dup(file))
        fcntl.fcntl(file, fcntl.F_GETFL)
        fcntl.fcntl(file, fcntl.F_SETFL, 0)
        os.fdatasync(file)
    assert met.trace == ["F_DUPFD", "close", "F_GETFL", "F_SETFL", "fdatasync"]
    assert met.counts["dup"] == 1
    assert met.counts["fcntl"] == 3
    assert met.counts["sync"] == 1
    assert set(met.counts) == set(shim.classes)


def test_a_close_that_fails_has_closed(shim: FaultShim, file: int) -> None:
    for error in (errno.EIO, errno.EINTR):
        fd = os.dup(file)
        with shim.fault("close", 0, error) as met:
            assert native("close", fd) == -error
        assert met.fired
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)


def test_transfers_may_be_short(shim: FaultShim, file: int) -> None:
    with shim.fault("pread", 0, SHORT):
        assert len(os.pread(file, 4096, 0)) == 2048
        assert len(os.pread(file, 4096, 0)) == 4096
    with shim.fault("pread", 0, EOF):
        assert os.pread(file, 4096, 0) == b""
    parts = [bytearray(512), bytearray(3584)]
    with shim.fault("pread", 0, SHORT):
        assert os.preadv(file, parts, 0) == 2048
    assert b"".join(parts) == bytes(range(256)) * 8 + bytes(2048)
    with shim.fault("pwrite", 0, SHORT):
        assert os.pwritev(file, [b"x" * 50, b"y" * 50], 0) == 50
    assert os.pread(file, 51, 0) == b"x" * 50 + b"\x32"


def test_bad_orders_are_refused(shim: FaultShim) -> None:
    for arguments in (("nothing", 0, errno.EIO), ("openat", 0, SHORT), ("openat", -2, errno.EIO)):
        with pytest.raises(OSError, match="Invalid argument"):
            shim.arm(*arguments)
    assert shim.disarm().counts["any"] == 0


@pytest.mark.skipif("libasan" in os.environ.get("LD_PRELOAD", ""), reason="ASan keeps its own")
@pytest.mark.skipif("libtsan" in os.environ.get("LD_PRELOAD", ""), reason="TSan keeps its own")
def test_memory_calls_fail_without_a_crash(shim: FaultShim) -> None:
    assert shim.sees_allocator()
    memory = ctypes.c_void_p()
    size = ctypes.c_size_t(4096)
    with shim.fault("posix_memalign", 0, errno.ENOMEM):
        assert LIBC.posix_memalign(ctypes.byref(memory), size, size) == errno.ENOMEM
        assert LIBC.posix_memalign(ctypes.byref(memory), size, size) == 0
    assert (memory.value or 1) % 4096 == 0
    LIBC.free(memory)
    assert LIBC.posix_memalign(ctypes.byref(memory), ctypes.c_size_t(3), size) == errno.EINVAL
    with shim.fault("mmap", 0, errno.ENOMEM), pytest.raises(OSError, match="memory"):
        mmap.mmap(-1, 4096)
    with shim.fault("malloc", 0, errno.ENOMEM) as met, pytest.raises(MemoryError):
        bytearray(1 << 20)
    assert met.fired


def test_memory_calls_from_elsewhere_are_not_seen(shim: FaultShim) -> None:
    shim.within("libm")
    with shim.fault("memory", 0, errno.ENOMEM) as met:
        mmap.mmap(-1, 4096).close()
        bytearray(1 << 20)
    assert not met.fired
    with pytest.raises(FileNotFoundError):
        shim.within("no such library")


def test_a_thread_that_cannot_be_made(shim: FaultShim) -> None:
    thread = threading.Thread(target=int)
    with shim.fault("pthread_create", 0, errno.EAGAIN), pytest.raises(RuntimeError):
        thread.start()


def test_a_paused_call_waits_for_resume(shim: FaultShim, file: int) -> None:
    order = []

    def worker() -> None:
        with shim.fault("pwrite", 0, PAUSE) as met:
            os.pwrite(file, b"late", 0)
        order.append("written")
        assert met.fired

    thread = threading.Thread(target=worker)
    thread.start()
    shim.wait_paused()
    assert os.pread(file, 4, 0) == bytes(range(4))
    order.append("seen")
    shim.resume()
    thread.join()
    assert order == ["seen", "written"]
    assert os.pread(file, 4, 0) == b"late"


def test_opens_by_path_are_refused_in_every_thread(shim: FaultShim, tmp_path: Path) -> None:
    (tmp_path / "disk-f002.vmdk").touch()
    (tmp_path / "disk-f003.vmdk").touch()
    shim.refuse("f002.vmdk", errno.EACCES)
    errors: list[int | None] = []

    def attempt() -> None:
        for number in (2, 3):
            try:
                os.close(os.open(tmp_path / f"disk-f00{number}.vmdk", os.O_RDONLY))
                errors.append(0)
            except OSError as error:
                errors.append(error.errno)

    thread = threading.Thread(target=attempt)
    thread.start()
    thread.join()
    assert errors == [errno.EACCES, 0]
    assert shim.path_hits == 1
    shim.refuse("/dev/null", errno.ELOOP)
    assert opened("syscall", *OPENAT2) == -errno.ELOOP
    shim.clear()
    os.close(os.open(tmp_path / "disk-f002.vmdk", os.O_RDONLY))


def test_a_link_of_proc_is_known_by_what_it_stands_for(shim: FaultShim, file: int) -> None:
    shim.refuse("/file", errno.ENOMEM)
    with pytest.raises(OSError, match="memory"):
        os.open(f"/proc/self/fd/{file}", os.O_RDONLY)


def test_a_delayed_open_hangs_until_it_is_cleared(shim: FaultShim, tmp_path: Path) -> None:
    path = tmp_path / "slow"
    path.touch()
    shim.delay("/slow", 60_000)
    opened = threading.Event()

    def attempt() -> None:
        os.close(os.open(path, os.O_RDONLY))
        opened.set()

    thread = threading.Thread(target=attempt)
    thread.start()
    shim.wait_open_hanging()
    assert not opened.is_set()
    shim.clear()
    assert opened.wait(5)
    thread.join()


def test_a_script_runs_under_the_shim() -> None:
    code = "from tests.support.faultshim import FaultShim; print(FaultShim().available)"
    assert run_preloaded(["-c", code]).stdout == "True\n"
