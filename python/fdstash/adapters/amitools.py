"""An image for amitools: the `BlockDevice` that its Amiga file systems and partitions use.

The source followed is `amitools.fs.blkdev` of amitools 0.8: `HDFBlockDevice` for a
file system, `RawBlockDevice` for a disk with an `amitools.fs.rdb.RDisk` on it.
Unlike those, a flush here reaches the storage.
"""

from __future__ import annotations

from typing import Any

from fdstash.adapters.block_device import ImageBlockDevice
from fdstash.adapters.peer import peer
from fdstash.errors import ClosedError, OptionError
from fdstash.image import Image

__all__ = ["AmigaDisk"]

_BlockDevice: Any = peer("amitools.fs.blkdev.BlockDevice", "amitools").BlockDevice
_DiskGeometry = peer("amitools.fs.blkdev.DiskGeometry", "amitools").DiskGeometry
_adf = peer("amitools.fs.blkdev.ADFBlockDevice", "amitools").ADFBlockDevice

_FLOPPY_SECTORS = {_adf.DD_SECS: 11, _adf.HD_SECS: 22}


class AmigaDisk(_BlockDevice):  # type: ignore[misc]  # an untyped package
    """An image as an amitools `BlockDevice`; open from the start.

    `geometry`: an amitools `DiskGeometry`; by default the one that amitools finds
    for an image of this size, so that either reads what the other wrote, and for a
    size that it knows none for, tracks of one block. `block_bytes`: of one block, a
    multiple of 512. `reserved` and `bootblocks`: blocks at the start of the file
    system, as in amitools.

    Any thread; a reopen of the image may run at any time. Errors are those of
    `fdstash.adapters.BlockDevice`: ENXIO for a block that is not there, EBADF for a
    write while the image is read-only, `OptionError` for sizes.
    """

    def __init__(
        self,
        image: Image,
        *,
        geometry: Any = None,
        block_bytes: int = 512,
        reserved: int = 2,
        bootblocks: int = 2,
    ) -> None:
        """Raises `OptionError` for blocks that amitools cannot use or a geometry too large."""
        if block_bytes <= 0 or block_bytes % 512:
            raise OptionError(
                f"block_bytes must be a multiple of 512, not {block_bytes}", option="block_bytes"
            )
        self._image = image
        self._geometry = geometry
        self._layout = {
            "block_bytes": block_bytes,
            "reserved": reserved,
            "bootblocks": bootblocks,
        }
        self._disk: ImageBlockDevice | None = None
        self.open()

    @property
    def image(self) -> Image:
        """The image behind it."""
        return self._image

    def create(self, **_args: Any) -> None:
        """As `open`: the image has its size already, and keeps its bytes."""
        self.open()

    def open(self) -> None:
        """Take size and geometry from the image; also after a `close`."""
        disk = ImageBlockDevice(self._image, self._layout["block_bytes"])
        found = self._geometry or _detect(disk)
        if found.get_num_blocks() > disk.num_blocks:
            raise OptionError(
                f"a geometry of {found.get_num_blocks()} blocks, and the image has"
                f" {disk.num_blocks}",
                option="geometry",
            )
        self._set_geometry(found.cyls, found.heads, found.secs, **self._layout)
        self._disk = disk

    def close(self) -> None:
        """Flush, and refuse requests from now on. The image stays open; twice is nothing."""
        if self._disk is None:
            return
        self._disk = None
        if not self._image.closed and self._image.mode == "r+":
            self._image.flush()

    def flush(self) -> None:
        """Make completed writes durable; nothing on an image that is read-only."""
        disk = self._opened()
        if self._image.mode == "r+":
            disk.flush()

    def read_block(self, blk_num: int, num_blks: int = 1) -> bytes:
        """`num_blks` blocks from `blk_num` on."""
        return self._opened().read_blocks(blk_num, num_blks)

    def write_block(self, blk_num: int, data: Any, num_blks: int = 1) -> None:
        """Write `num_blks` blocks from `blk_num` on; `data` must be as long as they are."""
        disk = self._opened()
        size = memoryview(data).nbytes
        if size != num_blks * disk.block_bytes:
            raise OptionError(
                f"{num_blks} blocks of {disk.block_bytes} bytes, and {size} bytes for them",
                option="data",
            )
        disk.write_blocks(blk_num, data)

    def _opened(self) -> ImageBlockDevice:
        if self._disk is None:
            raise ClosedError("the block device was closed")
        return self._disk


def _detect(disk: ImageBlockDevice) -> Any:
    """The geometry that `BlkDevFactory` would find for an image of this size."""
    blocks, size = disk.num_blocks, disk.block_bytes
    if size == 512 and blocks in _FLOPPY_SECTORS:
        return _DiskGeometry(80, 2, _FLOPPY_SECTORS[blocks])
    found = _DiskGeometry(block_bytes=size)
    if found.detect(blocks * size):
        return found
    return _DiskGeometry(blocks, 1, 1, size)
