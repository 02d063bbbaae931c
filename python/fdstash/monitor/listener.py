"""The Unix socket that clients connect to."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import stat

from fdstash.errors import ImageIOError

__all__ = ["Listener", "bind_unix"]

_BACKLOG = 128


def bind_unix(path: str, mode: int) -> socket.socket:
    """Listen at `path`, with these permissions from the first moment on.

    A socket that nobody listens on any more is replaced; a live one is EADDRINUSE, and so is
    whatever else is there.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _remove_stale(path)
        # The socket's file gets the permissions that the socket has then, less the umask.
        os.fchmod(sock.fileno(), mode)
        sock.bind(path)
        os.chmod(path, mode)
        sock.listen(_BACKLOG)
    except OSError as error:
        sock.close()
        code = error.errno or errno.EINVAL
        text = error.strerror or str(error)
        raise ImageIOError(code, f"cannot listen there: {text}", path) from error
    return sock


def _remove_stale(path: str) -> None:
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise OSError(errno.EADDRINUSE, "something that is no socket is there")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except BlockingIOError:  # its backlog is full: somebody is there
            pass
    raise OSError(errno.EADDRINUSE, "another program listens on it")


class Listener:
    """A listening socket. `path`: what is removed at the end; None for one that was passed in."""

    def __init__(self, sock: socket.socket, path: str | None) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._path = path
        self._inode = os.stat(path).st_ino if path is not None else 0
        self._wake = os.eventfd(0, os.EFD_CLOEXEC)

    def accept(self) -> socket.socket | None:
        """Wait for the next client; None when it is over."""
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        while True:
            ready = dict(poll.poll())
            if self._wake in ready:
                return None
            with contextlib.suppress(BlockingIOError, ConnectionAbortedError):
                return self._sock.accept()[0]

    def wake(self) -> None:
        """End `accept`, from another thread, and let nobody in any more."""
        os.eventfd_write(self._wake, 1)
        if self._path is not None:
            with contextlib.suppress(OSError):
                if os.stat(self._path).st_ino == self._inode:
                    os.unlink(self._path)

    def close(self) -> None:
        """After the thread that accepts has ended. A socket passed in goes on listening."""
        self._sock.close()
        os.close(self._wake)
