"""The exports of a server, and who is connected to them."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from fdstash.errors import ClosedError, Error, ImageIOError, OptionError
from fdstash.export.handshake import LONGEST_NAME, Described
from fdstash.export.protocol import Flag

if TYPE_CHECKING:
    from fdstash.export.connection import Connection
    from fdstash.image import Image

__all__ = ["LARGEST", "Export", "ExportInfo", "Exports"]

#: Bytes of one read or write.
LARGEST = 32 << 20
#: Bytes of a request that costs no more than it must.
_PREFERRED = 4096
_ANY = Flag.HAS_FLAGS | Flag.SEND_FLUSH | Flag.CAN_MULTI_CONN | Flag.SEND_CACHE
_WRITABLE = Flag.SEND_FUA | Flag.SEND_TRIM | Flag.SEND_WRITE_ZEROES | Flag.SEND_FAST_ZERO


class ExportInfo(NamedTuple):
    """What `NbdServer.exports` tells of an export."""

    id: str
    name: str
    description: str
    writable: bool
    connections: int  #: clients past the handshake
    shutting_down: bool  #: it takes no more of them


class Export:
    """An image under a name. Of the server's lock, but for what never changes."""

    def __init__(
        self,
        export_id: str,
        image: Image,
        *,
        name: str,
        description: str,
        writable: bool,
        allocation: bool,
    ) -> None:
        """Raises `OptionError`, `ImageIOError` (EROFS), `ClosedError`."""
        for option, text in (("name", name), ("description", description)):
            if len(text.encode()) > LONGEST_NAME or "\0" in text:
                raise OptionError(
                    f"{option} has at most {LONGEST_NAME} bytes, no NUL", option=option
                )
        if image.closed:
            raise ClosedError("the image is closed")
        if writable and image.mode != "r+":
            raise ImageIOError(errno.EROFS, "a writable export of an image that is not", export_id)
        self.id = export_id
        self.image = image
        self.name = name
        self.description = description
        self.writable = writable
        self.allocation = allocation
        self.connections: set[Connection] = set()
        self.shutting_down = False

    def info(self) -> ExportInfo:
        """As it is now."""
        return ExportInfo(
            self.id,
            self.name,
            self.description,
            self.writable,
            len(self.connections),
            self.shutting_down,
        )

    def describe(self) -> Described:
        """For a client that comes now. Raises `ClosedError`."""
        image = self.image
        size = image.size
        writable = self.writable and image.mode == "r+"
        # Any request works; a client that can do no part of a block must reach the last byte.
        minimum = image.limits.offset_alignment
        while size % minimum:
            minimum //= 2
        return Described(
            self.name,
            self.description,
            size,
            _ANY | (_WRITABLE if writable else Flag.READ_ONLY),
            minimum,
            max(minimum, _PREFERRED),
            LARGEST,
            self.allocation,
        )

    def flush(self) -> int:
        """Make durable what clients have written: 0, or the errno."""
        if not self.writable:
            return 0
        try:
            self.image.flush()
        except ClosedError:
            return 0  # its end has flushed it
        except Error as error:
            return getattr(error, "errno", None) or errno.EIO
        return 0


class Exports:
    """By id and by name; of the server's lock."""

    def __init__(self) -> None:
        self._by_id: dict[str, Export] = {}

    def add(self, export: Export) -> None:
        """Raises `ImageIOError`, EEXIST."""
        if export.id in self._by_id:
            raise ImageIOError(errno.EEXIST, "there is an export of this id", export.id)
        if self._named(export.name) is not None:
            raise ImageIOError(errno.EEXIST, "there is an export of this name", export.name)
        self._by_id[export.id] = export

    def get(self, export_id: str) -> Export:
        """Raises `ImageIOError`, ENOENT."""
        export = self._by_id.get(export_id)
        if export is None:
            raise ImageIOError(errno.ENOENT, "there is no such export", export_id)
        return export

    def drop(self, export: Export) -> bool:
        """Forget it; whether it was there."""
        return self._by_id.pop(export.id, None) is not None

    def all(self) -> list[Export]:
        """In the order in which they were added."""
        return list(self._by_id.values())

    def _named(self, name: str) -> Export | None:
        return next((each for each in self._by_id.values() if each.name == name), None)

    # -- as a handshake sees them

    def open(self, name: str) -> Export | None:
        """The export of that name, unless it takes no more clients."""
        export = self._named(name)
        return None if export is None or export.shutting_down else export

    def names(self) -> Mapping[str, str]:
        """Names of those that take clients, and their descriptions."""
        return {each.name: each.description for each in self.all() if not each.shutting_down}
