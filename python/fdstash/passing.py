"""Descriptors from one process to another: SCM_RIGHTS, and a service manager's.

On the wire a stash is a run of messages, each with up to 64 descriptors in its
ancillary data and one block of text: a header of two 32-bit big-endian numbers,
how many descriptors the message carries and how many bytes of names follow,
then the names in UTF-8, each ended by NUL, in the order of the descriptors. A
message with no descriptor ends the run. Nothing is answered: what fits the
socket's buffer can be sent before anybody receives.
"""

from __future__ import annotations

import array
import errno
import fcntl
import os
import socket
import struct
from typing import TYPE_CHECKING, TypeVar

from fdstash.errors import ImageIOError
from fdstash.opening import close_quietly

if TYPE_CHECKING:
    from fdstash.stash import FDStash

__all__ = ["from_listen_fds", "receive", "send"]

_PER_MESSAGE = 64  # the kernel takes at most 253 (SCM_MAX_FD)
_HEADER = struct.Struct(">II")
_NAMES_LIMIT = 1 << 20  # bytes of names in one message: 64 paths of PATH_MAX fit
_FIRST_LISTEN_FD = 3

_S = TypeVar("_S", bound="FDStash")


def _close_all(fds: list[int]) -> None:
    for fd in fds:
        close_quietly(fd)


def _receive_exactly(sock: socket.socket, n: int) -> bytes:
    data = b""
    while len(data) < n:
        part = sock.recv(n - len(data))
        if not part:
            raise ImageIOError(errno.ECONNRESET, "the sender went away before the end")
        data += part
    return data


def send(stash: FDStash, sock: socket.socket) -> None:
    """See `FDStash.send`."""
    pairs: list[tuple[bytes, int]] = []
    try:
        for name in stash.names():
            pairs.extend((os.fsencode(name), fd) for fd in stash.dup_all(name))
        for start in range(0, len(pairs), _PER_MESSAGE):
            _send_message(sock, pairs[start : start + _PER_MESSAGE])
        _send_message(sock, [])
    finally:
        _close_all([fd for _, fd in pairs])


def _send_message(sock: socket.socket, pairs: list[tuple[bytes, int]]) -> None:
    names = b"".join(name + b"\0" for name, _ in pairs)
    fds = array.array("i", [fd for _, fd in pairs])
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)] if pairs else []
    # The header travels with the descriptors: a receiver that has it has them.
    sent = sock.sendmsg([_HEADER.pack(len(pairs), len(names))], ancillary)
    if sent < _HEADER.size:
        sock.sendall(_HEADER.pack(len(pairs), len(names))[sent:])
    sock.sendall(names)


def receive(stash: _S, sock: socket.socket) -> _S:
    """See `FDStash.receive`."""
    try:
        while _receive_message(stash, sock):
            pass
    except BaseException:
        stash.close()
        raise
    return stash


def _receive_message(stash: FDStash, sock: socket.socket) -> bool:
    """Add the descriptors of one message to `stash`; False at the end of the run."""
    space = socket.CMSG_SPACE(_PER_MESSAGE * array.array("i").itemsize)
    header, ancillary, flags, _ = sock.recvmsg(_HEADER.size, space, socket.MSG_CMSG_CLOEXEC)
    fds: list[int] = []
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            received = array.array("i")
            received.frombytes(data[: len(data) - len(data) % received.itemsize])
            fds.extend(received)
    try:
        if flags & socket.MSG_CTRUNC:
            raise ImageIOError(errno.EMSGSIZE, "descriptors were cut off on the way (MSG_CTRUNC)")
        if len(header) < _HEADER.size:
            header += _receive_exactly(sock, _HEADER.size - len(header))
        count, size = _HEADER.unpack(header)
        if count != len(fds) or size > _NAMES_LIMIT:
            raise ImageIOError(
                errno.EPROTO, f"a message announces {count} descriptors and carries {len(fds)}"
            )
        *names, rest = _receive_exactly(sock, size).split(b"\0")
        if len(names) != count or not all(names) or rest:
            raise ImageIOError(errno.EPROTO, f"{len(names)} names came for {count} descriptors")
        for name in names:
            stash.add(os.fsdecode(name), fds[0])
            fds.pop(0)
    finally:
        _close_all(fds)
    return bool(names)


def from_listen_fds(stash: _S) -> _S:
    """See `FDStash.from_listen_fds`."""
    environment = {
        key: os.environ.pop(key, "") for key in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")
    }
    if environment["LISTEN_PID"] != str(os.getpid()):
        return stash
    try:
        count = int(environment["LISTEN_FDS"])
    except ValueError:
        count = -1
    if count < 0:
        raise ImageIOError(
            errno.EINVAL, f"LISTEN_FDS is no count of descriptors: {environment['LISTEN_FDS']!r}"
        )
    names = environment["LISTEN_FDNAMES"].split(":") if environment["LISTEN_FDNAMES"] else []
    for i in range(count):
        fd = _FIRST_LISTEN_FD + i
        try:
            fcntl.fcntl(fd, fcntl.F_SETFD, fcntl.FD_CLOEXEC)
        except OSError as error:
            stash.close()
            raise ImageIOError(
                errno.EBADF, f"LISTEN_FDS says {count}, but descriptor {fd} is not open"
            ) from error
        # systemd's own word for a descriptor without a name
        stash.add(names[i] if i < len(names) and names[i] else "unknown", fd)
    return stash
