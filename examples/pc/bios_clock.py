"""INT 1Ah: ticks since midnight, of a clock that runs while the guest waits for keys.

Time that depended on the host would make every run another one.
"""

from __future__ import annotations

from examples.pc.machine import Machine

__all__ = ["BiosClock"]


class BiosClock:
    """A tick is 55 ms. Who lets the guest wait advances `ticks`."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self.ticks = 0
        machine.services[0x1A] = self._serve

    def _serve(self) -> None:
        registers = self._machine.registers
        registers.carry = registers.ah != 0x00  # there is no calendar
        if registers.ah == 0x00:
            registers.cx, registers.dx = divmod(self.ticks, 1 << 16)
            registers.al = 0  # no midnight has passed
