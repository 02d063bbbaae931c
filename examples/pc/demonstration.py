"""GRUB is asked for things that it must read or write, and its disk is reopened meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import fdstash
from examples.pc import hard_disk
from examples.pc.computer import Computer
from examples.pc.live_reopen import LiveReopen
from fdstash.adapters import ImageBlockDevice

__all__ = ["Demonstration", "Step"]

COMMAND_LINE = "c"  # the key that leaves GRUB's menu
MOVED = "moved"

# A command for GRUB, and what is done to the disk while the command is at work. What
# GRUB has read it forgets after two seconds without a read, so each reads anew.
SCRIPT: tuple[tuple[str, dict[str, str]], ...] = (
    ("ls (hd0)/boot/grub", {}),
    ("crc /boot/grub/grub.cfg", {"cache": "none"}),
    ("crc /boot/grub/i386-pc/partmap.lst", {"cache": "writeback"}),
    ("parttool (hd0,1) boot-", {"mode": "r"}),
    ("parttool (hd0,1) boot-", {"mode": "r+"}),
    ("crc /boot/grub/i386-pc/parttool.lst", {"path": MOVED}),
    ("parttool (hd0,1) boot+", {}),
)


@dataclass
class Step:
    """One command: what was changed meanwhile, and how many reads the BIOS served."""

    command: str
    change: dict[str, str]
    files: int = 0
    files_changed: int = 0
    routes: list[str] = field(default_factory=list)
    reads_before: int = 0  # since the machine was switched on
    reads_meanwhile: int = 0
    reads_after: int = 0


class Demonstration:
    """Runs in a folder, which it fills. `subformat` is VMDK's."""

    def __init__(self, folder: Path, subformat: str, *, extensions: bool = True) -> None:
        self._folder = folder
        path = folder / "here" / "disk.vmdk"
        path.parent.mkdir()
        hard_disk.make(path, subformat)
        self.image = fdstash.open(path, "r+")
        self.computer = Computer(ImageBlockDevice(self.image), extensions=extensions)

    def run(self, more: Iterable[str] = ()) -> Iterator[Step]:
        """Boot, go through the script, then type `more`."""
        self.computer.run()
        self.computer.type(COMMAND_LINE)
        for command, change in (*SCRIPT, *((each, {}) for each in more)):
            yield self._step(Step(command, change))

    def close(self) -> None:
        """Switch it off."""
        self.image.close()

    def _step(self, step: Step) -> Step:
        disk = self.computer.disk
        step.reads_before = disk.reads
        typed = step.command + "\n"
        if not step.change:
            self.computer.type(typed)
        else:
            with LiveReopen(disk, self._change(step.change)) as live:
                self.computer.type(typed)
            step.files = len(live.report.routes)
            step.files_changed = live.report.files_changed
            step.routes = sorted(set(live.report.routes.values()))
            step.reads_meanwhile = live.reads_meanwhile
        step.reads_after = disk.reads - step.reads_before - step.reads_meanwhile
        return step

    def _change(
        self, change: dict[str, str]
    ) -> Callable[[Callable[[], None]], fdstash.ReopenReport]:
        def reopen(prepare: Callable[[], None]) -> fdstash.ReopenReport:
            if "path" in change:
                folder = self._folder / change["path"]
                return hard_disk.move(self.image, folder, prepare=prepare)
            return self.image.reopen(
                mode=change.get("mode"), cache=change.get("cache"), prepare=prepare
            )

        return reopen
