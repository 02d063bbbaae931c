"""An image for dissect: the `AlignedStream` that its file systems, volumes and containers read."""

from __future__ import annotations

from typing import Any

from fdstash.adapters.peer import peer
from fdstash.image import Image

__all__ = ["ImageStream"]

_stream = peer("dissect.util.stream", "dissect.util")
_AlignedStream: Any = _stream.AlignedStream


class ImageStream(_AlignedStream):  # type: ignore[misc]  # an untyped package
    """An image as an `AlignedStream`. The image stays the caller's, to reopen and to close.

    `align`: bytes that every request is a multiple of, and that are kept of the
    last one; dissect's own by default. `size` is the image's when the stream was
    made. One thread at a time uses the position; a reopen of the image may run at
    any time. What a writer changes in the kept bytes shows once others were read.
    Errors are those of `Image.pread`. The source followed is dissect.util 3.24.
    """

    def __init__(self, image: Image, align: int | None = None) -> None:
        super().__init__(image.size, _stream.STREAM_BUFFER_SIZE if align is None else align)
        self._image = image

    @property
    def image(self) -> Image:
        """The image behind it."""
        return self._image

    def _read(self, offset: int, length: int) -> bytes:
        return self._image.pread(length, offset)
