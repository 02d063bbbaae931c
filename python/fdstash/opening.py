"""Owned descriptors: how they are opened, duplicated and closed."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os

from fdstash._ffi import lib
from fdstash.errors import ImageIOError

__all__ = [
    "close_owned",
    "close_quietly",
    "dup_for_others",
    "dup_owned",
    "open_again",
    "open_folder",
    "open_in",
    "open_path",
    "raise_nofile",
    "reserve",
]

AT_FDCWD = -100

_KINDS = {
    errno.EISDIR: "it is a directory",
    errno.ENXIO: "it is a FIFO or a socket",
    errno.EINVAL: "it is a character device, or its file system does not bear O_DIRECT",
}


def _checked(rc: int, name: str, action: str) -> int:
    if rc < 0:
        text = os.strerror(-rc)
        if -rc in _KINDS:
            text = f"{text} ({_KINDS[-rc]})"
        if rc in (-errno.EMFILE, -errno.ENFILE):
            text = f"{text}; see fdstash.raise_nofile()"
        raise ImageIOError(-rc, f"{action}: {text}", name)
    return rc


def open_path(path: str, flags: int) -> int:
    """Open a regular file or block device by path; anything else is not touched."""
    rc = lib.fdstash_open_path(AT_FDCWD, os.fsencode(path), flags, 0)
    return _checked(rc, path, "open")


def open_folder(path: str) -> int:
    """A folder to open files beneath."""
    return _checked(lib.fdstash_open_folder(os.fsencode(path or ".")), path, "open the folder")


def open_in(folder: int, path: str, flags: int, shown: str, *, beneath: bool) -> int:
    """As `open_path`, from `folder` on; `beneath`: the kernel refuses (EXDEV) what leads out."""
    rc = lib.fdstash_open_path(folder, os.fsencode(path), flags, beneath)
    return _checked(rc, shown, "open")


def open_again(fd: int, flags: int, name: str) -> int:
    """A new description of the file behind `fd`, whatever became of its path."""
    return _checked(lib.fdstash_open_again(fd, flags), name, "open again")


def dup_owned(fd: int, name: str) -> int:
    """A duplicate that belongs to an image."""
    return _checked(lib.fdstash_dup_owned(fd), name, "duplicate the descriptor")


def dup_for_others(fd: int, name: str) -> int:
    """A duplicate that is the caller's own affair, numbered 3 or higher."""
    try:
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
    except OSError as error:
        return _checked(-(error.errno or errno.EBADF), name, "duplicate the descriptor")


def close_quietly(fd: int) -> None:
    """Close a duplicate of what stays open: what close says then means nothing."""
    with contextlib.suppress(OSError):
        os.close(fd)


def close_owned(fd: int) -> int:
    """Close; what close said, as ``-errno`` or 0. The number is free all the same."""
    rc: int = lib.fdstash_close_owned(fd)
    return rc


def reserve(fd: int, more: int) -> None:
    """Grow the descriptor table now, so that no reopen has to."""
    lib.fdstash_reserve_descriptors(fd, more)


def raise_nofile(limit: int | None = None) -> int:
    """Raise the soft RLIMIT_NOFILE to `limit`, or as far as the hard one lets it.

    Returns the soft limit now in force. Never lowers it. A library must not do
    this to its host unasked, so nothing here calls it but the command line.
    """
    import resource  # noqa: PLC0415 - only who asks needs it

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = hard if limit is None else limit
    if soft == resource.RLIM_INFINITY or (wanted != resource.RLIM_INFINITY and soft >= wanted):
        return soft
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return wanted
