"""A machine with a BIOS, a screen, a keyboard and one disk."""

from __future__ import annotations

from examples.pc.bios_clock import BiosClock
from examples.pc.bios_disk import FIRST_HARD_DISK, BiosDisk
from examples.pc.bios_keyboard import BiosKeyboard
from examples.pc.bios_memory import BiosMemory
from examples.pc.bios_video import BiosVideo
from examples.pc.machine import Machine
from fdstash.adapters import ImageBlockDevice

__all__ = ["Computer"]


class Computer:
    """Boots from `device`, and runs whenever it has something to do.

    `extensions=False`: its BIOS addresses disks by cylinder, head and sector only.
    """

    def __init__(self, device: ImageBlockDevice, *, extensions: bool = True) -> None:
        self.machine = Machine()
        self.video = BiosVideo(self.machine)
        self.disk = BiosDisk(self.machine, device, extensions=extensions)
        self._keyboard = BiosKeyboard(self.machine, BiosClock(self.machine))
        BiosMemory(self.machine)
        self.machine.load(device.read_block(0), FIRST_HARD_DISK)

    @property
    def screen(self) -> list[str]:
        """The lines on the screen."""
        return self.video.lines

    def run(self) -> None:
        """Until it waits for a key. Raises `MachineError` if it never does."""
        self.machine.run()

    def type(self, text: str) -> None:
        """Type `text`, and run until the next key is waited for."""
        self._keyboard.queue(text)
        self.run()
