"""The files of an open image, what their format says of them, and their locks.

`Graph.open` consults the stash before the host file system. A graph is a whole:
a reopen that changes the path opens another graph beside it and switches.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping
from typing import NamedTuple

from fdstash import opening
from fdstash.datapath import Layer
from fdstash.errors import FormatError, ImageIOError, LockError, RefusedError
from fdstash.formats import registry
from fdstash.formats.base import Format
from fdstash.hostfile import DIRECT, HostFile, access_name
from fdstash.locking import READER, WRITER, LockDescription, LockSet
from fdstash.names import Beneath, Place, Resolver, StashNames, join_name
from fdstash.stash import FDStash
from fdstash.swap import Swap

__all__ = ["Graph", "Source", "check_writable_format", "open_flags", "probe"]


class Source(NamedTuple):
    """What an image is opened from, and how."""

    file: str | int  #: a path, or a descriptor that the caller keeps
    name: str | None  #: what the file is called; of a path, the path
    format: str | None  #: None: look at the bytes
    options: Mapping[str, object]  #: of the format
    resolver: Resolver | None  #: None: beneath the folder of the file that names
    lock: bool


def open_flags(*, writable: bool, direct: bool) -> int:
    """Access mode and O_DIRECT."""
    return (os.O_RDWR if writable else os.O_RDONLY) | (DIRECT if direct else 0)


class _Opened(NamedTuple):
    fd: int
    path: str | None
    shared: bool
    key: str | None  #: the stash's name for it


class Graph:
    """One image's files, format, layer and locks. Owner: one thread at a time."""

    def __init__(self, source: Source, *, writable: bool, direct: bool, locks: LockSet) -> None:
        self.source = source
        self.writable = writable
        self.direct = direct
        self.files: list[HostFile] = []
        self.locks = locks
        self.format: Format
        self.layer: Layer
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
        graph = cls(source, writable=writable, direct=direct, locks=LockSet())
        opener = _Opener(graph, StashNames(stash), beside.locks if beside else None)
        try:
            file = opener.open_first()
            graph.format = _open_format(file, opener, source, writable=writable)
            graph.layer = Layer(graph.format.segments(), graph.files, file.name)
        except BaseException:
            graph.close()
            raise
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
        given: list[str] = []
        try:
            for child in self.format.extract_files():
                file = self.files[child.index]
                fd = os.dup(file.fd)
                # From here on others may hold the description.
                file.mark_shared()
                try:
                    stash.give(file.name, fd)
                except BaseException:
                    os.close(fd)
                    raise
                given.append(file.name)
        except BaseException:
            for name in given:
                os.close(stash.take(name))
            raise

    def rebuild_layer(self) -> Layer:
        """A layer for what the format's segments say now; the old one is returned."""
        old = self.layer
        self.layer = Layer(self.format.segments(), self.files, self.files[0].name)
        return old

    def close(self) -> None:
        """Drop every reference; a slot closes when nobody uses it any more."""
        self._swap = None
        if hasattr(self, "layer"):
            self.layer.release()
        for file in self.files:
            file.release()
        self.locks.close()


def _open_format(file: HostFile, opener: _Opener, source: Source, *, writable: bool) -> Format:
    name = source.format
    if name is None:
        name = _probe(file)
        if writable:
            _refuse_guessed_raw(name, file.name)
    driver = registry.driver(name)
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


