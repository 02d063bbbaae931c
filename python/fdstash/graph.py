"""The files of an open image, what their format says of them, and their locks.

`Graph.open` consults the stash before the host file system. A graph is a whole:
a reopen that changes the path opens another graph beside it and switches.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from fdstash import opening
from fdstash.clusters import ClusterMap
from fdstash.datapath import Layer
from fdstash.errors import FormatError
from fdstash.file_opener import FileOpener, Source, open_flags
from fdstash.formats import registry
from fdstash.formats.base import Format
from fdstash.formats.tables import TableFormat
from fdstash.hostfile import HostFile
from fdstash.locking import LockSet
from fdstash.stash import FDStash
from fdstash.swap import Swap

__all__ = ["Graph", "Map", "check_writable_format", "probe"]


class Map(NamedTuple):
    """What the data path looks guest offsets up in."""

    layer: Layer
    clusters: ClusterMap | None  #: of a format of cluster tables


class Graph:
    """One image's files, format, layer and locks. Owner: one thread at a time."""

    def __init__(
        self,
        source: Source,
        files: list[HostFile],
        locks: LockSet,
        *,
        writable: bool,
        direct: bool,
    ) -> None:
        self.source = source
        self.writable = writable
        self.direct = direct
        self.files = files
        self.locks = locks
        self.format: Format
        self.layer: Layer
        self.clusters: ClusterMap | None = None  #: of a format of cluster tables
        self._swap: Swap | None = None

    @classmethod
    def open(
        cls,
        source: Source,
        *,
        writable: bool,
        direct: bool,
        stash: FDStash | None = None,
        beside: Graph | None = None,
    ) -> Graph:
        """Open everything, or nothing.

        `beside`: another graph of the same image, whose lock descriptions are
        shared where the inode is the same.
        """
        opener = FileOpener(
            source,
            writable=writable,
            direct=direct,
            stash=stash,
            others=beside.locks if beside else None,
        )
        graph = cls(source, opener.files, opener.locks, writable=writable, direct=direct)
        try:
            file = opener.open_first()
            graph.format = _open_format(file, opener, source, writable=writable)
            graph.layer, graph.clusters = graph.new_map()
        except BaseException:
            graph.close()
            raise
        finally:
            opener.close()
        # For a reopen: a description for each file, or slot, lock and another
        # graph beside this one; see the design of the reopen.
        opening.reserve(file.fd, 4 * len(graph.files) + 8)
        return graph

    @property
    def path(self) -> str | None:
        """Where the image was opened, None when it came as a descriptor."""
        return self.files[0].path

    @property
    def flags(self) -> int:
        """What the files are opened with."""
        return open_flags(writable=self.writable, direct=self.direct)

    @property
    def swap(self) -> Swap:
        """The swap for these files, made once: its allocations are not a reopen's."""
        if self._swap is None:
            self._swap = Swap(self.files)
        return self._swap

    def forget_swap(self) -> None:
        """A thread that hangs in the kernel has it now."""
        self._swap = None

    def extract_fds(self, stash: FDStash) -> None:
        """Give `stash` a dup of the descriptor of each file that the format names."""
        dups: list[tuple[str, int]] = []
        try:
            for child in self.format.extract_files():
                file = self.files[child.index]
                # From here on others may hold the description.
                file.mark_shared()
                dups.append((file.name, opening.dup_for_others(file.fd, file.name)))
            stash.give_all(dups)
        except BaseException:
            for _, fd in dups:
                opening.close_quietly(fd)
            raise

    def new_map(self) -> Map:
        """A map for what the format says now, with nothing of its tables loaded."""
        image, name = self.format, self.files[0].name
        if not isinstance(image, TableFormat):
            return Map(Layer(image.segments(), self.files, name), None)
        layer = Layer(image.segments(), self.files, name, image.tables())
        return Map(layer, ClusterMap(image, layer, self.files))

    def exchange_map(self, other: Map) -> Map:
        """Take another one; the old one is returned."""
        old = Map(self.layer, self.clusters)
        self.layer, self.clusters = other
        return old

    def close(self) -> None:
        """Drop every reference; a slot closes when nobody uses it any more."""
        if self._swap is not None:
            self._swap.release()
            self._swap = None
        if hasattr(self, "layer"):
            self.layer.release()
        for file in self.files:
            file.release()
        self.locks.close()


def _open_format(file: HostFile, opener: FileOpener, source: Source, *, writable: bool) -> Format:
    name = source.format
    if name is None:
        name = _probe(file)
        if writable:
            _refuse_guessed_raw(name, file.name)
    driver = registry.driver(name, file.name)
    return driver.open(file, opener, writable=writable, options=source.options)


def _refuse_guessed_raw(name: str, filename: str) -> None:
    if name == "raw":
        raise FormatError(
            "no format was recognised, and a guest could write a header into an image that"
            ' was only guessed to be raw: name it, format="raw"',
            file=filename,
        )


def check_writable_format(source: Source, image: Format, filename: str) -> None:
    """What decides, at open and at a reopen alike, whether an image may be written."""
    if source.format is None:
        _refuse_guessed_raw(image.name, filename)
    image.can_write()


def probe(path: str | os.PathLike[str]) -> str:
    """The name of the format of the file at `path`, by its bytes; ``raw`` if nothing else."""
    name = os.fsdecode(path)
    fd = opening.open_path(name, os.O_RDONLY)
    try:
        file = HostFile(fd, name, path=name)
    except BaseException:
        opening.close_owned(fd)
        raise
    try:
        return _probe(file)
    finally:
        file.release()


def _probe(file: HostFile) -> str:
    size = file.size
    head = file.pread(min(size, registry.HEAD_BYTES), 0)
    tail_size = min(size, registry.TAIL_BYTES)
    return registry.probe(head, file.pread(tail_size, size - tail_size), size, file.name)
