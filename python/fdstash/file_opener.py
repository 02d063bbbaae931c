"""Where the descriptor of each file comes from: the stash, a descriptor, a path."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

from fdstash import opening
from fdstash.errors import ImageIOError, LockError, NotAFileError, RefusedError
from fdstash.formats.base import Opener
from fdstash.hostfile import DIRECT, HostFile, access_name
from fdstash.locking import READER, WRITER, LockDescription, LockSet
from fdstash.names import Beneath, Confined, Place, Resolver, StashNames, join_name
from fdstash.stash import FDStash

__all__ = ["FileOpener", "Source", "open_flags"]


class Source(NamedTuple):
    """What an image is opened from, and how."""

    file: str | int  #: a path, or a descriptor that the caller keeps
    name: str | None  #: what the file is called; of a path, the path
    format: str | None  #: None: look at the bytes
    options: Mapping[str, object]  #: of the format
    resolver: Resolver | None  #: None: beneath the folder of the file that names
    lock: bool
    mark: bool = True  #: whether a first write marks the header
    #: The path of the backing image; False: none, so that holes are zeros; None: the header's.
    backing: str | Literal[False] | None = None


def open_flags(*, writable: bool, direct: bool) -> int:
    """Access mode and O_DIRECT."""
    return (os.O_RDWR if writable else os.O_RDONLY) | (DIRECT if direct else 0)


#: What an open says of a FIFO or a socket, of a folder, and of links in a circle.
_NOT_A_FILE = (errno.ENXIO, errno.EISDIR, errno.ELOOP)


class _Naming:
    """The `Opener` of one header."""

    def __init__(self, opener: FileOpener, referrer: HostFile, *, writable: bool) -> None:
        self._opener = opener
        self._referrer = referrer
        self._writable = writable

    def open(self, text: str, /, *, writable: bool) -> HostFile:
        """The file that `text` names; of a backing image, for reading."""
        return self._opener.open_named(text, self._referrer, writable=writable and self._writable)


class _Opened(NamedTuple):
    fd: int
    path: str | None
    shared: bool
    key: str | None  #: the stash's name for it


class FileOpener:
    """Opens the files of one graph; `naming` gives each format its `Opener`."""

    def __init__(
        self,
        source: Source,
        *,
        writable: bool,
        direct: bool,
        stash: FDStash | None,
        others: LockSet | None,
        kept: Sequence[HostFile] = (),
    ) -> None:
        """`kept`: files of another graph that are opened again as the same inodes."""
        self.files: list[HostFile] = []
        self.locks = LockSet()
        self._source = source
        self._writable = writable
        self._direct = direct
        self._names = StashNames(stash)
        self._others = others
        self._kept = {file.name: file for file in kept}
        self._folders: dict[str, int] = {}
        self._by_identity: dict[tuple[int, ...], HostFile] = {}

    def open_first(self) -> HostFile:
        """The file that the caller named."""
        source = self._source
        if isinstance(source.file, int):
            fd = source.file
            name = source.name if source.name is not None else f"fd:{fd}"
            flags = open_flags(writable=self._writable, direct=self._direct)

            def dup_it() -> _Opened:
                # For an image that is open already, the number may be another file's by now.
                kept = self._from_kept(name, flags)
                return kept or self._from_descriptor(fd, name, flags, None)

            return self._take(name, name, dup_it)
        path = source.file
        name = source.name or path
        flags = open_flags(writable=self._writable, direct=self._direct)

        def open_it() -> _Opened:
            found = self._from_stash(name, path, flags) or self._from_kept(name, flags)
            if found:
                return found
            if isinstance(source.resolver, Confined):
                return self._from_places(source.resolver, name, path, None, flags)
            last = os.path.basename(path)
            if last in ("", ".", ".."):
                fd = opening.open_path(path, flags)
            else:
                folder = self._own_folder(path)
                fd = opening.open_in(folder, last, flags, path, beneath=False)
            return _Opened(fd, path, shared=False, key=None)

        return self._take(name, path, open_it)

    def open_backing(self, path: str) -> HostFile:
        """The backing image that the caller named, whatever the header says."""
        flags = open_flags(writable=False, direct=self._direct)

        def open_it() -> _Opened:
            found = self._from_stash(path, path, flags)
            resolver = self._source.resolver
            if found is None and isinstance(resolver, Confined):
                return self._from_places(resolver, path, path, None, flags)
            return found or _Opened(opening.open_path(path, flags), path, shared=False, key=None)

        return self._take(path, path, open_it, may_write=False)

    def naming(self, referrer: HostFile, *, writable: bool) -> Opener:
        """How the format whose header `referrer` holds opens the files that it names."""
        return _Naming(self, referrer, writable=writable)

    def open_named(self, text: str, referrer: HostFile, *, writable: bool) -> HostFile:
        """The file that the header in `referrer` calls `text`."""
        source = self._source
        named = not (isinstance(source.file, int) and source.name is None)
        name = join_name(text, referrer.name if named else None)
        flags = open_flags(writable=writable and self._writable, direct=self._direct)

        def open_it() -> _Opened:
            found = self._from_stash(name, text, flags) or self._from_kept(name, flags)
            if found:
                return found
            if not named:
                raise ImageIOError(
                    errno.ENOENT,
                    f"{os.strerror(errno.ENOENT)}: the stash does not hold this file, and an"
                    " image opened by descriptor without name= has no folder to look in",
                    text,
                )
            try:
                return self._from_path(name, text, referrer.name, flags)
            except ImageIOError as error:
                if error.errno not in _NOT_A_FILE:
                    raise
                raise NotAFileError(
                    error.errno,
                    f"{error.strerror}; a header may only name regular files and block devices",
                    name,
                    file=referrer.name,
                    field="file name",
                ) from None

        return self._take(name, text, open_it, may_write=writable)

    # -- where a descriptor comes from

    def _from_descriptor(self, fd: int, name: str, flags: int, key: str | None) -> _Opened:
        """A dup where `fd` is what is wanted, else another description of its file."""
        try:
            has = fcntl.fcntl(fd, fcntl.F_GETFL)
        except (OSError, ValueError, OverflowError):
            raise ImageIOError(errno.EBADF, "the descriptor is not open", name) from None
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
            opening.close_quietly(held)

    def _from_kept(self, name: str, flags: int) -> _Opened | None:
        kept = self._kept.get(name)
        if kept is None:
            return None
        return _Opened(opening.open_again(kept.fd, flags, name), kept.path, shared=False, key=None)

    def _from_path(self, name: str, text: str, referrer: str, flags: int) -> _Opened:
        resolver = self._source.resolver or Beneath()
        if not isinstance(resolver, Beneath):
            allowed = resolver(text, referrer)
            if allowed is None:
                raise _refused(text, referrer, "the resolver does not allow it", Beneath.hint)
            path = os.fspath(allowed)
            return _Opened(opening.open_path(path, flags), path, shared=False, key=None)
        return self._from_places(resolver, name, text, referrer, flags)

    def _from_places(
        self, resolver: Beneath, name: str, text: str, referrer: str | None, flags: int
    ) -> _Opened:
        """Beneath a folder that the resolver allows. No `referrer`: the caller named the file."""
        by = referrer if referrer is not None else os.path.abspath(text)
        error: OSError | None = None
        for place in resolver.places(text if referrer is not None else by, by):
            try:
                if not resolver.folders:
                    return self._from_folder(self._own_folder(by), place, name, flags)
                return self._from_place(place, name, flags)
            except OSError as failed:
                if failed.errno == errno.EXDEV:
                    where = " or ".join(resolver.folders) or "the folder of the file that names it"
                    failed = _refused(text, referrer, f"it is not beneath {where}", resolver.hint)
                if error is None or isinstance(error, RefusedError):
                    error = failed
        raise error or _refused(text, referrer, "no folder is allowed", resolver.hint)

    def _own_folder(self, referrer: str) -> int:
        """The folder of a file that names others, walked once.

        A symbolic link on the way that is swung meanwhile must not give an image
        the extents of another.
        """
        folder = self._folders.get(referrer)
        if folder is None:
            path = os.path.dirname(referrer) or "."
            folder = self._folders[referrer] = opening.open_folder(path)
        return folder

    def _from_place(self, place: Place, name: str, flags: int) -> _Opened:
        folder = opening.open_folder(place.folder)
        try:
            return self._from_folder(folder, place, name, flags)
        finally:
            opening.close_owned(folder)

    def _from_folder(self, folder: int, place: Place, name: str, flags: int) -> _Opened:
        fd = opening.open_in(folder, place.path, flags, name, beneath=True)
        # As it was walked: with a symbolic link on the way, ".." is not text.
        path = f"{place.folder.rstrip('/')}/{place.path}"
        return _Opened(fd, path, shared=False, key=None)

    def close(self) -> None:
        """Let go of the folders; what was opened is the graph's."""
        while self._folders:
            opening.close_owned(self._folders.popitem()[1])

    # -- what is done with it

    def _take(
        self, name: str, text: str, open_it: Callable[[], _Opened], *, may_write: bool = True
    ) -> HostFile:
        opened = open_it()
        try:
            file = HostFile(
                opened.fd,
                name,
                index=len(self.files),
                path=opened.path,
                text=text,
                writable=self._writable and may_write,
                may_write=may_write,
                shared=opened.shared,
            )
        except BaseException:
            opening.close_owned(opened.fd)
            raise
        try:
            identity = file.identity()
            self._check_kept(name, identity)
            known = self._by_identity.get(identity)
            if known is None and self._source.lock:
                self._lock(file, identity, opened.key)
        except BaseException:
            file.release()
            raise
        if known is not None:  # the header names one file twice
            file.release()
            return known
        self._by_identity[identity] = file
        self.files.append(file)
        return file

    def _check_kept(self, name: str, identity: tuple[int, ...]) -> None:
        """A stash may not bring another file in place of one that is to stay."""
        kept = self._kept.get(name)
        if kept is not None and kept.identity() != identity:
            raise ImageIOError(errno.ESTALE, "under this name the image has another file", name)

    def _lock(self, file: HostFile, identity: tuple[int, ...], key: str | None) -> None:
        claim = WRITER if file.writable else READER
        shared = self._others.find(identity) if self._others else None
        if shared is not None:
            self.locks.join(shared, claim, may_write=file.may_write)
            return
        fd, passed = self._lock_descriptor(file, key)
        try:
            description = LockDescription(fd, identity, file.name, passed=passed)
            self.locks.join(description, claim, may_write=file.may_write)
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
                opening.close_quietly(fd)
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


def _refused(text: str, referrer: str | None, why: str, hint: str) -> RefusedError:
    if referrer is None:
        return RefusedError(errno.EACCES, f"the path is not allowed: {why}; {hint}", text)
    return RefusedError(
        errno.EACCES, f"{referrer!r} names a file that it may not: {why}; {hint}", text
    )
