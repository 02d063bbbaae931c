"""Clients that are slow, lie, flood, and vanish: they harm themselves alone."""

from __future__ import annotations

import os
import random
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from fdstash import Image
from fdstash.export import NbdServer
from tests.support.nbd_client import (
    BLOCK_STATUS,
    CACHE,
    DISC,
    FLUSH,
    READ,
    TRIM,
    WRITE,
    ZEROES,
    Client,
    request,
)
from tests.support.tier import count

pytestmark = pytest.mark.threads


def until(condition: Callable[[], object], seconds: float = 30) -> None:
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.005)


def connect(where: str) -> socket.socket:
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    made.settimeout(20)
    made.connect(where)
    return made


def held() -> tuple[int, int]:
    return len(os.listdir("/proc/self/fd")), threading.active_count()


@pytest.fixture
def other(server: NbdServer, raw: Image, where: str) -> Iterator[Client]:
    """A client that must go on being served, and whose leaving nothing must outlive."""
    server.add("e", raw, writable=True)
    before = held()
    with Client(where) as client:
        client.write(b"other", 0)
        yield client
        assert client.read(5, 0) == b"other"
    until(lambda: server.exports()[0].connections == 0)
    until(lambda: held() == before)


def recorded() -> bytes:
    """A session from the first byte to the last."""
    name = struct.pack(">I", 0)
    query = b"base:allocation"
    context = name + struct.pack(">II", 1, len(query)) + query

    def option(number: int, data: bytes = b"") -> bytes:
        return b"IHAVEOPT" + struct.pack(">II", number, len(data)) + data

    options = option(3) + option(8) + option(10, context) + option(7, name + bytes(2))
    requests = [
        request(WRITE, 4096, 600, cookie=1, payload=b"w" * 600),
        request(READ, 4096, 600, cookie=2),
        request(BLOCK_STATUS, 0, 1 << 20, cookie=3),
        request(ZEROES, 8192, 100, cookie=4),
        request(WRITE, 1 << 30, 90, cookie=5, payload=b"x" * 90),
        request(TRIM, 8192, 4096, cookie=6, flags=1),
        request(CACHE, 0, 65536, cookie=7),
        request(FLUSH, cookie=8),
        request(DISC, cookie=9),
    ]
    return struct.pack(">I", 3) + options + b"".join(requests)


def test_a_client_may_vanish_at_every_byte(other: Client, where: str) -> None:
    session = recorded()
    step = 1 if count(20) > 1 else 7
    for cut in range(0, len(session) + 1, step):
        with connect(where) as client:
            client.sendall(session[:cut])
            if cut % 3 == 0:
                client.shutdown(socket.SHUT_WR)
                while client.recv(65536):
                    pass
        if cut % 50 == 0:
            assert other.read(5, 0) == b"other"


def test_requests_may_come_byte_by_byte(other: Client, where: str) -> None:
    with Client(where) as client:
        for cookie, (command, length, payload) in enumerate(
            [(WRITE, 300, b"w" * 300), (READ, 300, b""), (FLUSH, 0, b""), (WRITE, 0, b"")]
        ):
            offset = 0 if command == FLUSH else 4096
            whole = request(command, offset, length, cookie=cookie, payload=payload)
            for at in range(len(whole)):
                client.socket.sendall(whole[at : at + 1])
            reply = client.reply()
            assert (reply.cookie, reply.error) == (cookie, 0)
            assert command != READ or reply.data == b"w" * 300


def test_random_requests_are_answered_or_end_the_connection(other: Client, where: str) -> None:
    chance = random.Random(6)
    for _ in range(count(400)):
        with Client(where) as client:
            client.socket.settimeout(0.2)
            junk = b""
            for _ in range(chance.randrange(1, 30)):
                length = chance.choice([0, 1, 512, 5000, 1 << 20, (1 << 32) - 1])
                payload = chance.randbytes(min(length, chance.choice([0, 512, 5000])))
                junk += request(
                    chance.choice([*range(9), 65535]),
                    chance.choice([0, 65536, 1 << 20, 1 << 40, (1 << 64) - 1]),
                    length,
                    flags=chance.choice([0, 0, 0, 1, 2, 4, 8, 16, 65535]),
                    payload=payload,
                    magic=chance.choice([0x25609513] * 20 + [0]),
                )
            try:
                client.socket.sendall(junk)
                client.socket.shutdown(socket.SHUT_WR)
                while client.socket.recv(1 << 16):
                    pass
            except OSError:
                pass
    other.write(b"other", 0)


def test_random_bytes_in_the_handshake_end_it(other: Client, where: str) -> None:
    chance = random.Random(7)
    session = recorded()
    for _ in range(count(400)):
        broken = bytearray(session)
        for _ in range(chance.randrange(1, 8)):
            broken[chance.randrange(len(broken))] = chance.randrange(256)
        with connect(where) as client:
            client.settimeout(0.2)
            try:
                client.sendall(broken)
                client.shutdown(socket.SHUT_WR)
                while client.recv(65536):
                    pass
            except OSError:
                pass
    other.write(b"other", 0)


def test_half_open_clients_keep_nobody_out(where: str, raw: Image) -> None:
    with NbdServer(max_connections=4) as server:
        server.listen_unix(where)
        server.add("e", raw, writable=True)
        silent = [connect(where) for _ in range(20)]
        with Client(where) as client:
            client.write(b"x", 0)
        for each in silent:
            each.close()


def test_more_clients_than_allowed_are_turned_away(where: str, raw: Image) -> None:
    with NbdServer(max_connections=2) as server:
        server.listen_unix(where)
        server.add("e", raw, writable=True)
        with Client(where) as one, Client(where) as two:
            one.write(b"x", 0)
            two.write(b"x", 0)
            with connect(where) as third:
                assert third.recv(1) == b""
            two.write(b"y", 0)
        until(lambda: server.exports()[0].connections == 0)
        Client(where).close()


def test_a_handshake_has_an_end(where: str, raw: Image) -> None:
    with NbdServer(handshake_seconds=0.2) as server:
        server.listen_unix(where)
        server.add("e", raw, writable=True)
        with connect(where) as client, Client(where) as prompt:
            assert client.recv(18)
            limit = time.monotonic() + 20
            try:
                while time.monotonic() < limit:
                    client.sendall(b"\0")
                    time.sleep(0.05)
            except OSError:
                pass
            assert time.monotonic() < limit
            prompt.write(b"x", 0)


def test_who_takes_no_replies_is_not_read_from_without_end(other: Client, where: str) -> None:
    """Each reply is a mebibyte: what the server keeps is bounded, and the socket fills."""
    with Client(where) as greedy:
        greedy.socket.settimeout(0.3)
        many = request(READ, 0, 1 << 20) * (1 << 20)
        with pytest.raises(TimeoutError):
            greedy.socket.sendall(many)
        assert other.read(5, 0) == b"other"
        greedy.socket.settimeout(20)
        assert greedy.reply().error == 0


def test_a_refused_write_of_four_gibibytes_is_not_kept(other: Client, where: str) -> None:
    with Client(where) as client:
        client.send(WRITE, 0, length=(1 << 32) - 1)
        chunk = bytes(1 << 20)
        for _ in range(64):
            client.socket.sendall(chunk)
        reply = client.reply()
        assert reply.error != 0
