"""What a format driver is, and what it sees of the world: files and an opener.

Sizes and offsets are bytes everywhere.
"""

from __future__ import annotations

import enum
import errno
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import ClassVar, NamedTuple, Protocol, Self, runtime_checkable

from fdstash.errors import ImageIOError, UnsupportedFormatError, os_error
from fdstash.formats.check import CheckReport, Repair

__all__ = [
    "MAX_OFFSET",
    "FileChild",
    "Format",
    "Kind",
    "Opener",
    "ReadAt",
    "Segment",
    "shown",
    "unsupported",
]

#: The largest offset or size that a file can have on Linux (`off_t`), bytes.
MAX_OFFSET = 2**63 - 1


class Kind(enum.IntEnum):
    """What a segment is made of; the values are those of the core's `fdstash_kind`."""

    DATA = 0  #: bytes of a file
    ZERO = 1  #: reads as zeros and has no bytes: cannot be written
    HOLE = 2  #: reads the backing image; cannot be written in place
    DENIED = 3  #: neither read nor written
    TABLE = 4  #: of segments: cluster tables say (`fdstash.formats.tables`)
    COMPRESSED = 5  #: data that only the driver can read
    UNKNOWN = 6  #: the table is not loaded yet
    BAD = 7  #: an entry that makes no sense
    COPY = 32  #: data that must not be written in place


class Segment(NamedTuple):
    """A run of guest bytes of one kind."""

    start: int  #: guest offset, bytes
    length: int  #: bytes, never 0
    kind: int  #: a `Kind`
    file: int = 0  #: data: `FileChild.index` of the file that holds the bytes; table: its number
    file_offset: int = 0  #: data: where in that file the run starts, bytes
    readonly: bool = False  #: must not be written, also in a writable image


@runtime_checkable
class FileChild(Protocol):
    """One file under an image, as a driver sees it.

    Today a host file; a protocol, so that it can be something on a server.
    Calls raise `ImageIOError`.
    """

    @property
    def index(self) -> int:
        """Position in the layer's table of files: what `Segment.file` refers to."""

    @property
    def name(self) -> str:
        """The file's name, as errors give it and a stash knows it."""

    @property
    def size(self) -> int:
        """Bytes now; of the device for a block device."""

    @property
    def writable(self) -> bool:
        """Whether `pwrite`, `truncate` can succeed."""

    @property
    def fixed_size(self) -> bool:
        """Whether `truncate` can never succeed, as on a block device."""

    def pread(self, n: int, offset: int, /) -> bytes:
        """At most `n` bytes; short only at the end of the file."""

    def pwrite(self, data: bytes, offset: int, /) -> int:
        """Writes all of `data` and returns its length."""

    def flush(self) -> None:
        """Makes completed writes durable."""

    def truncate(self, size: int, /) -> None:
        """Makes the file `size` bytes long; new bytes read as zeros."""


class Opener(Protocol):
    """How a driver opens the other files that its header names."""

    def open(self, text: str, /, *, writable: bool) -> FileChild:
        """The file that `text`, exactly as written in the header, names.

        The same file named twice, also in two spellings, or the file that holds
        the header itself, gives the same child. `writable` says whether the
        header lets this file be written at all; whether it is opened for writing
        depends on the mode of the image too. Of all names of one file a driver
        asks for the writable ones first.

        Raises `RefusedError` where the resolver denies the name, and
        `ImageIOError` (`FileNotFoundError` and so on) where the open fails.
        """


#: `read(file, n, offset)`: like `file.pread(n, offset)`, through another description.
ReadAt = Callable[[FileChild, int, int], bytes]


