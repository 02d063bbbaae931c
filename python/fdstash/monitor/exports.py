"""Exports: which node is served to NBD clients, and under what name.

The server itself is given from outside; `ExportServer` says what is asked of one.
"""

from __future__ import annotations

import errno
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import fdstash
from fdstash.monitor.errors import QmpError, told
from fdstash.monitor.nodes import Node

__all__ = ["ExportServer", "Exports", "ServerMaker"]

#: Of one export, in a second.
_ERRORS_TOLD = 10
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


class ExportInfo(Protocol):
    """What a server says of an export."""

    @property
    def id(self) -> str:
        """As it was added."""

    @property
    def shutting_down(self) -> bool:
        """Whether it ends when its last client goes."""


class ExportServer(Protocol):
    """Listens, and holds exports. Any thread."""

    def listen_unix(self, path: str, *, mode: int = 0o600) -> None:
        """Listen on a Unix socket."""

    def listen_tcp(self, host: str, port: int) -> tuple[str, int]:
        """Listen on TCP; where it does."""

    def listen_socket(self, sock: socket.socket) -> None:
        """Take over a socket that listens already."""

    def add(
        self,
        export_id: str,
        image: fdstash.Image,
        *,
        name: str = "",
        description: str = "",
        writable: bool = False,
    ) -> None:
        """Serve an image, which stays the caller's."""

    def remove(self, export_id: str, *, hard: bool = False) -> None:
        """End an export. ENOENT, and without `hard` EBUSY where clients are connected.

        Either it has ended on the return, or `on_deleted` tells later.
        """

    def exports(self) -> tuple[Any, ...]:
        """All of them, as `ExportInfo`."""

    def close(self, timeout: float = 10.0) -> None:
        """End all."""


class ServerMaker(Protocol):
    """Makes a server."""

    def __call__(
        self,
        *,
        max_connections: int,
        on_error: Callable[[str, str, int], None],
        on_deleted: Callable[[str], None],
    ) -> ExportServer:
        """`on_error`: name, operation, errno. `on_deleted`: id. On any thread."""


class _Export(NamedTuple):
    node: Node
    name: str
    writable: bool


