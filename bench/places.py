"""Where the files of a benchmark lie."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.support.need import missing, need_program

__all__ = ["disk", "ext4", "file_system", "tmpfs"]

_EXT4_BYTES = 512 << 20
_EXT4_INODES = 16384


def file_system(folder: Path) -> str:
    """The type that it is mounted as."""
    device = folder.stat().st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        words = line.split()
        if words[2] == number:
            return words[words.index("-") + 1]
    return "unknown"


@contextlib.contextmanager
def _mounted(mount_point: Path, *words: str) -> Iterator[None]:
    done = subprocess.run(
        [need_program("mount", "mount"), *words, str(mount_point)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        missing(f"mount {' '.join(words)}: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run([need_program("umount", "mount"), str(mount_point)], check=True)


@contextlib.contextmanager
def tmpfs(mount_point: Path) -> Iterator[Path]:
    """A new folder on /dev/shm, or, as root, on a tmpfs of its own where that is none."""
    shared = Path("/dev/shm")
    if shared.is_dir() and os.access(shared, os.W_OK) and file_system(shared) == "tmpfs":
        folder = Path(tempfile.mkdtemp(prefix="fdstash-bench-", dir=shared))
        try:
            yield folder
        finally:
            shutil.rmtree(folder)
    elif os.geteuid() == 0:
        with _mounted(mount_point, "-t", "tmpfs", "-o", "size=1g", "tmpfs"):
            yield mount_point
    else:
        missing("/dev/shm is no tmpfs that can be written to")


@contextlib.contextmanager
def ext4(below: Path, mount_point: Path) -> Iterator[Path]:
    """An ext4 in a file in `below`; without root `mount_point` itself, whatever it lies on."""
    if os.geteuid() != 0:
        yield mount_point
        return
    disk = below / "ext4.img"
    with disk.open("wb") as file:
        file.truncate(_EXT4_BYTES)
    mkfs = need_program("mkfs.ext4", "e2fsprogs")
    subprocess.run([mkfs, "-q", "-F", "-N", str(_EXT4_INODES), str(disk)], check=True)
    with _mounted(mount_point, "-o", "loop", str(disk)):
        yield mount_point
    disk.unlink()


@contextlib.contextmanager
def disk(below: Path, mount_point: Path, size: int) -> Iterator[Path]:
    """An ext4 of `size` bytes for O_DIRECT: its loop device does without a page cache too.

    Without root `mount_point` itself, whatever it lies on.
    """
    if os.geteuid() != 0:
        yield mount_point
        return
    backing = below / "disk.img"
    with backing.open("wb") as file:
        file.truncate(size)
    mkfs = need_program("mkfs.ext4", "e2fsprogs")
    subprocess.run([mkfs, "-q", "-F", "-N", str(_EXT4_INODES), str(backing)], check=True)
    losetup = need_program("losetup", "mount")
    attach = [losetup, "--find", "--show", "--direct-io=on", str(backing)]
    device = subprocess.run(attach, capture_output=True, text=True, check=True).stdout.strip()
    try:
        with _mounted(mount_point, device):
            yield mount_point
    finally:
        subprocess.run([losetup, "--detach", device], check=True)
    backing.unlink()
