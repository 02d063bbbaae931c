"""The files of an open image and of those that it is based on, and what their formats say.

`Graph.open` consults the stash before the host file system. A graph is a whole:
a reopen that changes the path opens another graph beside it and switches.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from fdstash import opening
from fdstash.clusters import ClusterMap
from fdstash.datapath import Layer
from fdstash.errors import FormatError
from fdstash.file_opener import FileOpener, Source, open_flags
from fdstash.formats import registry
from fdstash.formats.base import Format, Kind, ReadAt, Segment, shown, unsupported
from fdstash.formats.tables import TableFormat
from fdstash.hostfile import HostFile
from fdstash.locking import LockSet
from fdstash.stash import FDStash
from fdstash.swap import Swap

__all__ = ["MAX_DEPTH", "Graph", "Level", "Map", "check_writable_format", "probe"]

#: Images of a chain, the one that was opened included. VMware's products make at most 33.
MAX_DEPTH = 256
#: Bytes of what stands in for images that are left out: no image has more.
_ENDLESS = 1 << 62
#: Of all images of a chain: runs of bytes, and tables on disk. Each takes some memory at an open.
MAX_SEGMENTS = 1 << 18
MAX_TABLES = 1 << 25


class Map(NamedTuple):
    """What the data path looks guest offsets up in."""

    layer: Layer
    clusters: ClusterMap | None  #: of a format of cluster tables


class Level(NamedTuple):
    """An image that the opened one is based on. It is only read, and its map stays."""

    format: Format
    map: Map


class _Weight(NamedTuple):
    """What an image, or a part of a chain, asks of the memory."""

    segments: int
    tables: int

    @classmethod
    def of(cls, image: Format) -> _Weight:
        tables = image.tables() if isinstance(image, TableFormat) else ()
        pages = sum(-(-each.length // (each.cluster * each.page_entries)) for each in tables)
        return cls(len(image.segments()), pages)

    def grown(self, image: Format) -> _Weight:
        """With another image. Raises `FormatError` where that is too much."""
        more = _Weight.of(image)
        found = _Weight(self.segments + more.segments, self.tables + more.tables)
        for what, count, most in (
            ("extents", found.segments, MAX_SEGMENTS),
            ("tables", found.tables, MAX_TABLES),
        ):
            if count > most:
                raise FormatError(
                    f"the images of the chain up to this one have {count} {what}, and no chain of"
                    f" more than {most} is opened",
                    file=image.file.name,
                )
        return found


class View(Protocol):
    """Something that reads an image below, and ends with the graph."""

    def close(self) -> None:
        """Refuse requests, and wait for those in flight."""


class Graph:
    """One image's files, formats, layers and locks. Owner: one thread at a time.

    `files` are those of all levels, the opened image's first; `Segment.file` and
    `Table.file` count in it.
    """

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
        self.below: tuple[Level, ...] = ()  #: what holes read from, the nearest first
        self._left_out: Layer | None = None  #: in place of them
        self.views: weakref.WeakSet[View] = weakref.WeakSet()  #: of images below
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
        keep: bool = False,
    ) -> Graph:
        """Open everything, or nothing.

        `beside`: another graph of the same image, whose lock descriptions are
        shared where the inode is the same. `keep`: its own files, those of the
        images below aside, are to be the same inodes, whatever became of their paths.
        """
        opener = FileOpener(
            source,
            writable=writable,
            direct=direct,
            stash=stash,
            others=beside.locks if beside else None,
            kept=beside.own_files if beside and keep else (),
        )
        graph = cls(source, opener.files, opener.locks, writable=writable, direct=direct)
        try:
            file = opener.open_first()
            graph.format = _open_format(file, opener, source, writable=writable)
            graph._stack(_open_backing(graph.format, opener, source))
        except BaseException:
            graph.close()
            raise
        finally:
            opener.close()
        # For a reopen: a description for each file, or slot, lock and another
        # graph beside this one; see the design of the reopen.
        opening.reserve(file.fd, 4 * len(graph.files) + 8)
        return graph

    def _stack(self, formats: Sequence[Format]) -> None:
        """Make the maps, from the lowest image to the opened one."""
        for image in reversed(formats):
            made = _new_map(image, self.files, self._lower)
            self.below = (Level(image, made), *self.below)
        if self.source.backing is False and self.format.backing_file is not None:
            # Zeros that are written meanwhile must not become holes: the image may get a
            # backing image later.
            endless = Segment(0, _ENDLESS, Kind.HOLE)
            self._left_out = Layer([endless], (), self.format.file.name)
        self.layer, self.clusters = self.new_map()

    @property
    def _lower(self) -> Layer | None:
        return self.below[0].map.layer if self.below else self._left_out

    @property
    def formats(self) -> Sequence[Format]:
        """Of the opened image, and of those below it."""
        return (self.format, *(level.format for level in self.below))

    @property
    def own_files(self) -> Sequence[HostFile]:
        """The files of the opened image, without those of images below."""
        return [self.files[child.index] for child in self.format.files]

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
        """Give `stash` a dup of the descriptor of each file that the formats name."""
        dups: list[tuple[str, int]] = []
        try:
            for image in self.formats:
                for child in image.extract_files():
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
        return _new_map(self.format, self.files, self._lower)

    def revalidate(self, read: ReadAt) -> None:
        """Look at all headers again, by `read`. Raises `FormatError`."""
        for image in self.formats:
            image.revalidate(read)
        _accept(self.format, [level.format for level in self.below])

    def exchange_map(self, other: Map) -> Map:
        """Take another one; the old one is returned."""
        old = Map(self.layer, self.clusters)
        self.layer, self.clusters = other
        return old

    def close(self) -> None:
        """Drop every reference; a slot closes when nobody uses it any more."""
        for view in list(self.views):
            view.close()
        if self._swap is not None:
            self._swap.release()
            self._swap = None
        if hasattr(self, "layer"):
            self.layer.release()
        for level in self.below:
            level.map.layer.release()
        if self._left_out is not None:
            self._left_out.release()
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
    names = opener.naming(file, writable=True)
    return driver.open(file, names, writable=writable, options=source.options)


def _open_backing(top: Format, opener: FileOpener, source: Source) -> list[Format]:
    """The images that `top` is based on, the nearest first."""
    if source.backing is False:
        return []
    found: list[Format] = []
    above = top
    taken = {child.index: top.file.name for child in top.files}
    weight = _Weight.of(top)
    while above.backing_file is not None:
        if len(found) + 1 == MAX_DEPTH:
            raise FormatError(
                f"a chain of more than {MAX_DEPTH} images is not opened", file=top.file.name
            )
        referrer = opener.files[above.file.index]
        if above is top and source.backing is not None:
            file = opener.open_backing(source.backing)
        else:
            file = opener.open_named(above.backing_file, referrer, writable=False)
        if file.index in taken:
            raise _used_twice(file.name, taken[file.index], above)
        driver = registry.driver(above.backing_format or _probe(file), file.name)
        below = driver.open(file, opener.naming(file, writable=False), writable=False, options={})
        for child in below.files:
            if child.index in taken:
                raise _used_twice(child.name, taken[child.index], below)
        taken.update((child.index, below.file.name) for child in below.files)
        found.append(below)
        weight = weight.grown(below)
        above = below
    if source.backing is not None and not found:
        raise unsupported(top.file.name, f"this {top.name} image has no backing file to change")
    _accept(top, found)
    return found


def _accept(top: Format, below: Sequence[Format]) -> None:
    above = top
    for image in below:
        above.accept_backing(image)
        above = image


def _used_twice(name: str, user: str, by: Format) -> FormatError:
    return FormatError(
        f"the chain of backing images comes back to {shown(name, 200)}, which {shown(user, 200)}"
        " already uses",
        file=by.file.name,
        field="backing file",
    )


def _new_map(image: Format, files: list[HostFile], below: Layer | None) -> Map:
    name = image.file.name
    if not isinstance(image, TableFormat):
        return Map(Layer(image.segments(), files, name, backing=below), None)
    layer = Layer(image.segments(), files, name, image.tables(), below)
    return Map(layer, ClusterMap(image, layer, files))


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
