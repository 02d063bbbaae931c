"""An image for The Sleuth Kit: pytsk3's `Img_Info`, which `pytsk3.FS_Info` reads through."""

from __future__ import annotations

from typing import Any

from fdstash.adapters.peer import peer
from fdstash.image import Image

__all__ = ["ImageInfo"]

_pytsk3 = peer("pytsk3", "pytsk3")
_ImgInfo: Any = _pytsk3.Img_Info


class ImageInfo(_ImgInfo):  # type: ignore[misc]  # an untyped package
    """An image as an external `Img_Info`. The image stays the caller's, to reopen and to close.

    Any thread; a reopen of the image may run at any time. The Sleuth Kit only
    reads; it keeps what it has read, so a writer's changes may not show. What a call
    of pytsk3 meets in the image it raises as `RuntimeError`, with our text.
    """

    def __init__(self, image: Image) -> None:
        # What the base class does may already ask for the size.
        self._image = image
        super().__init__(url="", type=_pytsk3.TSK_IMG_TYPE_EXTERNAL)

    @property
    def image(self) -> Image:
        """The image behind it."""
        return self._image

    def read(self, offset: int, size: int) -> bytes:
        """`size` bytes from `offset` on, fewer only at the end."""
        return self._image.pread(size, offset)

    def get_size(self) -> int:
        """The size of the image, bytes."""
        return self._image.size
