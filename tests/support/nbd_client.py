"""A plain client of the NBD protocol, which can also be made to misbehave."""

from __future__ import annotations

import itertools
import socket
import struct
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

__all__ = [
    "BLOCK_STATUS",
    "CACHE",
    "DISC",
    "FLUSH",
    "READ",
    "TRIM",
    "WRITE",
    "ZEROES",
    "Client",
    "Reply",
    "request",
]

READ, WRITE, DISC, FLUSH, TRIM, CACHE, ZEROES, BLOCK_STATUS = range(8)
FUA, NO_HOLE, DF, REQ_ONE, FAST_ZERO = 1, 2, 4, 8, 16

_OPTIONS = b"IHAVEOPT"
_SIMPLE, _STRUCTURED = 0x67446698, 0x668E33EF
_ERROR_BIT = 1 << 31


def request(
    command: int,
    offset: int = 0,
    length: int = 0,
    *,
    cookie: int = 0,
    flags: int = 0,
    payload: bytes = b"",
    magic: int = 0x25609513,
) -> bytes:
    header = struct.pack(">IHHQQI", magic, flags, command, cookie, offset, length)
    return header + payload


@dataclass
class Reply:
    cookie: int
    error: int = 0
    data: bytes = b""
    holes: list[tuple[int, int]] = field(default_factory=list)
    extents: list[tuple[int, int]] = field(default_factory=list)
    structured: bool = False


class Client:
    """One connection. Without `export` it stays in the handshake."""

    def __init__(
        self,
        where: str | tuple[str, int] | socket.socket,
        export: str | None = "",
        *,
        structured: bool = True,
        allocation: bool = True,
        timeout: float = 20,
    ) -> None:
        if isinstance(where, socket.socket):
            self.socket = where
        else:
            family = socket.AF_UNIX if isinstance(where, str) else socket.AF_INET
            self.socket = socket.socket(family, socket.SOCK_STREAM)
            try:
                self.socket.connect(where)
            except OSError:
                self.socket.close()
                raise
        self.socket.settimeout(timeout)
        self._cookies = itertools.count(1)
        #: Read lengths by cookie: a simple reply does not tell.
        self._lengths: dict[int, int] = {}
        self.size = self.flags = 0
        self.infos: dict[int, bytes] = {}
        try:
            greeting = self.exactly(18)
            assert greeting == b"NBDMAGIC" + _OPTIONS + b"\0\3", greeting
            self.socket.sendall(struct.pack(">I", 3))
            if export is not None:
                self.choose(export, structured=structured, allocation=allocation)
        except BaseException:
            self.socket.close()
            raise

    def choose(self, export: str, *, structured: bool = True, allocation: bool = True) -> None:
        name = export.encode()
        counted = struct.pack(">I", len(name)) + name
        if structured:
            assert self.option(8) == [(1, b"")]
            if allocation:
                query = b"base:allocation"
                data = counted + struct.pack(">II", 1, len(query)) + query
                self.option(10, data)
        replies = self.option(7, counted + struct.pack(">H", 0))
        if replies[-1][0] & _ERROR_BIT:
            raise ConnectionRefusedError(f"{replies[-1][0]:#x}", replies[-1][1].decode())
        self.infos = {struct.unpack(">H", data[:2])[0]: data[2:] for _, data in replies[:-1]}
        self.size, self.flags = struct.unpack(">QH", self.infos[0])

    def option(self, number: int, data: bytes = b"") -> list[tuple[int, bytes]]:
        """Send an option; its replies, up to the last."""
        self.socket.sendall(_OPTIONS + struct.pack(">II", number, len(data)) + data)
        replies = []
        while True:
            magic, option, kind, length = struct.unpack(">QIII", self.exactly(20))
            assert magic == 0x0003E889045565A9
            assert option == number
            replies.append((kind, self.exactly(length)))
            if kind == 1 or kind & _ERROR_BIT:
                return replies

    def exactly(self, n: int) -> bytes:
        parts = []
        while n > 0:
            part = self.socket.recv(min(n, 1 << 20))
            if not part:
                raise EOFError
            parts.append(part)
            n -= len(part)
        return b"".join(parts)

    # -- transmission

    def send(
        self, command: int, offset: int = 0, length: int = 0, *, flags: int = 0, data: bytes = b""
    ) -> int:
        """Send a request; its cookie."""
        cookie = next(self._cookies)
        length = len(data) if data else length
        if command == READ:
            self._lengths[cookie] = length
        self.socket.sendall(
            request(command, offset, length, cookie=cookie, flags=flags, payload=data)
        )
        return cookie

    def reply(self) -> Reply:
        """The next reply, whole."""
        (magic,) = struct.unpack(">I", self.exactly(4))
        if magic == _SIMPLE:
            error, cookie = struct.unpack(">IQ", self.exactly(12))
            length = self._lengths.pop(cookie, 0)
            return Reply(cookie, error, b"" if error else self.exactly(length))
        assert magic == _STRUCTURED, f"{magic:#x}"
        flags, kind, cookie, length = struct.unpack(">HHQI", self.exactly(16))
        assert flags == 1, "this server sends one chunk a reply"
        content = self.exactly(length)
        self._lengths.pop(cookie, None)
        found = Reply(cookie, structured=True)
        if kind == 1:
            found.data = content[8:]
        elif kind == 2:
            found.holes.append(struct.unpack(">QI", content))
            found.data = bytes(found.holes[0][1])
        elif kind == 5:
            pairs = struct.iter_unpack(">II", content[4:])
            found.extents = [(size, bits) for size, bits in pairs]
        elif kind == 32769:
            (found.error,) = struct.unpack(">I", content[:4])
        else:
            assert kind == 0
        return found

    def ask(
        self, command: int, offset: int = 0, length: int = 0, *, flags: int = 0, data: bytes = b""
    ) -> Reply:
        """A request and its reply, with no other in flight."""
        cookie = self.send(command, offset, length, flags=flags, data=data)
        found = self.reply()
        assert found.cookie == cookie
        return found

    def read(self, n: int, offset: int) -> bytes:
        found = self.ask(READ, offset, n)
        assert found.error == 0, found
        return found.data

    def write(self, data: bytes, offset: int, *, flags: int = 0) -> None:
        found = self.ask(WRITE, offset, data=data, flags=flags)
        assert found.error == 0, found

    def is_closed(self) -> bool:
        """Whether the server hangs up, having sent nothing more."""
        try:
            return self.socket.recv(1) == b""
        except ConnectionResetError:
            return True

    def close(self) -> None:
        self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
