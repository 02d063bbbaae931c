"""INT 13h: one hard disk, by cylinder, head and sector and by block number."""

from __future__ import annotations

import errno
import struct
from collections import Counter
from collections.abc import Callable

from examples.pc.machine import Machine
from fdstash.adapters import ImageBlockDevice

__all__ = ["FIRST_HARD_DISK", "BiosDisk"]

FIRST_HARD_DISK = 0x80

OK = 0x00
INVALID = 0x01
WRITE_PROTECTED = 0x03
NOT_FOUND = 0x04
CONTROLLER_FAILED = 0x20
STATUS_OF = {
    errno.EBADF: WRITE_PROTECTED,  # an image that is open read-only
    errno.EROFS: WRITE_PROTECTED,  # an extent that its header keeps from being written
    errno.ENXIO: NOT_FOUND,
}

# Version 2.1 of the extensions, of which the packet calls are there.
EXTENSIONS_VERSION, EXTENSIONS_PACKETS = 0x21, 0x01
HARD_DISK = 3  # as a kind of drive
PACKET = struct.Struct("<BxHHHQ")
PARAMETERS = struct.Struct("<HHIIIQH")
PARAMETERS_HAVE_GEOMETRY = 0x02


class BiosDisk:
    """The first hard disk.

    `extensions=False` is a BIOS of old, with CHS alone. `before_read` is called
    before each read is served, `statuses` counts what was answered, by function
    and status.
    """

    def __init__(
        self, machine: Machine, device: ImageBlockDevice, *, extensions: bool = True
    ) -> None:
        self._machine = machine
        self._device = device
        self._last_status = OK
        self.before_read: Callable[[], None] | None = None
        self.statuses: Counter[tuple[int, int]] = Counter()
        self._functions: dict[int, Callable[[], int]] = {
            0x00: self._reset,
            0x02: self._read_chs,
            0x03: self._write_chs,
            0x08: self._geometry,
        }
        # These answer in AH, where the others say how it went.
        self._questions: dict[int, Callable[[], int]] = {0x15: self._kind_of_drive}
        if extensions:
            self._questions[0x41] = self._version_of_extensions
            self._functions |= {
                0x42: self._read_packet,
                0x43: self._write_packet,
                0x48: self._parameters,
            }
        machine.services[0x13] = self._serve

    @property
    def reads(self) -> int:
        """How many reads were served without an error."""
        return self.statuses[0x02, OK] + self.statuses[0x42, OK]

    @property
    def writes(self) -> int:
        """How many writes were served without an error."""
        return self.statuses[0x03, OK] + self.statuses[0x43, OK]

    def _serve(self) -> None:
        registers = self._machine.registers
        function = registers.ah
        question = self._questions.get(function)
        if registers.dl != FIRST_HARD_DISK:
            status = INVALID
        elif question is not None:
            registers.ah = question()
            registers.carry = False
            return
        elif function == 0x01:
            status = self._last_status
        else:
            status = self._attempt(function)
        self.statuses[function, status] += 1
        self._last_status = status
        registers.ah = status
        registers.carry = status != OK

    def _attempt(self, function: int) -> int:
        try:
            return self._functions.get(function, _not_there)()
        except OSError as error:
            return STATUS_OF.get(error.errno or 0, CONTROLLER_FAILED)

    def _reset(self) -> int:
        self._device.flush()
        return OK

    def _read_chs(self) -> int:
        registers = self._machine.registers
        return self._read(self._lba(), registers.al, registers.es * 16 + registers.bx)

    def _write_chs(self) -> int:
        registers = self._machine.registers
        return self._write(self._lba(), registers.al, registers.es * 16 + registers.bx)

    def _lba(self) -> int:
        registers = self._machine.registers
        cylinder = registers.ch | (registers.cl & 0xC0) << 2
        return self._device.lba(cylinder, registers.dh, registers.cl & 0x3F)

    def _geometry(self) -> int:
        registers = self._machine.registers
        last = min(self._device.cylinders, 1024) - 1  # a cylinder has ten bits here
        registers.ch = last & 0xFF
        registers.cl = self._device.sectors_per_track | last >> 2 & 0xC0
        registers.dh = self._device.heads - 1
        registers.dl = 1  # drives
        return OK

    def _kind_of_drive(self) -> int:
        registers = self._machine.registers
        registers.cx, registers.dx = divmod(self._device.num_blocks, 1 << 16)
        return HARD_DISK

    def _version_of_extensions(self) -> int:
        registers = self._machine.registers
        registers.bx = 0xAA55
        registers.cx = EXTENSIONS_PACKETS
        return EXTENSIONS_VERSION

    def _read_packet(self) -> int:
        return self._with_packet(self._read)

    def _write_packet(self) -> int:
        return self._with_packet(self._write)

    def _with_packet(self, transfer: Callable[[int, int, int], int]) -> int:
        registers = self._machine.registers
        where = registers.ds * 16 + registers.si
        size, count, offset, segment, block = PACKET.unpack(self._machine.read(where, PACKET.size))
        if size < PACKET.size:
            return INVALID
        done = 0
        try:
            status = transfer(block, count, segment * 16 + offset)
            done = count
        finally:
            self._machine.write(where + 2, struct.pack("<H", done))
        return status

    def _parameters(self) -> int:
        registers, device = self._machine.registers, self._device
        where = registers.ds * 16 + registers.si
        (room,) = struct.unpack("<H", self._machine.read(where, 2))
        if room < PARAMETERS.size:
            return INVALID
        table = PARAMETERS.pack(
            PARAMETERS.size,
            PARAMETERS_HAVE_GEOMETRY,
            device.cylinders,
            device.heads,
            device.sectors_per_track,
            device.num_blocks,
            device.block_bytes,
        )
        self._machine.write(where, table)
        return OK

    def _read(self, block: int, count: int, address: int) -> int:
        if self.before_read is not None:
            self.before_read()
        self._machine.write(address, self._device.read_blocks(block, count))
        return OK

    def _write(self, block: int, count: int, address: int) -> int:
        data = self._machine.read(address, count * self._device.block_bytes)
        self._device.write_blocks(block, data)
        return OK


def _not_there() -> int:
    return INVALID
