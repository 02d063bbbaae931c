"""INT 16h: keys that were queued; a guest that finds none for long has paused the machine."""

from __future__ import annotations

from collections import deque

from examples.pc.bios_clock import BiosClock
from examples.pc.machine import Machine

__all__ = ["BiosKeyboard"]

ENTER = 0x1C0D
# In ticks: over five seconds. A boot loader that looks for a key between two
# steps of its work has found none so often only when it waits for one.
PATIENCE = 100


class BiosKeyboard:
    """`queue` types; `PATIENCE` looks without a key pause the machine."""

    def __init__(self, machine: Machine, clock: BiosClock) -> None:
        self._machine = machine
        self._clock = clock
        self._keys: deque[int] = deque()
        self._looks = 0
        machine.services[0x16] = self._serve

    def queue(self, text: str) -> None:
        """Type `text`; a newline is Enter. Scan codes are left out, as few guests look."""
        self._keys.extend(ENTER if c == "\n" else ord(c) for c in text)
        self._looks = 0

    def _serve(self) -> None:
        registers = self._machine.registers
        # 10h and 11h are the same calls for keyboards with more keys.
        if registers.ah in (0x00, 0x10):
            self._take()
        elif registers.ah in (0x01, 0x11):
            self._look()
        elif registers.ah in (0x02, 0x12):
            registers.al = 0  # no shift key is held

    def _take(self) -> None:
        if self._keys:
            self._machine.registers.ax = self._keys.popleft()
            self._looks = 0
        else:
            self._clock.ticks += PATIENCE
            self._machine.pause(call_again=True)

    def _look(self) -> None:
        self._machine.registers.zero = not self._keys
        if self._keys:
            self._machine.registers.ax = self._keys[0]
            return
        self._clock.ticks += 1
        self._looks += 1
        if self._looks >= PATIENCE:
            self._looks = 0
            self._machine.pause()
