"""Grains as zlib streams (RFC 1950), of which none may unpack to more than a grain."""

from __future__ import annotations

import zlib

from fdstash.errors import FormatError

__all__ = ["deflate", "inflate", "max_compressed_bytes"]


def max_compressed_bytes(grain_bytes: int) -> int:
    """The most bytes that a compressed grain may take in the file.

    Data that do not compress become longer, by less than a thousandth and 13
    bytes. QEMU reads no more than two grains with the marker; nor do we.
    """
    return 2 * grain_bytes - 12


def deflate(data: bytes, level: int = 6) -> bytes:
    """`data` compressed; `level` is zlib's, 0 (none) to 9, or -1 for its own choice."""
    return zlib.compress(data, level)


def inflate(
    data: bytes | memoryview,
    grain_bytes: int,
    length: int,
    *,
    file: str,
    offset: int,
    trailing: bool = False,
) -> bytes:
    """The first `length` bytes of the grain that `data`, one zlib stream, unpacks to.

    The stream must hold at least `length` bytes, the part of the grain that is
    on the disk, and at most `grain_bytes`. No more than that is ever unpacked.
    `trailing` allows for bytes after the end of the stream. `file` and `offset`
    say for errors where `data` is; raises `FormatError`.
    """
    unpacker = zlib.decompressobj()
    try:
        found = unpacker.decompress(data, grain_bytes)
        # The end of a stream that is just full is not seen without asking for more.
        excess = b"" if unpacker.eof else unpacker.decompress(unpacker.unconsumed_tail, 1)
    except zlib.error as error:
        raise FormatError(
            f"the compressed grain is damaged ({error}); copy the file again",
            file=file,
            offset=offset,
            field="grain data",
        ) from error
    message = None
    if excess:
        message = f"the grain unpacks to more than the {grain_bytes} bytes of a grain"
    elif not unpacker.eof:
        message = f"the compressed grain is cut off after {len(data)} bytes"
    elif unpacker.unused_data and not trailing:
        message = f"{len(unpacker.unused_data)} bytes follow the end of the compressed grain"
    elif len(found) < length:
        message = f"the grain unpacks to {len(found)} bytes, and it has {length}"
    if message is not None:
        raise FormatError(
            f"{message}; copy the file again", file=file, offset=offset, field="grain data"
        )
    return found[:length]
