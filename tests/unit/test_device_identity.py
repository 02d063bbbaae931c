"""Which block device is the same one: by its number and its sequence number, not by its node."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import fdstash
from fdstash import FDStash, ImageIOError, ReopenError
from tests.support.disks import ExtentSpec, descriptor_text, noise
from tests.support.hosts import Hosts
from tests.support.kernel import access_mode, is_direct, open_descriptors, same_description
from tests.support.mounts import run

pytestmark = [pytest.mark.usefixtures("no_descriptor_leaks"), pytest.mark.root]

SIZE = 1 << 20
LOOP_CHANGE_FD = 0x4C06
BLKGETDISKSEQ = 0x80081280

SECTORS = pytest.mark.parametrize("sector", [512, 4096])


def fill(device: str, seed: int) -> bytes:
    data = noise(SIZE, seed)
    fd = os.open(device, os.O_WRONLY)
    assert os.pwrite(fd, data, 0) == SIZE
    os.fsync(fd)
    os.close(fd)
    return data


def assert_as_asked(image: fdstash.Image) -> None:
    """Of a device the kernel's size is another, so the common look does not serve."""
    direct = image.cache in ("none", "directsync")
    for file in image.files:
        assert (file.mode, file.direct) == (image.mode, direct)
        assert (access_mode(file.fd), is_direct(file.fd)) == (image.mode, direct)


@pytest.fixture
def stash() -> Iterator[FDStash]:
    with FDStash() as made:
        yield made


@SECTORS
def test_a_stash_serves_every_mode_of_a_device(
    loop_device: Callable[..., str], stash: FDStash, sector: int
) -> None:
    device = loop_device(SIZE, sector)
    model = bytearray(fill(device, 1))
    for access in (os.O_RDONLY, os.O_RDWR):
        for direct in (0, os.O_DIRECT):
            stash.add(device, os.open(device, access | direct))
    with fdstash.open(device, "r+", format="raw", stash=stash) as image:
        for number, (mode, cache) in enumerate(
            [("r", "none"), ("r+", "none"), ("r+", "writeback"), ("r", "writeback"), ("r+", "none")]
        ):
            report = image.reopen(mode=mode, cache=cache, stash=stash)
            assert set(report.routes.values()) == {"stash"}
            assert_as_asked(image)
            if mode == "r+":
                at = 1000 * number + 7
                image.pwrite(b"odd" * 300, at)
                model[at : at + 900] = b"odd" * 300
            assert image.pread(SIZE, 0) == model


def test_another_device_is_refused(loop_device: Callable[..., str], stash: FDStash) -> None:
    device, other = loop_device(SIZE), loop_device(SIZE)
    fill(device, 1)
    fill(other, 1)
    stash.add(device, os.open(other, os.O_RDONLY))
    with fdstash.open(device, "r+", format="raw") as image:
        before, descriptors = image.files, open_descriptors()
        with pytest.raises(ReopenError) as caught:
            image.reopen(mode="r", stash=stash)
        assert (caught.value.errno, caught.value.file) == (errno.ESTALE, device)
        assert (image.files, open_descriptors()) == (before, descriptors)


def test_another_node_of_the_same_device_is_the_same_device(
    loop_device: Callable[..., str], stash: FDStash, tmp_path: Path
) -> None:
    """As in another namespace, whose /dev has inodes of its own."""
    device = loop_device(SIZE)
    data = fill(device, 1)
    node = tmp_path / "node"
    os.mknod(node, 0o600 | 0o060000, os.stat(device).st_rdev)
    stash.add(device, os.open(node, os.O_RDONLY))
    with fdstash.open(device, "r+", format="raw") as image:
        report = image.reopen(mode="r", stash=stash)
        assert set(report.routes.values()) == {"stash"}
        assert image.pread(SIZE, 0) == data


def test_a_number_that_came_to_another_disk_is_refused(hosts: Hosts) -> None:
    """The node and the number are the same, and the disk behind them is not."""
    files = [hosts.backing_file(SIZE) for _ in range(2)]
    for seed, path in enumerate(files):
        path.write_bytes(noise(SIZE, seed))
    device = run("losetup", "--find", "--show", "--read-only", files[0], package="mount").strip()
    try:
        with fdstash.open(device, "r", format="raw", lock=False) as image:
            assert image.pread(SIZE, 0) == noise(SIZE, 0)
            image.reopen(cache="none")
            image.reopen(cache="writeback", path=device)
            fd, backing = os.open(device, os.O_RDONLY), os.open(files[1], os.O_RDONLY)
            sequence = fcntl.ioctl(fd, BLKGETDISKSEQ, bytes(8))
            fcntl.ioctl(fd, LOOP_CHANGE_FD, backing)
            assert fcntl.ioctl(fd, BLKGETDISKSEQ, bytes(8)) != sequence
            os.close(backing)
            os.close(fd)
            before, descriptors = image.files, open_descriptors()
            for options in ({"path": device}, {"path": device, "cache": "none"}):
                with pytest.raises(ReopenError) as caught:
                    image.reopen(**options)  # type: ignore[arg-type]
                assert (caught.value.errno, caught.value.file) == (errno.ESTALE, device)
                assert (image.files, open_descriptors()) == (before, descriptors)
    finally:
        run("losetup", "--detach", device, package="mount")
        for path in files:
            path.unlink()


@SECTORS
def test_extents_may_be_devices_where_a_resolver_allows_it(
    loop_device: Callable[..., str], tmp_path: Path, sector: int
) -> None:
    """A file and a device that ask for different alignments are one image, in every cache mode."""
    device = loop_device(SIZE, sector)
    data = fill(device, 1)
    (tmp_path / "a.bin").write_bytes(noise(64 * 512, 2))
    path = tmp_path / "disk.vmdk"
    path.write_text(
        descriptor_text(
            [
                ExtentSpec("RW", 64, name="a.bin"),
                ExtentSpec("RW", 2000, name=device, start=3),
            ]
        )
    )
    model = bytearray(noise(64 * 512, 2) + data[3 * 512 : 2003 * 512])
    with pytest.raises(fdstash.RefusedError):
        fdstash.open(path, "r+")
    with fdstash.open(path, "r+", resolver=fdstash.anywhere) as image:
        for number, (mode, cache) in enumerate(
            [("r+", "none"), ("r", "none"), ("r+", "writeback"), ("r+", "directsync")]
        ):
            image.reopen(mode=mode, cache=cache)
            assert_as_asked(image)
            if mode == "r+":
                at = 64 * 512 - 100 - number
                image.pwrite(b"boundary" * 50, at)
                model[at : at + 400] = b"boundary" * 50
            assert image.pread(image.size, 0) == model


def test_a_device_that_is_shorter_than_its_extent_is_refused(
    loop_device: Callable[..., str], tmp_path: Path
) -> None:
    device = loop_device(SIZE)
    path = tmp_path / "disk.vmdk"
    path.write_text(descriptor_text([ExtentSpec("RW", SIZE // 512 + 1, name=device)]))
    with pytest.raises(fdstash.FormatError):
        fdstash.open(path, "r+", resolver=fdstash.anywhere)


def test_a_device_is_not_resized(loop_device: Callable[..., str]) -> None:
    device = loop_device(SIZE)
    with fdstash.open(device, "r+", format="raw") as image:
        copy = os.dup(image.files[0].fd)
        with pytest.raises(ImageIOError):
            image.resize(SIZE // 2)
        assert image.size == SIZE
        assert same_description(copy, image.files[0].fd)
        os.close(copy)
