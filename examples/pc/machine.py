"""The machine: a CPU, memory, and BIOS calls that are Python functions.

The guest may switch between real and protected mode as it likes. Calls of the
BIOS come from real mode, and only there does the machine pause: Unicorn can stop
anywhere, but an engine that was made for 16 bits resumes at CS * 16 + IP.
"""

from __future__ import annotations

from collections.abc import Callable

from unicorn import UC_ARCH_X86, UC_HOOK_INSN, UC_HOOK_INTR, UC_MODE_16, UC_PROT_READ, Uc, UcError
from unicorn.x86_const import UC_CPU_X86_486, UC_X86_INS_IN, UC_X86_INS_OUT

from examples.pc.registers import Registers

__all__ = ["Machine", "MachineError"]

BOOT_SECTOR = 0x7C00
# Where a PC has its ROM. GRUB, in search of a file system, follows the last word of
# it, by which coreboot says where its files are; all ones lead to none.
ROM, ROM_BYTES = 0xFFFF0000, 0x10000
NOWHERE = 0xF0000000  # no memory is there, so the guest cannot end a run by itself
INT_BYTES = 2
LONGEST_RUN = 60  # seconds; for guests whose few instructions are slow


class MachineError(Exception):
    """The guest did what this machine cannot do, or made no progress."""


class Machine:
    """A 486 with `memory_bytes` of memory, and nothing on its other buses.

    `services`: for each interrupt number, what the BIOS does. A 486 because it has
    no time stamp counter: the guest then takes the time from the BIOS, and every
    run is the same.
    """

    def __init__(self, memory_bytes: int = 16 << 20) -> None:
        self.memory_bytes = memory_bytes
        self.services: dict[int, Callable[[], None]] = {}
        self._uc = Uc(UC_ARCH_X86, UC_MODE_16)
        self._uc.ctl_set_cpu_model(UC_CPU_X86_486)
        self._uc.mem_map(0, memory_bytes)
        self._uc.mem_map(ROM, ROM_BYTES, UC_PROT_READ)
        self._uc.mem_write(ROM, b"\xff" * ROM_BYTES)
        self.registers = Registers(self._uc)
        self._uc.hook_add(UC_HOOK_INTR, self._interrupt)
        self._uc.hook_add(UC_HOOK_INSN, self._port_in, None, 1, 0, UC_X86_INS_IN)
        self._uc.hook_add(UC_HOOK_INSN, self._port_out, None, 1, 0, UC_X86_INS_OUT)
        self._next = BOOT_SECTOR
        self._paused = False
        self._call_again = False

    def read(self, address: int, size: int) -> bytes:
        """Guest memory, by physical address."""
        return bytes(self._uc.mem_read(address, size))

    def write(self, address: int, data: bytes) -> None:
        """Change guest memory; the CPU forgets what it has translated of it."""
        self._uc.mem_write(address, data)

    def load(self, boot_sector: bytes, drive: int) -> None:
        """What a BIOS does last: put the boot sector in its place, and say whence it is.

        The CPU must be in real mode, as it is at first.
        """
        registers = self.registers
        self.write(BOOT_SECTOR, boot_sector)
        registers.cs = registers.ds = registers.es = registers.ss = 0
        registers.sp = BOOT_SECTOR
        registers.dl = drive
        self._next = BOOT_SECTOR

    def pause(self, *, call_again: bool = False) -> None:
        """For a service: let `run` return. `call_again` makes the same call anew then."""
        self._paused = True
        self._call_again = call_again
        self._uc.emu_stop()

    def run(self, instructions: int = 400_000_000) -> None:
        """Run until a service pauses the machine.

        Raises `MachineError` when that has not happened after so many instructions,
        or `LONGEST_RUN`.
        """
        self._paused = False
        try:
            self._uc.emu_start(
                self._next, NOWHERE, timeout=LONGEST_RUN * 1_000_000, count=instructions
            )
        except UcError as error:
            raise MachineError(f"{error}: {self.registers}") from error
        if not self._paused:
            raise MachineError(
                f"halted, or not at rest after {instructions} instructions: {self.registers}"
            )
        back = INT_BYTES if self._call_again else 0
        self._next = self.registers.cs * 16 + self.registers.ip - back

    def _interrupt(self, uc: Uc, number: int, data: object) -> None:
        # Faults of the CPU arrive here too, but in this machine no guest survives one.
        service = self.services.get(number)
        if service is None:
            raise MachineError(f"interrupt {number:#x} has no service: {self.registers}")
        service()

    def _port_in(self, uc: Uc, port: int, size: int, data: object) -> int:
        return (1 << 8 * size) - 1  # what a bus without a device reads as

    def _port_out(self, uc: Uc, port: int, size: int, value: int, data: object) -> None:
        pass
