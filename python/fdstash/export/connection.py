"""One client: a thread that shakes hands in Python and then serves in C."""

from __future__ import annotations

import logging
import socket
import threading
import time
from contextlib import suppress
from typing import Any

from fdstash._ffi import ffi, lib
from fdstash.errors import ClosedError
from fdstash.export.exports import LARGEST, Export
from fdstash.export.handshake import (
    ALLOCATION_ID,
    Agreement,
    Handshake,
    HandshakeError,
    Offer,
)
from fdstash.queue import Queue

__all__ = ["Connection", "Hooks"]

_log = logging.getLogger("fdstash")

#: Requests of one client at once, and bytes of what they read and write.
_DEPTH = 128
_MEMORY = 2 * LARGEST
_RECEIVE = lib.FDSTASH_NBD_EARLY
_COMMANDS = ("read", "write", "disc", "flush", "trim", "cache", "write-zeroes", "block-status")


class Hooks:
    """What a connection asks of its server."""

    offer: Offer
    handshake_seconds: float

    def enter(self, connection: Connection, name: str) -> Export | None:
        """The connection is past the handshake; None: the export is gone."""
        raise NotImplementedError

    def leave(self, connection: Connection) -> None:
        """The connection is over."""
        raise NotImplementedError

    def failed(self, export: Export, operation: str, code: int) -> None:
        """A request of it has failed."""
        raise NotImplementedError


class Connection(threading.Thread):
    """Owns its socket. `stop` is for any thread."""

    def __init__(self, peer: socket.socket, hooks: Hooks) -> None:
        super().__init__(name="fdstash-nbd", daemon=True)
        self._peer = peer
        self._hooks = hooks
        self._lock = threading.Lock()
        self._handle: Any = None
        self._stopping = self._abandoned = False
        self.export: Export | None = None

    def stop(self, *, abandon: bool = False) -> None:
        """Finish what was begun, refuse what comes, end; `abandon`: without the client."""
        with self._lock:
            self._stopping = True
            self._abandoned = self._abandoned or abandon
            if self._handle is not None:
                lib.fdstash_nbd_stop(self._handle, abandon)
            else:
                with suppress(OSError):
                    self._peer.shutdown(socket.SHUT_RDWR)

    def run(self) -> None:
        """On its own thread."""
        try:
            with self._peer:
                try:
                    self._serve()
                finally:
                    self._hang_up()
        except HandshakeError as error:
            _log.info("an NBD client is hung up on: %s", error)
        except OSError as error:
            _log.info("an NBD client is gone: %s", error)
        except ClosedError:
            pass
        except Exception:  # noqa: BLE001 - of one client, and no other is to suffer
            _log.exception("an NBD client is hung up on")
        finally:
            self._hooks.leave(self)

    def _hang_up(self) -> None:
        """Also where a forked child has the socket too."""
        with suppress(OSError):
            self._peer.shutdown(socket.SHUT_RDWR)

    def _serve(self) -> None:
        handshake = Handshake(self._hooks.offer)
        agreed = self._shake_hands(handshake)
        if agreed is None:
            return
        export = self._hooks.enter(self, agreed.export.name)
        if export is not None:
            self._peer.settimeout(None)
            with export.image.queue(_DEPTH) as queue:
                self._transmit(export, queue, agreed, handshake.rest)

    # -- the handshake

    def _shake_hands(self, handshake: Handshake) -> Agreement | None:
        until = time.monotonic() + self._hooks.handshake_seconds
        self._send(handshake.greeting, until)
        while handshake.agreed is None and not handshake.ended:
            self._wait_at_most(until)
            data = self._peer.recv(_RECEIVE)
            if not data:
                return None
            self._send(handshake.receive(data), until)
        return handshake.agreed

    def _send(self, data: bytes, until: float) -> None:
        if data:
            self._wait_at_most(until)
            self._peer.sendall(data)

    def _wait_at_most(self, until: float) -> None:
        left = until - time.monotonic()
        if left <= 0:
            raise HandshakeError("the handshake takes too long")
        self._peer.settimeout(left)

    # -- transmission

    def _transmit(self, export: Export, queue: Queue, agreed: Agreement, early: bytes) -> None:
        plan, keep = self._plan(agreed, early)
        out = ffi.new("fdstash_nbd **")
        queue.drive(lambda handle: int(lib.fdstash_nbd_new(handle, plan, out)))
        del keep
        handle = out[0]
        try:
            with self._lock:
                self._handle = handle
                if self._stopping:
                    lib.fdstash_nbd_stop(handle, self._abandoned)
            self._run(export, queue, handle)
        finally:
            with self._lock:
                self._handle = None
            queue.close()
            lib.fdstash_nbd_free(handle)

    def _plan(self, agreed: Agreement, early: bytes) -> tuple[Any, Any]:
        plan = ffi.new("fdstash_nbd_plan *")
        plan.socket = self._peer.fileno()
        if not agreed.export.read_only:
            plan.flags |= lib.FDSTASH_NBD_WRITABLE
        if agreed.structured:
            plan.flags |= lib.FDSTASH_NBD_STRUCTURED
        if agreed.allocation:
            plan.flags |= lib.FDSTASH_NBD_ALLOCATION
        plan.context, plan.depth = ALLOCATION_ID, _DEPTH
        plan.largest, plan.memory = LARGEST, _MEMORY
        view = ffi.from_buffer(early)
        plan.early, plan.early_length = view, len(early)
        return plan, view

    def _run(self, export: Export, queue: Queue, handle: Any) -> None:
        failure = ffi.new("fdstash_nbd_failure *")

        def call(_: Any) -> int:
            return int(lib.fdstash_nbd_run(handle, failure))

        while queue.drive(call):
            self._hooks.failed(export, _COMMANDS[failure.command], failure.error)
