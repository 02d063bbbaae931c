"""One client's socket: bytes and descriptors in, bytes out, and nobody who waits for him."""

from __future__ import annotations

import array
import contextlib
import os
import select
import socket
import threading
from collections import deque

from fdstash.monitor.descriptors import close_all

__all__ = ["Connection", "Received"]

_CHUNK = 1 << 16
#: Of one message, the kernel's limit (SCM_MAX_FD).
_MAX_FDS = 253
_SPACE = socket.CMSG_SPACE(_MAX_FDS * array.array("i").itemsize)


class Received:
    """What came: no data at the end. The receiver owns `fds`."""

    __slots__ = ("cut", "data", "fds")

    def __init__(self, data: bytes, fds: list[int], *, cut: bool) -> None:
        self.data = data
        self.fds = fds
        self.cut = cut


class Connection:
    """Takes the socket over. `receive` and `close` are the owner's; any thread may `send`.

    What the other side does not read is kept, up to `max_output` bytes; `send` never waits.
    """

    def __init__(self, sock: socket.socket, max_output: int) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._max_output = max_output
        self._lock = threading.Lock()
        self._waiting: deque[memoryview] = deque()
        self._size = 0
        self._broken = False
        self._closed = False
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def send(self, data: bytes) -> bool:
        """Send what fits, and keep the rest for later. False: the client does not read."""
        with self._lock:
            if self._broken or self._closed:
                return True
            if self._size + len(data) > self._max_output:
                self._break()
                return False
            self._waiting.append(memoryview(data))
            self._size += len(data)
            self._flush()
            if self._waiting:
                self._ring()
            return True

    def _flush(self) -> None:
        try:
            while self._waiting:
                sent = self._sock.send(self._waiting[0], socket.MSG_NOSIGNAL)
                self._size -= sent
                if sent == len(self._waiting[0]):
                    self._waiting.popleft()
                else:
                    self._waiting[0] = self._waiting[0][sent:]
        except BlockingIOError:
            pass
        except OSError:
            self._break()

    def _break(self) -> None:
        """The owner finds the end of the stream."""
        self._broken = True
        self._waiting.clear()
        self._size = 0
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def _ring(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_write(self._wake, 1)

    def hang_up(self) -> None:
        """End it from another thread: what waits to be sent is not."""
        with self._lock:
            if not self._closed:
                self._break()
                self._ring()

    def receive(self) -> Received:
        """Wait for what comes next, and send meanwhile what waits."""
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        while True:
            with self._lock:
                self._flush()
                events = select.POLLIN | (select.POLLOUT if self._waiting else 0)
            poll.register(self._sock, events)
            ready = dict(poll.poll())
            if self._wake in ready:
                with contextlib.suppress(BlockingIOError):
                    os.eventfd_read(self._wake)
            if ready.get(self._sock.fileno(), 0) & ~select.POLLOUT:
                try:
                    return self._receive_now()
                except BlockingIOError:
                    continue
                except OSError:
                    return Received(b"", [], cut=False)

    def _receive_now(self) -> Received:
        data, ancillary, flags, _ = self._sock.recvmsg(_CHUNK, _SPACE, socket.MSG_CMSG_CLOEXEC)
        fds: list[int] = []
        for level, kind, block in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                received = array.array("i")
                received.frombytes(block[: len(block) - len(block) % received.itemsize])
                fds.extend(received)
        if not data:
            close_all(fds)
            fds = []
        return Received(data, fds, cut=bool(flags & socket.MSG_CTRUNC))

    def drain(self, seconds: float) -> None:
        """Wait at most that long until all was sent."""
        poll = select.poll()
        poll.register(self._sock, select.POLLOUT)
        with self._lock:
            self._flush()
            waiting = bool(self._waiting)
        if waiting and poll.poll(seconds * 1000):
            with self._lock:
                self._flush()

    def close(self) -> None:
        """Close the socket."""
        with self._lock:
            self._closed = True
            self._waiting.clear()
            self._sock.close()
            os.close(self._wake)