class Exports:
    """All exports of a daemon, and its one server. Any thread."""

    def __init__(
        self,
        make: ServerMaker | None,
        *,
        max_connections: int,
        timeout: float,
        emit: Callable[[str, Mapping[str, Any]], None],
    ) -> None:
        self._make = make
        self._max_connections = max_connections
        self._timeout = timeout
        self._emit = emit
        self._lock = threading.RLock()
        self._server: ExportServer | None = None
        self._exports: dict[str, _Export] = {}
        self._unflushed = 0  # errno of the last flush that failed
        self._told: dict[str, tuple[int, int]] = {}  # by name: the second, and how many in it

    # -- the server

    def start_unix(self, path: str, *, mode: int = 0o600, connections: int = 0) -> None:
        """Listen on a Unix socket."""
        with self._lock:
            server = self._new_server(connections)
            self._listen(server, path, lambda: server.listen_unix(path, mode=mode))

    def start_tcp(self, host: str, port: str, *, connections: int = 0) -> None:
        """Listen on TCP, for clients on this machine."""
        if host not in _LOOPBACK:
            raise QmpError(
                f"Address '{host[:64]}' is not of this machine: listen on 127.0.0.1, and let a"
                " proxy such as nbdkit serve others"
            )
        if not (port.isascii() and port.isdecimal() and int(port[:6]) < 65536):
            raise QmpError(f"Parameter 'port' expects a number below 65536, not '{port[:64]}'")
        with self._lock:
            server = self._new_server(connections)
            self._listen(server, f"{host}:{port}", lambda: server.listen_tcp(host, int(port)))

    def start_on(self, sock: socket.socket) -> None:
        """Listen on a socket that listens already, which is the server's from now on."""
        with self._lock:
            server = self._new_server(0)
            self._listen(server, "the socket passed in", lambda: server.listen_socket(sock))

    def _new_server(self, connections: int) -> ExportServer:
        if self._server is not None:
            raise QmpError("NBD server already running")
        if self._make is None:
            raise QmpError("This daemon has no NBD server")
        most = self._max_connections
        return self._make(
            max_connections=min(connections, most) if connections > 0 else most,
            on_error=self._on_error,
            on_deleted=self._on_deleted,
        )

    def _listen(self, server: ExportServer, where: str, listen: Callable[[], object]) -> None:
        try:
            listen()
        except BaseException as error:
            server.close(0)
            if isinstance(error, OSError):
                raise told(error, f"Could not listen on {where}") from error
            raise
        self._server = server

    def stop(self) -> None:
        """End the server and every export."""
        with self._lock:
            server, self._server = self._server, None
            if server is None:
                raise QmpError("NBD server not running")
            ended = list(self._exports)
        # Not under the lock: the server's threads call back, and it waits for them.
        server.close(self._timeout)
        for export_id in ended:
            self._forget(export_id)

    # -- exports

    def add(
        self, export_id: str, node: Node, image: fdstash.Image, name: str, description: str,
        *, writable: bool,
    ) -> None:  # fmt: skip
        """See `block-export-add`. The caller holds the node."""
        with self._lock:
            if export_id in self._exports:
                raise QmpError(f"Block export id '{export_id}' is already in use")
            if self._server is None:
                raise QmpError("NBD server not running")
            if any(each.name == name for each in self._exports.values()):
                raise QmpError(f"NBD server already has export named '{name}'")
            try:
                self._server.add(
                    export_id, image, name=name, description=description, writable=writable
                )
            except (fdstash.Error, OSError) as error:
                raise told(error, f"Could not export '{node.name}'") from error
            self._exports[export_id] = _Export(node, name, writable)
            node.exports.add(export_id)
            if writable:
                node.writers.add(export_id)

    def remove(self, export_id: str, *, hard: bool) -> None:
        """See `block-export-del`. With clients it goes on after the return; the event tells."""
        with self._lock:
            if self._server is None or export_id not in self._exports:
                raise QmpError(f"Export '{export_id}' is not found")
            server = self._server
        try:
            server.remove(export_id, hard=hard)
        except OSError as error:
            if error.errno == errno.EBUSY:
                raise QmpError(
                    f"export '{export_id}' still in use: mode 'hard' disconnects its clients"
                ) from error
            if error.errno != errno.ENOENT:
                raise told(error, f"Could not end export '{export_id}'") from error
            self._forget(export_id)

    def query(self) -> list[dict[str, Any]]:
        """As `query-block-exports` answers."""
        with self._lock:
            found = {} if self._server is None else {e.id: e for e in self._server.exports()}
            return [
                {
                    "id": export_id,
                    "type": "nbd",
                    "node-name": each.node.name,
                    "shutting-down": export_id in found and found[export_id].shutting_down,
                }
                for export_id, each in self._exports.items()
            ]

    def close(self) -> None:
        """At the end of the daemon. `ImageIOError` where what was written could not be flushed."""
        if self._server is None:
            return
        self._unflushed = 0
        self.stop()
        if self._unflushed:
            raise fdstash.ImageIOError(
                self._unflushed, f"not flushed: {os.strerror(self._unflushed)}"
            )

    # -- what the server tells

    def _forget(self, export_id: str) -> None:
        with self._lock:
            gone = self._exports.pop(export_id, None)
            if gone is None:
                return
            gone.node.exports.discard(export_id)
            gone.node.writers.discard(export_id)
            self._told.pop(gone.name, None)
        self._emit("BLOCK_EXPORT_DELETED", {"id": export_id})

    def _on_deleted(self, export_id: str) -> None:
        self._forget(export_id)

    def _on_error(self, name: str, operation: str, code: int) -> None:
        # Not under the lock: the server may call while it is being closed under it.
        if operation == "flush":
            self._unflushed = code
        node = next((e.node.name for e in list(self._exports.values()) if e.name == name), None)
        second = int(time.monotonic())
        at, count = self._told.get(name, (second, 0))
        count = count + 1 if at == second else 1
        self._told[name] = second, count
        if count > _ERRORS_TOLD:
            return
        self._emit(
            "BLOCK_IO_ERROR",
            {
                "device": "",
                **({} if node is None else {"node-name": node}),
                "operation": "read" if operation == "read" else "write",
                "action": "report",
                "nospace": code == errno.ENOSPC,
                "reason": os.strerror(code),
            },
        )
