"""`NbdServer`: images that clients of the NBD protocol read and write."""

from __future__ import annotations

import errno
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Self

from fdstash.errors import ClosedError, ImageIOError
from fdstash.export.connection import Connection, Hooks
from fdstash.export.exports import Export, ExportInfo, Exports
from fdstash.export.handshake import Described
from fdstash.export.listening import Listener, tcp_socket, unix_socket
from fdstash.image import Image

__all__ = ["NbdServer"]

_log = logging.getLogger("fdstash")

#: Seconds that clients of a removed export have to take their replies.
_DRAIN_SECONDS = 10.0
#: Seconds for what then only the kernel, or the gate of an image, can keep waiting.
_LAST_SECONDS = 2.0


class NbdServer(Hooks):
    """Listens, and holds exports. Every method is for any thread.

    Images are the caller's: each must stay open until its export is gone.
    """

    def __init__(
        self,
        *,
        max_connections: int = 100,
        handshake_seconds: float = 10.0,
        on_error: Callable[[str, str, int], object] | None = None,
        on_deleted: Callable[[str], object] | None = None,
    ) -> None:
        """`on_error(export's name, operation, errno)`: a request has failed; of each client and
        operation at most ten are told a second. `on_deleted(id)`: an export is gone. Both are
        called on some thread, and should be quick.
        """
        self.handshake_seconds = handshake_seconds
        self._max_connections = max_connections
        self._on_error = on_error
        self._on_deleted = on_deleted
        self._lock = threading.Lock()
        self._exports = Exports()
        self.offer = _Locked(self._exports, self._lock)
        #: All there are, oldest first.
        self._connections: dict[Connection, None] = {}
        self._listener = Listener(self._welcome)
        self._closed = False

    # -- where it listens

    def listen_unix(self, path: str, *, mode: int = 0o600) -> None:
        """Listen at `path`, whose permissions are `mode`; removed by `close`.

        The socket of a server that is gone is replaced. Raises `ImageIOError`, EADDRINUSE where
        a server is there.
        """
        self._check_open()
        self._listener.add(unix_socket(path, mode), os.path.abspath(path))

    def listen_tcp(self, host: str, port: int, *, allow_remote: bool = False) -> tuple[str, int]:
        """Listen at a TCP port, 0: any one that is free; returns the address.

        The protocol as spoken here knows neither encryption nor authentication: EACCES for an
        address that other machines reach, unless `allow_remote`.
        """
        self._check_open()
        listening = tcp_socket(host, port, allow_remote=allow_remote)
        address = listening.getsockname()
        self._listener.add(listening)
        return str(address[0]), int(address[1])

    def listen_socket(self, listening: socket.socket) -> None:
        """Take clients on a socket that listens already, as one that a service manager made.

        The server closes it, and removes no file.
        """
        self._check_open()
        self._listener.add(listening)

    # -- exports

    def add(
        self,
        export_id: str,
        image: Image,
        *,
        name: str = "",
        description: str = "",
        writable: bool = False,
        allocation: bool = True,
    ) -> None:
        """Export an image under a name. `allocation`: clients may ask which blocks are data.

        Raises `ImageIOError`: EEXIST (id or name), EROFS; `OptionError`, `ClosedError`.
        """
        export = Export(
            export_id,
            image,
            name=name,
            description=description,
            writable=writable,
            allocation=allocation,
        )
        with self._lock:
            self._check_open()
            self._exports.add(export)

    def remove(self, export_id: str, *, hard: bool = False) -> None:
        """Take an export away: EBUSY where clients are connected, unless `hard`.

        Those are then disconnected once their requests in flight are done, and later requests
        fail with ESHUTDOWN; that goes on after the return, and `on_deleted` tells the end. What
        was written is made durable before. ENOENT: there is no such export.
        """
        with self._lock:
            export = self._exports.get(export_id)
            if export.shutting_down:
                return
            if export.connections and not hard:
                raise ImageIOError(errno.EBUSY, "clients are connected", export_id)
            export.shutting_down = True
            connected = bool(export.connections)
        if not connected:
            self._end([export], _DRAIN_SECONDS)
            return
        threading.Thread(
            target=self._end, args=([export], _DRAIN_SECONDS), name="fdstash-nbd-end", daemon=True
        ).start()

    def exports(self) -> tuple[ExportInfo, ...]:
        """All there are, in the order in which they were added."""
        with self._lock:
            return tuple(export.info() for export in self._exports.all())

    def close(self, timeout: float = 10.0) -> None:
        """Stop listening, and take every export away as `remove` does with `hard`; then return.

        Clients have `timeout` seconds to take their replies. Twice is nothing.
        """
        with self._lock:
            self._closed = True
            for export in self._exports.all():
                export.shutting_down = True
            handshakes = [each for each in self._connections if each.export is None]
            ending = self._exports.all()
        self._listener.close()
        for connection in handshakes:
            connection.stop()
        self._end(ending, timeout)
        for connection in handshakes:
            connection.join(_LAST_SECONDS)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # -- for connections

    def enter(self, connection: Connection, name: str) -> Export | None:
        """As `Hooks.enter`."""
        with self._lock:
            export = self._exports.open(name)
            if export is not None:
                export.connections.add(connection)
                connection.export = export
            return export

    def leave(self, connection: Connection) -> None:
        """As `Hooks.leave`."""
        with self._lock:
            self._connections.pop(connection, None)
            if connection.export is not None:
                connection.export.connections.discard(connection)

    def failed(self, export: Export, operation: str, code: int) -> None:
        """As `Hooks.failed`."""
        if self._on_error is not None:
            try:
                self._on_error(export.name, operation, code)
            except Exception:  # noqa: BLE001 - the program's, and no client is to suffer
                _log.exception("on_error")

    # -- within

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError("the server is closed")

    def _welcome(self, peer: socket.socket) -> None:
        connection = Connection(peer, self)
        with self._lock:
            full = len(self._connections) >= self._max_connections
            # A client that does not come to an end with its handshake keeps nobody out.
            oldest = next((each for each in self._connections if each.export is None), None)
            if self._closed or (full and oldest is None):
                peer.close()
                return
            self._connections[connection] = None
            if full and oldest is not None:
                del self._connections[oldest]
                oldest.stop()
        try:
            connection.start()
        except RuntimeError as error:  # no thread is to be had
            _log.warning("an NBD client is turned away: %s", error)
            self.leave(connection)
            peer.close()

    def _end(self, exports: list[Export], seconds: float) -> None:
        """Of exports that take no more clients."""
        with self._lock:
            left = [each for export in exports for each in export.connections]
        for connection in left:
            connection.stop()
        until = time.monotonic() + seconds
        _join(left, until)
        for connection in left:
            connection.stop(abandon=True)
        _join(left, time.monotonic() + _LAST_SECONDS)
        for export in exports:
            self._finish(export)

    def _finish(self, export: Export) -> None:
        code = export.flush()
        if code:
            why = os.strerror(code)
            _log.error("export %r: what clients wrote is not flushed: %s", export.name, why)
            self.failed(export, "flush", code)
        with self._lock:
            if export.connections:
                _log.warning("export %r: a request in flight does not end", export.name)
            was_there = self._exports.drop(export)
        if was_there and self._on_deleted is not None:
            try:
                self._on_deleted(export.id)
            except Exception:  # noqa: BLE001 - the program's, and no client is to suffer
                _log.exception("on_deleted")


def _join(connections: list[Connection], until: float) -> None:
    for connection in connections:
        if connection is not threading.current_thread():
            connection.join(max(0.0, until - time.monotonic()))


class _Locked:
    """What handshakes see of the exports. To describe one may wait, and so holds no lock."""

    def __init__(self, exports: Exports, lock: threading.Lock) -> None:
        self._exports = exports
        self._lock = lock

    def find(self, name: str) -> Described | None:
        with self._lock:
            export = self._exports.open(name)
        try:
            return None if export is None else export.describe()
        except ClosedError:
            return None

    def names(self) -> Mapping[str, str]:
        with self._lock:
            return self._exports.names()
