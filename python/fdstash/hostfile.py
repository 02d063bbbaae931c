"""One host file of an image: what formats see of it, and what the kernel says of it."""

from __future__ import annotations

import errno
import os
from typing import Any, NamedTuple

from fdstash._ffi import check, ffi, lib, raise_for

__all__ = ["DIRECT", "FileInfo", "FileStatus", "HostFile", "access_name"]

#: The flag that cache modes switch.
DIRECT = os.O_DIRECT

_ACCESS_NAMES = {os.O_RDONLY: "r", os.O_WRONLY: "w", os.O_RDWR: "r+"}


def access_name(flags: int) -> str:
    """The access mode of open flags, as `open` spells it: ``r``, ``r+`` or ``w``."""
    return _ACCESS_NAMES.get(flags & os.O_ACCMODE, "?")


class FileInfo(NamedTuple):
    """One file of an open image, as the kernel describes its descriptor now.

    Two are equal where all but `allocated` is, which changes with writes and write-back.
    """

    name: str  #: the name that the image and a stash use
    path: str | None  #: where it was opened, None when it came as a descriptor
    fd: int  #: the slot; belongs to the image: to keep one, use `extract_fds`
    mode: str  #: ``r`` or ``r+``, from F_GETFL
    direct: bool  #: O_DIRECT, from F_GETFL
    size: int  #: bytes; of the device for a block device
    device: int  #: st_dev
    inode: int  #: st_ino
    allocated: int  #: bytes in use on the host file system

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FileInfo) and self[:-1] == other[:-1]

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash(self[:-1])


class FileStatus(NamedTuple):
    """More of the same, for limits and locks."""

    flags: int  #: F_GETFL
    size: int  #: bytes
    allocated: int  #: bytes in use on the host file system
    device: int
    inode: int
    rdev: int  #: of a block device, else 0
    memory_alignment: int  #: for O_DIRECT, bytes; 0: not known yet
    offset_alignment: int  #: for O_DIRECT, bytes; 0: not known yet
    shared: bool  #: others may hold this description
    remote: bool  #: an open may wait for a server


class HostFile:
    """A descriptor number that one file of an image keeps for its whole life.

    Takes `fd` (an owned descriptor of the core) over; if that raises, the caller
    still owns it. Reads and writes go through a bounce buffer where O_DIRECT asks
    for more alignment than a request has. Any thread.
    """

    __slots__ = ("_handle", "fd", "index", "may_write", "name", "path", "text", "writable")

    def __init__(
        self,
        fd: int,
        name: str,
        *,
        index: int = 0,
        path: str | None = None,
        text: str | None = None,
        writable: bool = False,
        may_write: bool = True,
        shared: bool = False,
    ) -> None:
        """Wrap `fd`. `may_write`: the image ever writes it; `shared`: others hold it."""
        out = ffi.new("fdstash_file **")
        flags = lib.FDSTASH_FILE_SHARED if shared else 0
        if not may_write:
            flags |= lib.FDSTASH_FILE_READONLY
        rc = lib.fdstash_file_new(fd, flags, out)
        if rc < 0:
            raise_for(rc, path or name, _REFUSALS.get(-rc, "take the descriptor"))
        self._handle = ffi.gc(out[0], lib.fdstash_file_unref)
        self.fd = fd
        self.name = name
        self.index = index
        self.path = path
        self.text = text if text is not None else name
        self.writable = writable
        self.may_write = may_write

    @property
    def handle(self) -> Any:
        """The core's object, for layers and swaps."""
        return self._handle

    @property
    def size(self) -> int:
        """Bytes now; of the device for a block device."""
        return check(lib.fdstash_file_size(self._handle), self.name)

    @property
    def fixed_size(self) -> bool:
        """Whether this is a block device."""
        return self.status().rdev != 0

    def identity(self) -> tuple[int, ...]:
        """Device, inode and, of a block device, its number: what tells files apart."""
        out = ffi.new("uint64_t[3]")
        lib.fdstash_file_identity(self._handle, out)
        return (out[0], out[1], out[2])

    def status(self) -> FileStatus:
        """What the kernel says of the descriptor now."""
        out = ffi.new("fdstash_file_status *")
        check(lib.fdstash_file_get_status(self._handle, out), self.name)
        return FileStatus(
            out.flags,
            out.size,
            out.allocated,
            out.device,
            out.inode,
            out.rdev,
            out.memory_alignment,
            out.offset_alignment,
            bool(out.shared),
            bool(out.remote),
        )

    def info(self) -> FileInfo:
        """What `Image.files` shows."""
        status = self.status()
        return FileInfo(
            self.name,
            self.path,
            self.fd,
            access_name(status.flags),
            bool(status.flags & DIRECT),
            status.size,
            status.device,
            status.inode,
            status.allocated,
        )

    def pread(self, n: int, offset: int, /) -> bytes:
        """At most `n` bytes; short only at the end of the file."""
        if n < 0 or offset < 0:
            raise_for(-errno.EINVAL, self.name)
        buffer = bytearray(n)
        got = check(
            lib.fdstash_file_pread(self._handle, ffi.from_buffer(buffer), n, offset), self.name
        )
        return bytes(memoryview(buffer)[:got])

    def pwrite(self, data: bytes, offset: int, /) -> int:
        """Write all of `data`. The caller sees to the gate."""
        view = ffi.from_buffer(data)
        return check(lib.fdstash_file_pwrite(self._handle, view, len(view), offset, 0), self.name)

    def flush(self) -> None:
        """Make completed writes durable; raises what write-back has met."""
        check(lib.fdstash_file_flush(self._handle), self.name, "flush")

    def sync(self) -> None:
        """As `flush`, for a reopen: the next `flush` raises what went wrong now as well."""
        check(lib.fdstash_file_sync(self._handle), self.name, "flush")

    def truncate(self, size: int, /) -> None:
        """Make the file `size` bytes long. While no request uses what goes away."""
        check(lib.fdstash_file_truncate(self._handle, size), self.name, "truncate")

    def data_run(self, offset: int, limit: int) -> tuple[int, bool]:
        """The run of equal kind at `offset`: (bytes, at most `limit`; whether it is data).

        Uses SEEK_DATA and SEEK_HOLE, which move the offset of the description;
        nothing here uses that offset.
        """
        length = ffi.new("uint64_t *")
        data = ffi.new("int *")
        check(lib.fdstash_file_run(self._handle, offset, limit, length, data), self.name)
        return length[0], bool(data[0])

    def mark_shared(self) -> None:
        """The description was handed out: its flags are no longer ours alone."""
        lib.fdstash_file_mark_shared(self._handle)

    def release(self) -> None:
        """Drop this reference; the slot closes when layers and swaps are gone too."""
        handle, self._handle = self._handle, None
        if handle is not None:
            ffi.release(handle)


_REFUSALS = {
    errno.EBADF: "the descriptor cannot serve an image (not open, or O_APPEND or O_PATH)",
    errno.EINVAL: "the descriptor cannot serve an image (neither a regular file nor a block "
    "device, or its file does not bear O_DIRECT)",
}
