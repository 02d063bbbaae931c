"""tests/support/kernel.py tells what is, and nothing of itself."""

from __future__ import annotations

import fcntl
import os
import struct
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support import kernel
from tests.support.kernel import Lock
from tests.support.tier import count

F_OFD_SETLK = 37


def lock(fd: int, kind: int, start: int, length: int) -> None:
    fcntl.fcntl(fd, F_OFD_SETLK, struct.pack("hhqqi4x", kind, os.SEEK_SET, start, length, 0))


def test_the_listing_does_not_list_itself(tmp_path: Path) -> None:
    before = kernel.open_descriptors()
    assert kernel.open_descriptors() == before
    assert set(before) == {fd for fd in range(1000) if os.path.exists(f"/proc/self/fd/{fd}")}
    fd = os.open(tmp_path, os.O_PATH)
    assert kernel.open_descriptors() == {**before, fd: str(tmp_path)}
    assert kernel.descriptor_count() == len(before) + 1
    assert kernel.access_mode(fd) == "path"
    os.close(fd)


def test_a_leak_and_a_loss_are_both_found(tmp_path: Path) -> None:
    with kernel.no_descriptor_leak():
        os.close(os.open(tmp_path, os.O_PATH))
    fd = -1
    with pytest.raises(AssertionError, match="opened"), kernel.no_descriptor_leak(0.05):
        fd = os.open(tmp_path, os.O_PATH)
    with pytest.raises(AssertionError, match="closed"), kernel.no_descriptor_leak(0.05):
        os.close(fd)


def test_modes_and_flags(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for flags, mode in ((os.O_RDWR | os.O_CREAT, "r+"), (os.O_RDONLY, "r"), (os.O_WRONLY, "w")):
        fd = os.open(path, flags)
        assert kernel.access_mode(fd) == mode
        assert not kernel.is_direct(fd)
        os.close(fd)


def test_descriptions_are_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "file"
    first = os.open(path, os.O_RDWR | os.O_CREAT)
    second = os.open(path, os.O_RDWR)
    third = os.dup(first)
    assert kernel.same_description(first, third)
    assert not kernel.same_description(first, second)
    for fd in (first, second, third):
        os.close(fd)


def test_locks_are_those_of_the_file_and_of_the_description(tmp_path: Path) -> None:
    path = tmp_path / "file"
    first = os.open(path, os.O_RDWR | os.O_CREAT)
    second = os.open(path, os.O_RDWR)
    lock(first, fcntl.F_RDLCK, 100, 1)
    lock(second, fcntl.F_RDLCK, 100, 1)
    lock(second, fcntl.F_WRLCK, 201, 2)
    lock(second, fcntl.F_RDLCK, 300, 0)
    shared = Lock(100, 100, "READ")
    own = [shared, Lock(201, 202, "WRITE"), Lock(300, None, "READ")]
    assert kernel.ofd_locks(path) == [shared, *own]
    assert kernel.description_locks(first) == [shared]
    assert kernel.description_locks(second) == own
    os.close(second)
    assert kernel.ofd_locks(path) == [shared]
    os.close(first)
    assert kernel.ofd_locks(path) == []


def test_locks_of_others_that_come_and_go_do_not_disturb_the_listing(tmp_path: Path) -> None:
    busy = """
import fcntl, os, struct, sys
fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
print(flush=True)
while True:
    for kind in fcntl.F_RDLCK, fcntl.F_UNLCK:
        for byte in range(0, 800, 2):
            fcntl.fcntl(fd, 37, struct.pack("hhqqi4x", kind, os.SEEK_SET, byte, 1, 0))
"""
    path = tmp_path / "file"
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    lock(fd, fcntl.F_RDLCK, 100, 2)
    lock(fd, fcntl.F_RDLCK, 200, 1)
    other = subprocess.Popen(
        [sys.executable, "-c", busy, tmp_path / "other"], stdout=subprocess.PIPE
    )
    with other:
        assert other.stdout is not None
        other.stdout.readline()
        found = [kernel.ofd_locks(path) for _ in range(50)]
        other.kill()
    os.close(fd)
    assert found == [[Lock(100, 101, "READ"), Lock(200, 200, "READ")]] * 50


def test_files_that_others_lock_and_close_do_not_shift_the_listing(tmp_path: Path) -> None:
    """They come and go between two pages of it, nearly each time, and all locks of one at once."""
    first, last = min(os.sched_getaffinity(0)), max(os.sched_getaffinity(0))
    busy = f"""
import fcntl, os, struct, sys
os.sched_setaffinity(0, [{first}])
print(flush=True)
while True:
    fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
    for byte in range(0, 10, 2):
        fcntl.fcntl(fd, 37, struct.pack("hhqqi4x", fcntl.F_RDLCK, os.SEEK_SET, byte, 1, 0))
    os.close(fd)
"""
    usable = os.sched_getaffinity(0)
    files = {tmp_path / str(number): os.O_RDWR | os.O_CREAT for number in range(30)}
    with ExitStack() as stack:
        # The listing has the locks that were made on one processor before those of the next.
        os.sched_setaffinity(0, [last])
        stack.callback(os.sched_setaffinity, 0, usable)
        for path, flags in files.items():
            fd = os.open(path, flags)
            stack.callback(os.close, fd)
            for byte in range(0, 10, 2):
                lock(fd, fcntl.F_RDLCK, byte, 1)
        os.sched_setaffinity(0, usable)
        other = stack.enter_context(
            subprocess.Popen(
                [sys.executable, "-c", busy, tmp_path / "other"], stdout=subprocess.PIPE
            )
        )
        stack.callback(other.kill)
        assert other.stdout is not None
        other.stdout.readline()
        for _ in range(count(200)):
            for path in files:
                assert len(kernel.ofd_locks(path)) == 5
