"""CP/M 2.2 with its disk on an image: `python cpm_drive.py IMAGE` starts it.

Needs the package cpm80, a CP/M machine on an emulated Z80. Its drives keep their
bytes in memory; this one reads and writes the file object that it is given, as
emulators of old machines do: seek to a sector, then read or write it.
"""

from __future__ import annotations

import sys
from typing import BinaryIO

import cpm80

import fdstash
from fdstash.adapters.disk_file import DiskFile


class FileDrive(cpm80.DiskDrive):
    """A drive of a CP/M machine on a binary file of `format.disk_size` bytes or more."""

    def __init__(self, file: BinaryIO, format: cpm80.DiskFormat) -> None:
        super().__init__(cpm80.DiskImage(format))
        self._file = file

    def read_sector(self) -> bytes:
        """The sector that the BIOS has chosen."""
        self._seek()
        return self._file.read(cpm80.SECTOR_SIZE)

    def write_sector(self, data: bytes | bytearray | memoryview) -> None:
        """Write it; the machine sees an error of the disk as CP/M's "Bad Sector"."""
        self._seek()
        try:
            self._file.write(data)
        except OSError as error:
            raise cpm80.Error(str(error)) from error

    def on_file_commit(self) -> None:
        """A file was closed, deleted or renamed: now is the time to make that durable."""
        self._file.flush()

    def _seek(self) -> None:
        track = self.current_track * self.format.sectors_per_track
        self._file.seek((track + self.current_sector) * cpm80.SECTOR_SIZE)


def main(path: str) -> None:
    """Run CP/M on the image until its input ends."""
    with fdstash.open(path, "r+") as image:
        drive = FileDrive(DiskFile(image), cpm80.DISK_FORMATS["default"])
        cpm80.Z80CPMMachine(drives=[drive]).run()


if __name__ == "__main__":
    main(sys.argv[1])
