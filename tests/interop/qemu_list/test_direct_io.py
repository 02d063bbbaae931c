"""Rows 8 and 9: the alignment is known or probed before anything changes."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import fdstash
from fdstash import FDStash, ReopenError
from tests.support.disks import ExtentSpec, descriptor_text, make_raw, noise
from tests.support.faultshim import FaultShim
from tests.support.hosts import Hosts
from tests.support.images import SIZE, read_all
from tests.support.kernel import open_descriptors
from tests.support.mounts import mount, unmount
from tests.support.seen import assert_as_kernel_says


@pytest.mark.root
@pytest.mark.parametrize("kept_private", [True, False])
def test_row_8_the_alignment_is_that_of_the_new_description(
    ext4_mount: Callable[..., Path], stash: FDStash, kept_private: bool
) -> None:
    path = make_raw(ext4_mount(sector_size=4096), SIZE)
    with fdstash.open(path, "r+", format="raw") as image:
        if not kept_private:
            image.extract_fds(stash)
        image.reopen(cache="none")
        assert image.limits.offset_alignment == 4096
        assert image.pread(512, 512) == noise(SIZE, 1)[512:1024]
        image.pwrite(b"between two sectors of 4096", 4090)
        assert image.pread(27, 4090) == b"between two sectors of 4096"


@pytest.fixture
def ramfs(tmp_path: Path) -> Iterator[Path]:
    """A file system that bears no O_DIRECT."""
    folder = tmp_path / "ramfs"
    mount("fdstash-ramfs", folder, "ramfs")
    yield folder
    unmount(folder)


@pytest.mark.root
@pytest.mark.parametrize("place", [0, 1])
def test_row_8_a_file_that_bears_no_direct_io_fails_the_reopen_before_anything_changes(
    ramfs: Path, tmp_path: Path, place: int
) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk/here").mkdir()
    ramfs_file, disk_file = ramfs / "b.bin", tmp_path / "disk/b.bin"
    for path in (ramfs_file, disk_file):
        path.write_bytes(noise(SIZE, 3))
    names = [str(disk_file), str(disk_file)]
    names[place] = str(ramfs_file)
    extents = [ExtentSpec("RW", 64, name=names[0]), ExtentSpec("RW", 64, name=names[1], start=64)]
    path = tmp_path / "disk/here/disk.vmdk"
    path.write_text(descriptor_text(extents))
    with fdstash.open(path, "r+", resolver=fdstash.anywhere) as image:
        before, descriptors = image.files, open_descriptors()
        for options in ({"cache": "none"}, {"cache": "none", "mode": "r"}):
            with pytest.raises(ReopenError) as caught:
                image.reopen(**options)
            error = caught.value
            assert (error.phase, error.errno, error.file) == (
                *("acquire", errno.EINVAL),
                str(ramfs_file),
            )
            assert image.files == before
            assert open_descriptors() == descriptors
            assert image.pread(5, 3) == noise(SIZE, 3)[3:8]


@pytest.mark.preload
@pytest.mark.root
@pytest.mark.parametrize("kept_private", [True, False])
def test_row_9_a_probe_that_fails_leaks_no_descriptor(
    hosts: Hosts, stash: FDStash, shim: FaultShim, kept_private: bool
) -> None:
    path = hosts.backing_file(SIZE)  # on a tmpfs, where the kernel does not tell the alignment
    path.write_bytes(noise(SIZE, 1))

    def attempt(position: int) -> int:
        """Reopen a fresh image with that read of the probe failing; how many reads there were."""
        with fdstash.open(path, "r+", format="raw") as image:
            if not kept_private:
                image.extract_fds(stash)
            descriptors, before = open_descriptors(), image.files
            error = None
            with shim.fault("pread", position, errno.EIO) as fault:
                try:
                    image.reopen(cache="none")
                except ReopenError as failed:
                    error = failed
            assert fault.fired == (position >= 0)
            assert open_descriptors() == descriptors
            if error is not None:
                assert (error.phase, error.errno, error.rolled_back) == (
                    *("acquire", errno.EIO),
                    True,
                )
                assert image.files == before
                image.reopen(cache="none")
            assert_as_kernel_says(image)
            assert read_all(image) == noise(SIZE, 1)
            failures.append(error)
            return fault.counts["pread"]

    failures: list[ReopenError | None] = []
    reads = attempt(-1)
    assert reads > 0
    for position in range(reads):
        attempt(position)
    # A description of our own can take another way; where there is none, the probe decides.
    assert kept_private or any(failures)
