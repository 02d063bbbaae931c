"""New files that appear under their names all together, or not at all.

Each file is made under a temporary name in the folder where it belongs and
renamed at the end, after which nothing but a rename has to succeed; should one
fail, those before it are undone. So a `create` that fails half-way leaves no half
image, and what it was to replace is still there.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import stat
import struct
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import BinaryIO, NamedTuple, Self

from fdstash.errors import FormatError, ImageIOError, LockError, os_error
from fdstash.formats.base import MAX_OFFSET
from fdstash.formats.options import PREALLOCATION, check_choice

__all__ = ["Staging"]

_ZEROS = bytes(1 << 20)
# QEMU's image locks are on bytes 100 to 299 (`struct flock`: type, whence,
# start, length, pid).
_FLOCK = struct.Struct("hhqqi4x")
_IMAGE_LOCKS = (fcntl.F_WRLCK, os.SEEK_SET, 100, 200, 0)


class _Staged(NamedTuple):
    temporary: str
    target: str
    replaces: bool


class Staging:
    """A set of new files. Use it as a context manager and end with `commit`.

    Leaving the block without a commit removes everything that was made. Calls
    raise `ImageIOError` with the name that was asked for, and `LockError` for a
    file that a program holds open as an image. Threads: one.
    """

    def __init__(self) -> None:
        self._staged: list[_Staged] = []
        self._folders: list[str] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for entry in self._staged:
            with contextlib.suppress(OSError):
                os.unlink(entry.temporary)
        for folder in reversed(self._folders):
            with contextlib.suppress(OSError):
                os.rmdir(folder)

    def make_folder(self, path: str | os.PathLike[str]) -> None:
        """Makes the folder `path` and those above it, where they are missing."""
        missing = []
        folder = os.path.abspath(os.fspath(path))
        while not os.path.lexists(folder):
            missing.append(folder)
            folder = os.path.dirname(folder)
        try:
            for folder in reversed(missing):
                os.mkdir(folder)
                self._folders.append(folder)
        except OSError as error:
            raise _named(error, folder) from error

    def add(self, path: str | os.PathLike[str], size: int, preallocation: str = "off") -> None:
        """A file of `size` bytes that read as zeros."""
        check_choice(preallocation, "preallocation", PREALLOCATION.choices)
        if not 0 <= size <= MAX_OFFSET:
            raise FormatError(f"a file cannot have {size} bytes", file=os.fspath(path))
        with _naming(path), self._new(path) as fd:
            if preallocation == "falloc" and size:
                os.posix_fallocate(fd, 0, size)
            elif preallocation == "full":
                for start in range(0, size, len(_ZEROS)):
                    _write_all(fd, _ZEROS[: size - start])
            else:
                os.ftruncate(fd, size)

    def add_bytes(self, path: str | os.PathLike[str], data: bytes) -> None:
        """A file with the content `data`."""
        with _naming(path), self._new(path) as fd:
            _write_all(fd, data)

    def add_filled(self, path: str | os.PathLike[str], fill: Callable[[BinaryIO], object]) -> None:
        """A file with the content that `fill` writes to it; what it seeks over reads as zeros."""
        with _naming(path), self._new(path) as fd, os.fdopen(fd, "wb", closefd=False) as file:
            fill(file)

    def commit(self) -> None:
        """Gives every file its name, in the order in which they were added."""
        done: list[tuple[_Staged, str]] = []
        try:
            for entry in self._staged:
                kept = _beside(entry.target, "old")
                done.append((entry, kept))
                with _naming(entry.target):
                    if entry.replaces:
                        _set_aside(entry.target, kept)
                    os.rename(entry.temporary, entry.target)
        except BaseException:
            for entry, kept in reversed(done):
                _undo(entry, kept)
            raise
        for _entry, kept in done:
            with contextlib.suppress(OSError):
                os.unlink(kept)
        self._staged.clear()
        self._folders.clear()

    @contextlib.contextmanager
    def _new(self, path: str | os.PathLike[str]) -> Iterator[int]:
        """The descriptor of a new temporary file that is to become `path`."""
        target = os.path.realpath(path)
        replaced = _check_replaceable(target)
        temporary = _beside(target, "new")
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(temporary, flags, 0o666)
        self._staged.append(_Staged(temporary, target, replaced is not None))
        try:
            if replaced is not None:
                with contextlib.suppress(PermissionError):
                    os.fchown(fd, replaced.st_uid, replaced.st_gid)
                    os.fchmod(fd, stat.S_IMODE(replaced.st_mode))
            yield fd
        finally:
            os.close(fd)


def _check_replaceable(target: str) -> os.stat_result | None:
    """The status of the file that is at `target`, which must be free to be replaced."""
    try:
        status = os.lstat(target)
    except FileNotFoundError:
        return None
    if stat.S_ISDIR(status.st_mode):
        raise os_error(errno.EISDIR, target)
    if not stat.S_ISREG(status.st_mode):
        raise ImageIOError(
            errno.EINVAL, "only a regular file can be replaced by a new image", target
        )
    fd = os.open(target, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        locked = _is_locked(fd)
    finally:
        os.close(fd)
    if locked:
        raise LockError(errno.EAGAIN, "in use as an image, so it is not replaced", target)
    return status


def _is_locked(fd: int) -> bool:
    """Whether anybody holds an image lock; where the file system has no locks, nobody does."""
    try:
        answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _FLOCK.pack(*_IMAGE_LOCKS))
    except OSError as error:
        if error.errno in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
            return False
        raise
    return bool(_FLOCK.unpack(answer)[0] != fcntl.F_UNLCK)


def _set_aside(target: str, kept: str) -> None:
    """Gives the file at `target` the further name `kept`, until it is replaced."""
    try:
        os.link(target, kept, follow_symlinks=False)
    except FileNotFoundError:
        return
    except OSError:  # a file system without links, or a rule against them
        os.rename(target, kept)


def _undo(entry: _Staged, kept: str) -> None:
    """Puts back what `commit` did for one file; what it did not do is left alone."""
    with contextlib.suppress(OSError):
        if os.path.lexists(kept):
            os.rename(kept, entry.target)
            os.unlink(kept)  # still there when both names were one file
        elif not os.path.lexists(entry.temporary):
            os.unlink(entry.target)


def _beside(target: str, suffix: str) -> str:
    return os.path.join(os.path.dirname(target), f".fdstash-{secrets.token_hex(8)}.{suffix}")


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _named(error: OSError, path: str | os.PathLike[str]) -> OSError:
    if isinstance(error, (ImageIOError, LockError)):
        return error
    return os_error(error.errno or errno.EIO, path)


@contextlib.contextmanager
def _naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turns an `OSError` into an `ImageIOError` that names `path`."""
    try:
        yield
    except OSError as error:
        named = _named(error, path)
        if named is error:
            raise
        raise named from error
