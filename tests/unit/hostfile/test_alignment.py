"""What O_DIRECT asks of offsets and memory: learned, asked for, or assumed."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
from pathlib import Path

import pytest

from fdstash.hostfile import HostFile
from tests.support.disks import noise
from tests.support.faultshim import FaultShim
from tests.support.ground import DIRECT_PLACES, FILES, PLACES, Ground, at, dup_of

pytestmark = [pytest.mark.usefixtures("no_descriptor_leaks"), pytest.mark.root]

BLKSSZGET = 0x1268


def smallest_read(path: Path, *, memory: bool) -> int:
    """By trying: the smallest offset (or address) that the kernel takes, on allocated bytes."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    buffer = memoryview(mmap.mmap(-1, 16384))
    try:
        for size in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096):
            try:
                if memory:
                    os.preadv(fd, [buffer[4096 + size : 8192 + size]], 0)
                else:
                    os.preadv(fd, [buffer[:size]], size)
            except OSError as error:
                assert error.errno == errno.EINVAL
            else:
                return size
    finally:
        os.close(fd)
    raise AssertionError("O_DIRECT takes nothing")


@at(DIRECT_PLACES)
def test_the_alignment_learned_is_what_the_kernel_enforces(ground: Ground) -> None:
    ground.fill(noise(65536))
    file = ground.open(direct=True)
    status = file.status()
    assert status.offset_alignment == smallest_read(ground.path, memory=False)
    assert status.offset_alignment == ground.place.sector
    assert status.memory_alignment % smallest_read(ground.path, memory=True) == 0
    assert status.memory_alignment <= 4096
    file.release()


@at(PLACES)
def test_nothing_is_learned_before_it_is_needed(ground: Ground) -> None:
    ground.fill(noise(65536))
    file = ground.open(direct=False)
    assert (file.status().offset_alignment, file.status().memory_alignment) == (0, 0)
    file.release()


@pytest.mark.preload
@at(DIRECT_PLACES)
def test_without_statx_devices_are_asked_and_of_files_reads_are_tried(
    ground: Ground, shim: FaultShim
) -> None:
    """A kernel before 6.1 has no STATX_DIOALIGN; a file has no BLKSSZGET."""
    ground.fill(noise(65536))
    fd = dup_of(ground.path, os.O_RDWR | os.O_DIRECT)
    with shim.fault("statx", 0, errno.ENOSYS) as met:
        file = HostFile(fd, "file")
    assert met.fired
    assert (met.counts["pread"] > 0) != ground.place.is_device
    status = file.status()
    assert status.offset_alignment == ground.place.sector
    assert status.memory_alignment in (512, 4096)
    file.release()


@pytest.mark.preload
@at([PLACES[5], PLACES[6]])
def test_a_device_that_tells_nothing_gets_the_safe_answer(ground: Ground, shim: FaultShim) -> None:
    ground.fill(noise(65536))
    fd = dup_of(ground.path, os.O_RDWR | os.O_DIRECT)
    shim.arm("statx", 0, errno.ENOSYS)
    shim.also("ioctl", 2, errno.ENOTTY)  # after those for sequence number and size
    file = HostFile(fd, "file")
    assert shim.disarm().times == 2
    assert (file.status().offset_alignment, file.status().memory_alignment) == (4096, 4096)
    assert file.pwrite(b"abc", 1000) == 3
    assert file.pread(3, 1000) == b"abc"
    file.release()


@pytest.mark.preload
@at(FILES[:4])
def test_a_file_without_data_gives_the_safe_answer(ground: Ground, shim: FaultShim) -> None:
    """In a hole some file systems look at no alignment, so that reads there prove nothing."""
    ground.fill(b"")
    os.truncate(ground.path, 65536)
    with shim.fault("statx", 0, errno.ENOSYS):
        file = HostFile(dup_of(ground.path, os.O_RDWR | os.O_DIRECT), "file")
    assert file.status().offset_alignment == 4096
    assert file.pwrite(b"abc", 1000) == 3
    assert file.pread(5, 999) == b"\0abc\0"
    file.release()


@at([PLACES[6]])
def test_a_device_does_say_its_sector_size(ground: Ground) -> None:
    """And takes no smaller request: why 512 is never assumed."""
    fd = os.open(ground.path, os.O_RDWR | os.O_DIRECT)
    answer = fcntl.ioctl(fd, BLKSSZGET, b"\0\0\0\0")
    assert int.from_bytes(answer, "little") == 4096
    memory = mmap.mmap(-1, 4096)
    with pytest.raises(OSError, match="Invalid argument"):
        os.pwritev(fd, [memoryview(memory)[:512]], 0)
    os.close(fd)
