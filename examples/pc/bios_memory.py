"""INT 11h, 12h and 15h: what the machine is made of, and how much memory it has."""

from __future__ import annotations

import struct

from examples.pc.machine import Machine

__all__ = ["BiosMemory"]

KIB = 1 << 10
LOW_END = 639 * KIB  # below the BIOS's own data
HIGH_START = 1 << 20
USABLE, RESERVED = 1, 2
MAP_SIGNATURE = int.from_bytes(b"SMAP", "big")
MAP_ENTRY = struct.Struct("<QQI")
COPROCESSOR_AND_TEXT = 0x0022
NOT_SUPPORTED = 0x86


class BiosMemory:
    """Memory without a gap from 1 MiB on; line A20 is always open."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        end = machine.memory_bytes
        self._map = (
            (0, LOW_END, USABLE),
            (LOW_END, 640 * KIB - LOW_END, RESERVED),
            (0xF0000, 64 * KIB, RESERVED),
            (HIGH_START, end - HIGH_START, USABLE),
        )
        machine.services[0x11] = self._equipment
        machine.services[0x12] = self._low_memory
        machine.services[0x15] = self._system

    def _equipment(self) -> None:
        self._machine.registers.ax = COPROCESSOR_AND_TEXT

    def _low_memory(self) -> None:
        self._machine.registers.ax = LOW_END // KIB

    def _system(self) -> None:
        registers = self._machine.registers
        high = (self._machine.memory_bytes - HIGH_START) // KIB
        if registers.ax == 0xE820:
            self._map_entry()
            return
        registers.carry = False
        if registers.ax == 0xE801:
            # In KiB up to 16 MiB, and in 64 KiB above.
            registers.ax = registers.cx = min(high, 15 * KIB)
            registers.bx = registers.dx = max(0, high - 15 * KIB) // 64
        elif registers.ah == 0x88:
            registers.ax = min(high, 0xFFFF)
        elif registers.ax == 0x2402:
            registers.ax = 0x0001  # A20 is open
        elif registers.ax == 0x2401:
            registers.ah = 0  # opened
        else:
            registers.ah = NOT_SUPPORTED
            registers.carry = True

    def _map_entry(self) -> None:
        """EBX counts the entries; 0 is both the first and what follows the last."""
        registers = self._machine.registers
        number = registers.ebx
        registers.carry = number >= len(self._map) or registers.edx != MAP_SIGNATURE
        if registers.carry:
            return
        entry = MAP_ENTRY.pack(*self._map[number])
        self._machine.write(registers.es * 16 + registers.di, entry)
        registers.eax = MAP_SIGNATURE
        registers.ecx = MAP_ENTRY.size
        registers.ebx = (number + 1) % len(self._map)