class _Opener:
    """Opens the files of one graph: the formats' `Opener`."""

    def __init__(self, graph: Graph, names: StashNames, others: LockSet | None) -> None:
        self._graph = graph
        self._names = names
        self._others = others
        self._by_identity: dict[tuple[int, ...], HostFile] = {}

    def open_first(self) -> HostFile:
        """The file that the caller named."""
        source = self._graph.source
        if isinstance(source.file, int):
            fd = source.file
            name = source.name if source.name is not None else f"fd:{fd}"
            flags = self._graph.flags
            return self._take(name, name, lambda: self._from_descriptor(fd, name, flags, None))
        path = source.file
        name = source.name or path
        flags = self._graph.flags

        def open_it() -> _Opened:
            found = self._from_stash(name, path, flags)
            return found or _Opened(opening.open_path(path, flags), path, shared=False, key=None)

        return self._take(name, path, open_it)

    def open(self, text: str, /, *, writable: bool) -> HostFile:
        """The file that a header calls `text`."""
        referrer = self._graph.files[0]
        source = self._graph.source
        named = not (isinstance(source.file, int) and source.name is None)
        name = join_name(text, referrer.name if named else None)
        flags = open_flags(writable=writable and self._graph.writable, direct=self._graph.direct)

        def open_it() -> _Opened:
            found = self._from_stash(name, text, flags)
            if found:
                return found
            if not named:
                raise ImageIOError(
                    errno.ENOENT,
                    f"{os.strerror(errno.ENOENT)}: the stash does not hold this file, and an"
                    " image opened by descriptor without name= has no folder to look in",
                    text,
                )
            return self._from_path(name, text, referrer.name, flags)

        return self._take(name, text, open_it, may_write=writable)

    # -- where a descriptor comes from

    def _from_descriptor(self, fd: int, name: str, flags: int, key: str | None) -> _Opened:
        """A dup where `fd` is what is wanted, else another description of its file."""
        import fcntl  # noqa: PLC0415 - only where descriptors come from outside

        try:
            has = fcntl.fcntl(fd, fcntl.F_GETFL)
        except OSError as error:
            raise ImageIOError(error.errno, "the descriptor is not open", name) from None
        compared = os.O_ACCMODE | DIRECT
        refused = has & (os.O_APPEND | os.O_PATH)
        if refused or (has & compared) == flags & compared:
            # A refused one is refused by name where it is wrapped.
            return _Opened(opening.dup_owned(fd, name), None, shared=True, key=key)
        try:
            again = opening.open_again(fd, flags, name)
        except PermissionError as error:
            raise ImageIOError(
                errno.EACCES,
                f"{os.strerror(errno.EACCES)}: the descriptor passed is open for"
                f" {access_name(has)!r}, a descriptor for {access_name(flags)!r}"
                f"{' with O_DIRECT' if flags & DIRECT else ''} was not passed, and the file's"
                " permissions do not let this process open it again",
                name,
            ) from error
        return _Opened(again, None, shared=False, key=key)

    def _from_stash(self, name: str, text: str, flags: int) -> _Opened | None:
        stash = self._names.stash
        key = self._names.key(name, text)
        if key is None or stash is None:
            return None
        fd = stash.find_owned(key, flags)
        if fd >= 0:
            return _Opened(fd, None, shared=True, key=key)
        held = stash.dup(key)
        try:
            return self._from_descriptor(held, name, flags, key)
        finally:
            os.close(held)

    def _from_path(self, name: str, text: str, referrer: str, flags: int) -> _Opened:
        resolver = self._graph.source.resolver or Beneath()
        if not isinstance(resolver, Beneath):
            allowed = resolver(text, referrer)
            if allowed is None:
                raise _refused(text, referrer, "the resolver does not allow it")
            path = os.fspath(allowed)
            return _Opened(opening.open_path(path, flags), path, shared=False, key=None)
        error: OSError | None = None
        for place in resolver.places(text, referrer):
            try:
                return self._from_place(place, name, flags)
            except OSError as failed:
                if failed.errno == errno.EXDEV:
                    where = " or ".join(resolver.folders) or "the folder of the file that names it"
                    failed = _refused(text, referrer, f"it is not beneath {where}")
                if error is None or isinstance(error, RefusedError):
                    error = failed
        raise error or _refused(text, referrer, "no folder is allowed")

    def _from_place(self, place: Place, name: str, flags: int) -> _Opened:
        folder = opening.open_folder(place.folder or ".")
        try:
            fd = opening.open_beneath(folder, place.path, flags, name)
        finally:
            opening.close_owned(folder)
        # As it was walked: with a symbolic link on the way, ".." is not text.
        path = os.path.join(place.folder or "", place.path)
        return _Opened(fd, path, shared=False, key=None)

    # -- what is done with it

    def _take(
        self, name: str, text: str, open_it: Callable[[], _Opened], *, may_write: bool = True
    ) -> HostFile:
        graph = self._graph
        opened = open_it()
        try:
            file = HostFile(
                opened.fd,
                name,
                index=len(graph.files),
                path=opened.path,
                text=text,
                writable=graph.writable and may_write,
                may_write=may_write,
                shared=opened.shared,
            )
        except BaseException:
            opening.close_owned(opened.fd)
            raise
        try:
            status = file.status()
            identity = (status.device, status.inode, status.rdev)
            known = self._by_identity.get(identity)
            if known is None and graph.source.lock:
                self._lock(file, identity, opened.key)
        except BaseException:
            file.release()
            raise
        if known is not None:  # the header names one file twice
            file.release()
            return known
        self._by_identity[identity] = file
        graph.files.append(file)
        return file

    def _lock(self, file: HostFile, identity: tuple[int, ...], key: str | None) -> None:
        claim = WRITER if file.writable else READER
        shared = self._others.find(identity) if self._others else None
        if shared is not None:
            self._graph.locks.join(shared, claim, may_write=file.may_write)
            return
        fd, passed = self._lock_descriptor(file, key)
        try:
            description = LockDescription(fd, identity, file.name, passed=passed)
            self._graph.locks.join(description, claim, may_write=file.may_write)
        except BaseException:
            opening.close_owned(fd)
            raise

    def _lock_descriptor(self, file: HostFile, key: str | None) -> tuple[int, bool]:
        """A descriptor for the file's locks, and whether it was passed in."""
        stash = self._names.stash
        lock_key = self._names.lock_key(key, file.name, file.text)
        if stash is not None and lock_key is not None:
            fd = stash.dup(lock_key)
            try:
                return opening.dup_owned(fd, file.name), True
            finally:
                os.close(fd)
        try:
            return opening.open_again(file.fd, os.O_RDONLY, file.name), False
        except OSError as error:
            raise LockError(
                error.errno or errno.EACCES,
                "a descriptor for the locks cannot be made"
                f" ({os.strerror(error.errno or errno.EACCES)}); pass one in the stash as"
                f" 'lock:{file.name}', or use lock=False",
                file.name,
            ) from error


def _refused(text: str, referrer: str, why: str) -> RefusedError:
    return RefusedError(
        errno.EACCES,
        f"{referrer!r} names a file that it may not: {why}; a resolver= can allow it",
        text,
    )
