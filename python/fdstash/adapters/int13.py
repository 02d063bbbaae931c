"""The disk services of a PC's BIOS, INT 13h, for Qiling's 8086: read, write, geometry.

Qiling 1.4 has no CHS write, ends the whole machine where a disk reports an error,
and packs the geometry in another order than it unpacks an address. The functions
here answer 02h, 03h, 08h, 42h and 43h with the carry flag and the status in AH, as
in Ralf Brown's Interrupt List, so that a guest whose disk was made read-only is
told "write protected" and runs on.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable
from typing import Any, Protocol

from fdstash.errors import ClosedError, Error

__all__ = ["BiosDisk", "install"]

_BAD_COMMAND = 0x01
_WRITE_PROTECTED = 0x03
_SECTOR_NOT_FOUND = 0x04
_CONTROLLER_FAILURE = 0x20
_NOT_READY = 0xAA

_STATUS = {
    errno.EBADF: _WRITE_PROTECTED,
    errno.EROFS: _WRITE_PROTECTED,
    errno.ENXIO: _SECTOR_NOT_FOUND,
}
_FIRST_HARD_DISK = 0x80
#: The largest that the registers of function 08h hold.
_MAX_CYLINDER = 1023
#: Disk address packet of 42h and 43h: size, 0, sectors, offset, segment, first sector.
_PACKET = struct.Struct("<BBHHHQ")


class BiosDisk(Protocol):
    """What the services need of a drive: Qiling's `QlDisk` has it."""

    @property
    def n_heads(self) -> int:
        """Tracks in a cylinder."""

    @property
    def n_sectors(self) -> int:
        """Sectors in a track."""

    @property
    def n_cylinders(self) -> int:
        """Cylinders."""

    @property
    def sector_size(self) -> int:
        """Bytes in a sector."""

    def lba(self, cylinder: int, head: int, sector: int) -> int:
        """The number of the sector at that address."""

    def read_sectors(self, lba: int, cnt: int) -> bytes:
        """`cnt` sectors."""

    def write_sectors(self, lba: int, cnt: int, buffer: Any) -> int:
        """Write `cnt` sectors."""


_Service = Callable[[Any, BiosDisk], None]


def install(ql: Any) -> None:
    """Make the services of `ql` answer for the drives that its mapper knows by number.

    `ql`: a `Qiling` of 8086 DOS. Installing them again changes nothing.
    """
    for function, service in _SERVICES.items():
        ql.os.set_api((0x13, function), _answered(service))


def _answered(service: _Service) -> Callable[[Any], None]:
    """`service` with what it raises as carry flag and status; AH is 0 where it does not."""

    def handler(ql: Any) -> None:
        regs, drive = ql.arch.regs, ql.arch.regs.dl
        if not ql.os.fs_mapper.has_mapping(drive):
            status = _BAD_COMMAND
        else:
            try:
                service(ql, ql.os.fs_mapper.open(drive, None))
            except ClosedError:
                status = _NOT_READY
            except OSError as error:
                status = _STATUS.get(error.errno or 0, _CONTROLLER_FAILURE)
            except Error:
                status = _BAD_COMMAND
            else:
                status = 0
        regs.ah = status
        if status:
            ql.os.set_cf()
        else:
            ql.os.clear_cf()

    return handler


def _linear(segment: int, offset: int) -> int:
    return (segment << 4) + offset


def _chs(regs: Any) -> tuple[int, int, int]:
    """Cylinder, head and sector: CH and the top of CL, DH, the rest of CL."""
    return regs.ch | (regs.cl & 0xC0) << 2, regs.dh, regs.cl & 0x3F


def _read_chs(ql: Any, disk: BiosDisk) -> None:
    regs, count = ql.arch.regs, ql.arch.regs.al
    regs.al = 0  # sectors moved, also where it fails
    data = disk.read_sectors(disk.lba(*_chs(regs)), count)
    ql.mem.write(_linear(regs.es, regs.bx), data)
    regs.al = count


def _write_chs(ql: Any, disk: BiosDisk) -> None:
    regs, count = ql.arch.regs, ql.arch.regs.al
    regs.al = 0
    data = ql.mem.read(_linear(regs.es, regs.bx), count * disk.sector_size)
    disk.write_sectors(disk.lba(*_chs(regs)), count, data)
    regs.al = count


def _geometry(ql: Any, disk: BiosDisk) -> None:
    regs, mapper = ql.arch.regs, ql.os.fs_mapper
    first = regs.dl & _FIRST_HARD_DISK
    drives = sum(mapper.has_mapping(first + number) for number in range(0x80))
    last = min(disk.n_cylinders - 1, _MAX_CYLINDER)
    regs.cx = (last & 0xFF) << 8 | (last >> 2) & 0xC0 | min(disk.n_sectors, 63)
    regs.dx = (disk.n_heads - 1) << 8 | drives


def _packet(ql: Any) -> tuple[int, int, int, int]:
    """Address of the packet, sectors, where they are in memory, the first on the disk."""
    at = _linear(ql.arch.regs.ds, ql.arch.regs.si)
    _, _, count, offset, segment, lba = _PACKET.unpack(bytes(ql.mem.read(at, _PACKET.size)))
    ql.mem.write(at + 2, bytes(2))  # sectors moved, also where it fails
    return at, count, _linear(segment, offset), lba


def _read_packet(ql: Any, disk: BiosDisk) -> None:
    at, count, memory, lba = _packet(ql)
    ql.mem.write(memory, disk.read_sectors(lba, count))
    ql.mem.write(at + 2, count.to_bytes(2, "little"))


def _write_packet(ql: Any, disk: BiosDisk) -> None:
    at, count, memory, lba = _packet(ql)
    disk.write_sectors(lba, count, ql.mem.read(memory, count * disk.sector_size))
    ql.mem.write(at + 2, count.to_bytes(2, "little"))


_SERVICES: dict[int, _Service] = {
    0x02: _read_chs,
    0x03: _write_chs,
    0x08: _geometry,
    0x42: _read_packet,
    0x43: _write_packet,
}
