"""A file of grains: what the disk asks of each kind of sparse extent."""

from __future__ import annotations

import errno
from abc import ABC, abstractmethod
from collections.abc import Mapping

from fdstash.errors import FormatError, os_error
from fdstash.formats.base import FileChild, ReadAt
from fdstash.formats.tables import Entry, Run, Table

__all__ = ["GrainFile"]


class GrainFile(ABC):
    """One sparse extent. Owns no descriptor. Threads: one at a time.

    Numbers of pages, entries and grains count from the start of the extent.
    """

    file: FileChild
    capacity: int  #: guest bytes
    grain_bytes: int
    page_entries: int  #: entries of a grain table
    has_zero_entries: bool = False
    #: Whether grains can be added and changed.
    writable: bool = False

    @property
    def index_bytes(self) -> int:
        """Memory that is taken at an open: a reference for each table, there or not."""
        return 8 * -(-self.capacity // (self.grain_bytes * self.page_entries))

    @abstractmethod
    def entry(self) -> Entry:
        """What an entry of a grain table means."""

    def table(self, start: int, *, readonly: bool) -> Table:
        """The extent as a table at guest offset `start`, bytes."""
        return Table(
            start,
            self.capacity,
            self.grain_bytes,
            self.page_entries,
            self.file.index,
            self.entry(),
            zero_entries=self.has_zero_entries,
            readonly=readonly or not self.writable,
        )

    @abstractmethod
    def load(self, page: int) -> bytes | None:
        """Grain table `page` as it is in the file; None where there is none."""

    def decompress(self, offset: int) -> bytes:
        """The grain whose compressed data, or its marker, is at `offset` of the file."""
        raise FormatError("no grain here is compressed", file=self.file.name, offset=offset)

    @abstractmethod
    def revalidate(self, read: ReadAt) -> None:
        """Read header and directories again; `FormatError` for those of another disk."""

    def info(self) -> Mapping[str, object]:
        """What `qemu-img info` says of the extent."""
        return {"cluster-size": self.grain_bytes}

    # -- of a writable one

    def allocate(self, grains: int) -> Run:
        """Room for at least one and at most `grains` grains."""
        raise os_error(errno.EROFS, self.file.name, f"{grains} new grains: none can be added here")

    def free(self, offset: int, grains: int) -> None:  # noqa: B027 - what is read takes nothing back
        """Grains for the next allocations."""

    def encode(self, kind: int, offset: int) -> int:
        """The entry for a grain."""
        raise NotImplementedError

    def store(self, page: int, first: int, raw: bytes) -> None:
        """Write entries of a table, each copy alike; tables that are made wait for `link`."""
        raise NotImplementedError

    @property
    def unlinked(self) -> bool:
        """Whether tables were made that no directory refers to yet."""
        return False

    def link(self) -> None:  # noqa: B027 - nor makes tables
        """Let directories refer to the tables that were made."""