class Format(ABC):
    """One open image of a format: parsed headers, and the files that they name.

    A driver owns no descriptor and closes nothing: its files belong to the graph.
    Threads: the owner's, one at a time.
    """

    name: ClassVar[str]
    #: What `open` takes in `options`.
    option_names: ClassVar[Collection[str]] = ()

    size: int  #: of the guest's disk, bytes
    file: FileChild  #: the file that was opened and holds the header
    #: What the header calls the image that holes read from; None where there is none.
    backing_file: str | None = None
    #: Of that image; None: it is to be recognised.
    backing_format: str | None = None

    @classmethod
    @abstractmethod
    def recognise(cls, head: bytes, tail: bytes, size: int, filename: str) -> int:
        """How sure the driver is that a file is its own: 0 (not) to 100 (a magic number).

        `head` and `tail` are the first and last bytes of a file of `size` bytes,
        as many as `registry.HEAD_BYTES` and `registry.TAIL_BYTES` say.
        """

    @classmethod
    @abstractmethod
    def open(
        cls,
        file: FileChild,
        opener: Opener,
        *,
        writable: bool,
        options: Mapping[str, object],
    ) -> Self:
        """Parses `file` and opens what it names. Reads headers only, writes nothing.

        With `writable` what `can_write` checks is checked before another file is
        opened. Raises `FormatError`, `RefusedError`, `ImageIOError` and, for
        `options`, `OptionError`.
        """

    @property
    def files(self) -> Sequence[FileChild]:
        """Every file of this image, the one that holds the header first."""
        return (self.file,)

    @abstractmethod
    def segments(self) -> Sequence[Segment]:
        """Where the guest's bytes are: in order, covering [0, size) without a gap."""

    def accept_backing(self, backing: Format) -> None:  # noqa: B027 - most formats know no more
        """Raises `FormatError` unless that is the backing image that the header means.

        For an open, and again for a reopen, when `revalidate` has looked at both.
        """

    def can_write(self) -> None:  # noqa: B027 - a format that forbids nothing needs none
        """Raises `FormatError` when the header forbids writing to this image.

        It decides for `open` and for a reopen alike.
        """

    def before_first_write(self) -> None:  # noqa: B027 - most formats have nothing to mark
        """Marks the header as written to. Called once before the first guest write.

        The file must be writable. Nothing is flushed.
        """

    @abstractmethod
    def revalidate(self, read: ReadAt) -> None:
        """Reads the header again by `read` and raises `FormatError` when the layout differs.

        For a reopen: what was parsed must still be what the new description
        shows. What may change without changing the layout is taken over.
        """

    def check_lengths(self) -> None:  # noqa: B027 - a format of one file needs none
        """Raises `FormatError` when a file is shorter than the layout needs.

        The core sees to that where descriptions are exchanged; this is for files
        that somebody may have written to since they were opened.
        """

    def resize(self, size: int) -> None:
        """Makes the guest's disk `size` bytes long; then `segments` gives a new map.

        Raises `ImageIOError` with ENOTSUP where the format cannot.
        """
        raise unsupported(self.file.name, f"a {self.name} image cannot be resized to {size} bytes")

    def check(self, repair: Repair) -> CheckReport:
        """Looks at all metadata, and puts right what `repair` says.

        The image is not in use meanwhile; its files are writable where there is
        something to put right. Raises `UnsupportedFormatError` where a format has
        nothing to check.
        """
        raise UnsupportedFormatError(
            f"a {self.name} image has no metadata that could be checked", file=self.file.name
        )

    def info(self) -> dict[str, object]:
        """What there is to say of this image beyond its size, ready for JSON."""
        return {}

    def extract_files(self) -> Sequence[FileChild]:
        """The files whose descriptors `extract_fds` hands out: the file child alone."""
        return (self.file,)


def unsupported(filename: str, message: str) -> ImageIOError:
    """An `ImageIOError` with ENOTSUP: the bytes are right, the operation is not there."""
    return os_error(errno.ENOTSUP, filename, message)


def shown(text: str, limit: int = 60) -> str:
    """`text` from an image, quoted and cut so that it can stand in a message."""
    if len(text) > limit:
        return f"{text[:limit]!r}..."
    return repr(text)
