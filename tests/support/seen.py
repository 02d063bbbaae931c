"""Whether an image says of itself what the kernel says of its descriptors and locks."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator

import pytest

from fdstash import Image
from tests.support.disks import noise
from tests.support.kernel import (
    access_mode,
    is_direct,
    no_descriptor_leak,
    ofd_locks,
    open_descriptors,
)

__all__ = [
    "READER_BYTES",
    "WRITER_BYTES",
    "assert_as_kernel_says",
    "check_served",
    "image_descriptors",
    "locked_bytes",
    "no_descriptor_leaks",
]

#: Lock bytes of QEMU's protocol: consistent-read in use; write and resize not shared.
READER_BYTES = [100, 201, 203]
#: Also write and resize in use.
WRITER_BYTES = [100, 101, 103, 201, 203]


def image_descriptors(*paths: str | os.PathLike[str]) -> list[int]:
    """The descriptors of this process that lead to one of these files, by inode."""
    wanted = {(s.st_dev, s.st_ino) for s in map(os.stat, paths)}
    found = []
    for fd in open_descriptors():
        status = os.fstat(fd)
        if (status.st_dev, status.st_ino) in wanted:
            found.append(fd)
    return found


def assert_as_kernel_says(image: Image) -> None:
    """`files`, `mode` and `cache` are what F_GETFL and fstat say of every slot."""
    direct = image.cache in ("none", "directsync")
    for file in image.files:
        status = os.fstat(file.fd)
        assert file.mode == access_mode(file.fd)
        assert file.direct == is_direct(file.fd) == direct
        assert (file.device, file.inode) == (status.st_dev, status.st_ino)
        assert file.size == status.st_size
        assert file.mode == "r" or image.mode == "r+"
    assert image.files[0].mode == image.mode


def check_served(image: Image, model: bytearray) -> None:
    """Right bytes, writes that arrive, and nothing said that is not so.

    `model`: the bytes of the image; what is written here goes into it too.
    """
    assert image.pread(image.size, 0) == model
    if image.mode == "r+":
        for number in range(5):
            offset, data = number * 3371 % (image.size - 700), noise(700, number)
            image.pwrite(data, offset)
            model[offset : offset + len(data)] = data
        image.flush()
        assert image.pread(image.size, 0) == model
    assert_as_kernel_says(image)


def locked_bytes(path: str | os.PathLike[str] | int) -> list[int]:
    """The bytes of the file that are locked, one entry for each description; sorted.

    All are shared locks, or this fails: any other kind is none of the protocol.
    """
    found = []
    for lock in ofd_locks(path):
        assert lock.kind == "READ"
        assert lock.end is not None
        found += range(lock.start, lock.end + 1)
    return sorted(found)


@pytest.fixture
def no_descriptor_leaks() -> Iterator[None]:
    """Fails a test that leaves this process with other descriptors than it had before."""
    gc.collect()
    with no_descriptor_leak():
        yield
        gc.collect()
