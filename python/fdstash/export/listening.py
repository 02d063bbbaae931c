"""Sockets that clients come to, and the thread that lets them in."""

from __future__ import annotations

import errno
import ipaddress
import os
import selectors
import socket
import stat
import threading
from collections.abc import Callable
from contextlib import suppress

from fdstash.errors import ImageIOError, os_error

__all__ = ["Listener", "tcp_socket", "unix_socket"]

_BACKLOG = 128
#: Seconds until another client is let in, where there is no descriptor for it.
_PAUSE = 0.1
_SHORT_OF = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


def unix_socket(path: str, mode: int) -> socket.socket:
    """A listening socket at `path` with the permissions `mode`.

    A socket that nobody listens to any more is replaced. Raises `ImageIOError`, EADDRINUSE
    where somebody does, or where something else is there.
    """
    _make_way(path)
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # Before it has a name, so that nobody gets in who may not; then without the umask.
        os.fchmod(made.fileno(), mode)
        try:
            made.bind(path)
        except OSError as error:
            raise os_error(error.errno or errno.ENAMETOOLONG, path) from None
        os.chmod(path, mode)
        made.listen(_BACKLOG)
    except BaseException:
        made.close()
        raise
    return made


def _make_way(path: str) -> None:
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    except OSError as error:
        raise os_error(error.errno or errno.EIO, path) from None
    if not stat.S_ISSOCK(found.st_mode):
        raise ImageIOError(errno.EADDRINUSE, "it is there, and not a socket", path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        refused = probe.connect_ex(path)
    if refused != errno.ECONNREFUSED:
        raise ImageIOError(errno.EADDRINUSE, "another server listens there", path)
    with suppress(FileNotFoundError):
        os.unlink(path)


def tcp_socket(host: str, port: int, *, allow_remote: bool) -> socket.socket:
    """A listening socket. Raises `ImageIOError`, EACCES for what is not on loopback."""
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (socket.gaierror, UnicodeError) as error:
        raise ImageIOError(errno.EADDRNOTAVAIL, str(error), host) from None
    if not allow_remote and not ipaddress.ip_address(str(address[0]).split("%")[0]).is_loopback:
        raise ImageIOError(errno.EACCES, "only this machine may connect: see docs/nbd.md", host)
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.bind(address)
        made.listen(_BACKLOG)
    except OSError as error:
        made.close()
        raise os_error(error.errno or errno.EIO, f"{host}:{port}") from None
    return made


class Listener:
    """Lets clients in, on a thread of its own; `welcome` gets the sockets, and owns them."""

    def __init__(self, welcome: Callable[[socket.socket], None]) -> None:
        self._welcome = welcome
        self._lock = threading.Lock()
        self._selector = selectors.DefaultSelector()
        self._wake, self._woken = socket.socketpair()
        self._woken.setblocking(False)
        self._selector.register(self._woken, selectors.EVENT_READ)
        self._thread: threading.Thread | None = None
        self._closed = False
        #: Of sockets with a name: the name, device and inode.
        self._names: list[tuple[str, int, int]] = []

    def add(self, listening: socket.socket, path: str | None = None) -> None:
        """Owns the socket from now on, and removes `path` in the end."""
        listening.setblocking(False)
        if path is not None:
            found = os.lstat(path)
            self._names.append((path, found.st_dev, found.st_ino))
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._run, name="fdstash-nbd-listen", daemon=True
                )
                self._thread.start()
            self._selector.register(listening, selectors.EVENT_READ)
        self._wake.send(b"\0")

    def close(self) -> None:
        """No client is let in any more. Twice is nothing."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        for path, device, inode in self._names:
            with suppress(OSError):
                found = os.lstat(path)
                if (found.st_dev, found.st_ino) == (device, inode):
                    os.unlink(path)
        self._wake.send(b"\0")
        if self._thread is not None:
            self._thread.join()
        for key in list(self._selector.get_map().values()):
            if isinstance(key.fileobj, socket.socket):
                key.fileobj.close()
        self._selector.close()
        self._wake.close()

    def _run(self) -> None:
        while not self._closed:
            for key, _ in self._selector.select():
                if isinstance(key.fileobj, socket.socket):
                    self._attend(key.fileobj)

    def _attend(self, ready: socket.socket) -> None:
        with suppress(BlockingIOError):
            if ready is self._woken:
                ready.recv(64)
                return
            try:
                peer, _ = ready.accept()
            except OSError as error:
                if error.errno in _SHORT_OF:
                    # Whoever waits stays in the backlog.
                    threading.Event().wait(_PAUSE)
                return
            if peer.family != socket.AF_UNIX:
                peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            self._welcome(peer)
