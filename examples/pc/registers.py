"""The registers of an x86 CPU in Unicorn, as attributes."""

from __future__ import annotations

from unicorn import Uc
from unicorn import x86_const as x86

__all__ = ["Registers"]

CARRY = 1 << 0
ZERO = 1 << 6


class Register:
    """One register: its name, lower case, is the attribute's."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._number: int = getattr(x86, f"UC_X86_REG_{name.upper()}")

    def __get__(self, registers: Registers, owner: type) -> int:
        return int(registers.uc.reg_read(self._number))

    def __set__(self, registers: Registers, value: int) -> None:
        registers.uc.reg_write(self._number, value)


class Flag:
    """One bit of EFLAGS, by which BIOS calls answer."""

    def __init__(self, mask: int) -> None:
        self._mask = mask

    def __get__(self, registers: Registers, owner: type) -> bool:
        return bool(registers.eflags & self._mask)

    def __set__(self, registers: Registers, value: bool) -> None:
        rest = registers.eflags & ~self._mask
        registers.eflags = rest | (self._mask if value else 0)


class Registers:
    """What a BIOS needs of the CPU: `registers.ax = 1`."""

    eax, ebx, ecx, edx = Register(), Register(), Register(), Register()
    ax, bx, cx, dx = Register(), Register(), Register(), Register()
    ah, al, bh, bl = Register(), Register(), Register(), Register()
    ch, cl, dh, dl = Register(), Register(), Register(), Register()
    si, di, sp, ip = Register(), Register(), Register(), Register()
    cs, ds, es, ss = Register(), Register(), Register(), Register()
    eip, eflags, cr0 = Register(), Register(), Register()
    carry, zero = Flag(CARRY), Flag(ZERO)

    def __init__(self, uc: Uc) -> None:
        self.uc = uc

    def __str__(self) -> str:
        names = ("eax", "ebx", "ecx", "edx", "cs", "eip", "cr0")
        return " ".join(f"{name}={getattr(self, name):x}" for name in names)
