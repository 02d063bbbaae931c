"""A disk of numbered blocks, as emulators address it: by number, or by CHS.

The names are those that Python emulators use: ``read_block``, ``write_block``,
``num_blocks`` and ``block_bytes`` as in amitools, runs of blocks into a buffer as
in MicroPython's ``readblocks``, cylinder, head and sector as in Qiling. Blocks are
numbered from 0, sectors of a track from 1.
"""

from __future__ import annotations

import errno
from typing import Any, Protocol, runtime_checkable

from fdstash.errors import ImageIOError, OptionError
from fdstash.image import Image

__all__ = ["BlockDevice", "ImageBlockDevice"]


@runtime_checkable
class BlockDevice(Protocol):
    """What an emulator needs of a disk; `isinstance` checks that the members are there.

    An address without a block raises `OSError` with ENXIO, data that is not whole
    blocks `ValueError`, and nothing was read or written then. What the storage
    says (EBADF on a disk that is read-only, EIO, ...) is an `OSError` too.
    """

    @property
    def num_blocks(self) -> int:
        """How many whole blocks there are now."""

    @property
    def block_bytes(self) -> int:
        """Bytes in a block; does not change."""

    def read_block(self, n: int, /) -> bytes:
        """The block `n`, always `block_bytes` long."""

    def write_block(self, n: int, data: Any, /) -> None:
        """Write the block `n`; `data` is any buffer of `block_bytes`."""

    def read_blocks_into(self, start: int, buffer: Any, /) -> int:
        """Fill a writable buffer of whole blocks from block `start` on; how many blocks.

        Fewer than the buffer holds only where the disk ends.
        """

    def flush(self) -> None:
        """Make completed writes durable."""

    def read_chs(self, cylinder: int, head: int, sector: int, /, count: int = 1) -> bytes:
        """`count` blocks from that address on."""

    def write_chs(self, cylinder: int, head: int, sector: int, data: Any, /) -> None:
        """Write one block or several, from that address on."""


class ImageBlockDevice:
    """An image as a `BlockDevice`. The image stays the caller's, to reopen and to close.

    `block_bytes`: of one block. `heads` and `sectors_per_track`: the geometry for
    CHS addresses; by default that of a translated IDE disk. Bytes behind the last
    whole block belong to no block. Any thread; a reopen of the image may run at any
    time. Errors are those of `BlockDevice`: `ImageIOError` for addresses and
    storage, `OptionError` (a `ValueError`) for sizes, `ClosedError`.
    """

    def __init__(
        self,
        image: Image,
        block_bytes: int = 512,
        heads: int = 16,
        sectors_per_track: int = 63,
    ) -> None:
        """Raises `OptionError` for a size or geometry that is not positive."""
        for name, value in (
            ("block_bytes", block_bytes),
            ("heads", heads),
            ("sectors_per_track", sectors_per_track),
        ):
            if value <= 0:
                raise OptionError(f"{name} must be positive, not {value}", option=name)
        self._image = image
        self._block_bytes = block_bytes
        self._heads = heads
        self._sectors_per_track = sectors_per_track

    @property
    def image(self) -> Image:
        """The image behind it."""
        return self._image

    @property
    def num_blocks(self) -> int:
        """Whole blocks in the image, as large as it is now."""
        return self._image.size // self._block_bytes

    @property
    def block_bytes(self) -> int:
        """Bytes in a block."""
        return self._block_bytes

    @property
    def heads(self) -> int:
        """Tracks in a cylinder."""
        return self._heads

    @property
    def sectors_per_track(self) -> int:
        """Blocks in a track."""
        return self._sectors_per_track

    @property
    def cylinders(self) -> int:
        """How many cylinders it takes to hold every block; the last may be cut short."""
        return -(-self.num_blocks // (self._heads * self._sectors_per_track))

    def read_block(self, n: int, /) -> bytes:
        """The block `n`."""
        return self.read_blocks(n, 1)

    def write_block(self, n: int, data: Any, /) -> None:
        """Write the block `n`; `data` must be `block_bytes` long."""
        size = memoryview(data).nbytes
        if size != self._block_bytes:
            raise OptionError(
                f"a block has {self._block_bytes} bytes, and not {size}", option="data"
            )
        self.write_blocks(n, data)

    def read_blocks(self, start: int, count: int, /) -> bytes:
        """`count` blocks from block `start` on; all of them must be there."""
        if count < 0:
            raise OptionError(f"count must not be negative, as {count} is", option="count")
        self._check(start, count)
        size = count * self._block_bytes
        data = self._image.pread(size, start * self._block_bytes)
        if len(data) != size:  # resized meanwhile
            self._check(start, count)
        return data

    def write_blocks(self, start: int, data: Any, /) -> None:
        """Write whole blocks from block `start` on; all of them must be there."""
        self._check(start, self._whole_blocks(memoryview(data).nbytes, "data"))
        self._image.pwrite(data, start * self._block_bytes)

    def read_blocks_into(self, start: int, buffer: Any, /) -> int:
        """Fill `buffer` from block `start` on; the blocks read, fewer only at the end."""
        view = memoryview(buffer)
        wanted = self._whole_blocks(view.nbytes, "buffer")
        self._check(start, min(1, wanted))
        count = min(wanted, self.num_blocks - start)
        if count <= 0:
            return 0
        with view, view.cast("B") as every_byte:
            got = self._image.preadv(
                [every_byte[: count * self._block_bytes]], start * self._block_bytes
            )
        return got // self._block_bytes

    def flush(self) -> None:
        """Make completed writes durable."""
        self._image.flush()

    def lba(self, cylinder: int, head: int, sector: int) -> int:
        """The number of the block at that address.

        Raises `ImageIOError` (ENXIO) for a head or a sector that no track has.
        """
        if cylinder < 0 or not 0 <= head < self._heads:
            raise self._nothing_at(f"cylinder {cylinder}, head {head}")
        if not 1 <= sector <= self._sectors_per_track:
            raise self._nothing_at(f"sector {sector} (1 to {self._sectors_per_track})")
        return (cylinder * self._heads + head) * self._sectors_per_track + sector - 1

    def read_chs(self, cylinder: int, head: int, sector: int, /, count: int = 1) -> bytes:
        """`count` blocks from that address on, across tracks as `lba` counts."""
        return self.read_blocks(self.lba(cylinder, head, sector), count)

    def write_chs(self, cylinder: int, head: int, sector: int, data: Any, /) -> None:
        """Write whole blocks from that address on, across tracks as `lba` counts."""
        self.write_blocks(self.lba(cylinder, head, sector), data)

    def __repr__(self) -> str:
        return f"<ImageBlockDevice of {self._image!r}, {self._block_bytes} bytes a block>"

    def _whole_blocks(self, size: int, what: str) -> int:
        count, rest = divmod(size, self._block_bytes)
        if rest:
            raise OptionError(
                f"{what} must be whole blocks of {self._block_bytes} bytes, and {size} are not",
                option=what,
            )
        return count

    def _check(self, start: int, count: int) -> None:
        if start >= 0 and start + count <= self.num_blocks:
            return
        blocks = f"block {start}" if count <= 1 else f"blocks {start} to {start + count - 1}"
        raise self._nothing_at(blocks)

    def _nothing_at(self, where: str) -> ImageIOError:
        rest = self._image.size % self._block_bytes
        behind = f" and {rest} bytes that are no whole block" if rest else ""
        return ImageIOError(
            errno.ENXIO,
            f"there is no {where}: the disk has {self.num_blocks} blocks of"
            f" {self._block_bytes} bytes{behind}",
            self._image.name,
        )
