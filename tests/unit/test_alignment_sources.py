"""Where the alignment that O_DIRECT asks for comes from: statx, then the device, then reads.

Each of the three is looked at on its own, by the calls that it makes and those that it spares.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from fdstash.hostfile import HostFile
from fdstash.opening import dup_owned
from tests.support.disks import noise
from tests.support.faultshim import FaultShim
from tests.support.need import missing

pytestmark = [
    pytest.mark.usefixtures("no_descriptor_leaks"),
    pytest.mark.root,
    pytest.mark.preload,
]

AT_EMPTY_PATH = 0x1000
STATX_DIOALIGN = 0x2000
#: Of a device's identity: its sequence number and its size.
IDENTITY_IOCTLS = 2

SECTORS = pytest.mark.parametrize("sector", [512, 4096])


def dio_align(fd: int) -> tuple[int, int]:
    """What statx says of memory and of offsets; zeros where it says nothing."""
    found = ctypes.create_string_buffer(256)
    rc = ctypes.CDLL(None, use_errno=True).statx(fd, b"", AT_EMPTY_PATH, STATX_DIOALIGN, found)
    assert rc == 0, os.strerror(ctypes.get_errno())
    if not struct.unpack_from("I", found, 0)[0] & STATX_DIOALIGN:
        return 0, 0
    memory, offset = struct.unpack_from("II", found, 152)
    return memory, offset


def direct(path: str | Path) -> int:
    """An owned descriptor that nobody has asked anything of."""
    fd = os.open(path, os.O_RDWR | os.O_DIRECT)
    owned = dup_owned(fd, "file")
    os.close(fd)
    return owned


def learned(file: HostFile) -> tuple[int, int]:
    status = file.status()
    return status.memory_alignment, status.offset_alignment


@SECTORS
@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_where_statx_tells_it_is_believed_and_nothing_is_read(
    kind: str, sector: int, shim: FaultShim, request: pytest.FixtureRequest
) -> None:
    mount: Callable[..., Path] = request.getfixturevalue(f"{kind}_mount")
    path = mount(sector_size=sector) / "file"
    path.write_bytes(noise(65536))
    fd = direct(path)
    told = dio_align(fd)
    assert told[1] == sector
    with shim.counting() as met:
        file = HostFile(fd, "file")
    assert learned(file) == told
    assert (met.counts["pread"], met.counts["ioctl"]) == (0, 0)
    file.release()


@SECTORS
def test_where_statx_tells_of_a_device_its_sector_size_is_not_asked(
    sector: int, shim: FaultShim, loop_device: Callable[..., str]
) -> None:
    fd = direct(loop_device(1 << 20, sector))
    told = dio_align(fd)
    if told == (0, 0):
        missing("a kernel that tells the alignment of devices by statx")
    with shim.counting() as met:
        file = HostFile(fd, "file")
    assert learned(file) == told
    assert (met.counts["pread"], met.counts["ioctl"]) == (0, IDENTITY_IOCTLS)
    file.release()


@SECTORS
def test_where_statx_does_not_tell_a_device_is_asked_and_not_read(
    sector: int, shim: FaultShim, loop_device: Callable[..., str]
) -> None:
    fd = direct(loop_device(1 << 20, sector))
    with shim.fault("statx", 0, errno.ENOSYS) as met:
        file = HostFile(fd, "file")
    assert met.fired
    assert learned(file) == (sector, sector)
    assert (met.counts["pread"], met.counts["ioctl"]) == (0, IDENTITY_IOCTLS + 1)
    file.release()


@SECTORS
@pytest.mark.parametrize("kind", ["ext4", "xfs"])
@pytest.mark.parametrize("hole", [0, 1 << 20])
def test_where_nobody_tells_reads_are_tried_where_there_is_data(
    kind: str, sector: int, hole: int, shim: FaultShim, request: pytest.FixtureRequest
) -> None:
    mount: Callable[..., Path] = request.getfixturevalue(f"{kind}_mount")
    path = mount(sector_size=sector) / "file"
    with path.open("wb") as file_:
        file_.seek(hole)
        file_.write(noise(65536))
    fd = direct(path)
    with shim.fault("statx", 0, errno.ENOSYS) as met:
        file = HostFile(fd, "file")
    assert learned(file)[1] == sector
    assert met.counts["lseek"] > 0
    assert met.counts["pread"] > 0
    file.release()
