"""An image as a drive of Qiling's PC: its `QlDisk`, and a machine that boots from it.

The source followed is Qiling 1.4: `qiling.os.disk`, `qiling.os.mapper` and the DOS
loader. Three things there keep a disk from being used, and are worked around here:
the mapper takes paths only and meets the number of a BIOS drive with `TypeError`,
before a boot sector can even be loaded; `QlDisk` counts all sectors of the disk as
one track; and the BIOS services lack what `fdstash.adapters.int13` says.
"""

from __future__ import annotations

import os
import tempfile
from typing import Any

from fdstash.adapters.block_device import ImageBlockDevice
from fdstash.adapters.disk_file import DiskFile
from fdstash.adapters.int13 import install
from fdstash.adapters.peer import peer
from fdstash.errors import OptionError
from fdstash.image import Image

__all__ = ["DriveMapper", "ImageDisk", "attach", "boot", "map_drive"]

_qiling = peer("qiling", "qiling")
_const = peer("qiling.const", "qiling")
_QlDisk: Any = peer("qiling.os.disk", "qiling").QlDisk
_QlFsMapper: Any = peer("qiling.os.mapper", "qiling").QlFsMapper

#: Where a BIOS loads a boot sector, and how long one is, bytes.
_BOOT_ADDRESS = 0x7C00
_BOOT_BYTES = 512


class ImageDisk(_QlDisk):  # type: ignore[misc]  # an untyped package
    """An image as a `QlDisk`: by sector number, by CHS, and as a file with a position.

    `drive`: the number that the BIOS knows it by, 0x80 for the first hard disk.
    `heads`, `sectors_per_track`, `sector_size` (bytes): the geometry, by default
    that of a translated IDE disk. `n_sectors` is of one track, as the BIOS counts.

    The image stays the caller's, to reopen and to close; `close` closes the file
    only. A reopen may run at any time, and one thread at a time uses the position.
    Errors are those of `fdstash.adapters.BlockDevice`.
    """

    def __init__(
        self,
        image: Image,
        drive: int = 0x80,
        *,
        heads: int = 16,
        sectors_per_track: int = 63,
        sector_size: int = 512,
    ) -> None:
        """Raises `OptionError` for a geometry that is not positive."""
        # The base class would open a path; what it needs beside that is set here,
        # the file first, because its __del__ asks for that.
        self._fp = DiskFile(image)
        self._device = ImageBlockDevice(image, sector_size, heads, sectors_per_track)
        self._host_path = image.name
        self._drive_path = drive
        self._n_heads = heads
        self._n_sectors = sectors_per_track
        self._sector_size = sector_size

    @property
    def image(self) -> Image:
        """The image behind it."""
        return self._device.image

    @property
    def filesize(self) -> int:
        """The size of the image now, bytes."""
        return self.image.size

    @property
    def n_cylinders(self) -> int:
        """How many cylinders it takes to hold every sector; the last may be cut short."""
        return self._device.cylinders

    def lba(self, cylinder: int, head: int, sector: int) -> int:
        """The number of the sector at that address; ENXIO where the geometry has none."""
        return self._device.lba(cylinder, head, sector)

    def read_sectors(self, lba: int, cnt: int) -> bytes:
        """`cnt` sectors from `lba` on; all of them must be there."""
        return self._device.read_blocks(lba, cnt)

    def write_sectors(self, lba: int, cnt: int, buffer: Any) -> int:
        """Write `cnt` sectors from `lba` on; what `buffer` has beyond them is left alone.

        Returns the bytes written. Raises `OptionError` for a buffer that is too short.
        """
        size = cnt * self._sector_size
        with memoryview(buffer) as view, view.cast("B") as every_byte:
            if size < 0 or len(every_byte) < size:
                raise OptionError(
                    f"{cnt} sectors of {self._sector_size} bytes, and {len(every_byte)} bytes"
                    " for them",
                    option="buffer",
                )
            self._device.write_blocks(lba, every_byte[:size])
        return size


class DriveMapper(_QlFsMapper):  # type: ignore[misc]  # an untyped package
    """Qiling's mapper of paths, which takes the number of a BIOS drive too."""

    def __contains__(self, vpath: Any) -> bool:
        return bool(super().__contains__(_drive_path(vpath)))

    def open(self, vpath: Any, mode: str) -> Any:
        """What is mapped there."""
        return super().open(_drive_path(vpath), mode)

    def add_mapping(self, vpath: Any, binding: Any, *, force: bool = False) -> None:
        """Map `binding` there; `KeyError` when something is, unless `force`."""
        super().add_mapping(_drive_path(vpath), binding, force=force)

    def remove_mapping(self, vpath: Any) -> None:
        """Undo that."""
        super().remove_mapping(_drive_path(vpath))


def _drive_path(vpath: Any) -> Any:
    return rf"\\.\BIOSDRIVE{vpath:02X}" if isinstance(vpath, int) else vpath


def map_drive(ql: Any, disk: ImageDisk) -> None:
    """Let `ql` find `disk` under its number, also by `ql.add_fs_mapper` from then on.

    A drive that was mapped under that number is replaced.
    """
    # Changed in place, since others may hold the mapper already.
    if not isinstance(ql.os.fs_mapper, DriveMapper):
        ql.os.fs_mapper.__class__ = DriveMapper
    ql.os.fs_mapper.add_mapping(disk.drive_path, disk, force=True)


def attach(ql: Any, disk: ImageDisk) -> None:
    """`map_drive`, and the services of INT 13h that read and write it, CHS included.

    `ql`: a `Qiling` of 8086 DOS, which is not running yet.
    """
    map_drive(ql, disk)
    install(ql)


def boot(disk: ImageDisk, rootfs: str | os.PathLike[str], **options: Any) -> Any:
    """A `Qiling` PC about to run the boot sector of `disk`, which is attached to it.

    `rootfs` and `options` are those of `Qiling`; `run` starts it. As a BIOS leaves
    them: the sector at 0000:7C00, DL the drive. The sector is read now, and need
    not bear a signature.
    """
    code = disk.image.pread(_BOOT_BYTES, 0)
    # The mode for boot sectors fails on the mapper's fault. A .COM program at the
    # address of a boot sector is the same to an 8086.
    place = {
        "start_cs": "0",
        "start_ip": hex(_BOOT_ADDRESS),
        "start_sp": hex(_BOOT_ADDRESS),
    }
    with tempfile.TemporaryDirectory(prefix="fdstash-boot-") as folder:
        program = os.path.join(folder, "boot.DOS_COM")
        with open(program, "wb") as file:
            file.write(code)
        ql = _qiling.Qiling(
            [program],
            os.fspath(rootfs),
            archtype=_const.QL_ARCH.A8086,
            ostype=_const.QL_OS.DOS,
            profile={"COM": place},
            **options,
        )
    ql.arch.regs.dx = disk.drive_path
    attach(ql, disk)
    return ql
