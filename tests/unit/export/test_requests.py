"""What clients ask for in the transmission phase, and what they get."""

from __future__ import annotations

import errno
import random
import time
from pathlib import Path

import pytest

import fdstash
from fdstash import Image
from fdstash.export import NbdServer
from tests.support.nbd_client import (
    BLOCK_STATUS,
    CACHE,
    DF,
    DISC,
    FAST_ZERO,
    FLUSH,
    FUA,
    NO_HOLE,
    READ,
    REQ_ONE,
    TRIM,
    WRITE,
    ZEROES,
    Client,
)
from tests.support.tier import count

HOLE_AND_ZERO = 3


@pytest.fixture(params=["structured", "simple"])
def client(request: pytest.FixtureRequest, server: NbdServer, image: Image, where: str) -> Client:
    server.add("e", image, writable=True)
    return Client(where, structured=request.param == "structured")


def test_what_is_written_is_read_and_in_the_image(client: Client, image: Image) -> None:
    model = bytearray(image.pread(image.size, 0))
    chance = random.Random(1)
    with client:
        for _ in range(count(2000)):
            offset = chance.randrange(image.size)
            length = chance.randrange(1, min(20000, image.size - offset) + 1)
            if chance.random() < 0.5:
                data = chance.randbytes(length)
                client.write(data, offset, flags=FUA if chance.random() < 0.1 else 0)
                model[offset : offset + length] = data
            elif chance.random() < 0.3:
                flags = chance.choice([0, FUA, NO_HOLE, FUA | NO_HOLE])
                assert client.ask(ZEROES, offset, length, flags=flags).error == 0
                model[offset : offset + length] = bytes(length)
            else:
                assert client.read(length, offset) == model[offset : offset + length]
        assert client.ask(FLUSH).error == 0
    assert image.pread(image.size, 0) == model


def test_many_requests_in_flight_have_each_their_reply(client: Client, image: Image) -> None:
    blocks = image.size // 4096
    wanted = {}
    with client:
        for number in range(100):
            data = bytes([number + 1]) * 4096
            client.send(WRITE, (number % blocks) * 4096, data=data)
            if number >= blocks:
                client.reply()
        for _ in range(min(100, blocks)):
            assert client.reply().error == 0
        for number in range(100):
            block = number % blocks
            wanted[client.send(READ, block * 4096, 4096)] = block
        for _ in range(100):
            found = client.reply()
            assert found.error == 0
            assert len(set(found.data)) == 1
            assert (found.data[0] - 1) % blocks == wanted.pop(found.cookie)
    assert not wanted


def test_requests_larger_than_every_buffer(server: NbdServer, tmp_path: Path, where: str) -> None:
    size = 40 << 20
    with (tmp_path / "big").open("wb") as made:
        made.truncate(size)
    data = random.Random(2).randbytes(32 << 20)
    with fdstash.open(tmp_path / "big", "r+", format="raw") as image:
        server.add("e", image, writable=True)
        with Client(where) as client:
            client.write(data, 12345)
            # Beyond the memory of a connection: what does not fit waits.
            for _ in range(4):
                client.send(READ, 12345, 32 << 20)
            for _ in range(4):
                assert client.reply().data == data
        server.remove("e", hard=True)
        until_gone(server)


def until_gone(server: NbdServer) -> None:
    while server.exports():
        time.sleep(0.005)


@pytest.mark.parametrize(
    ("what", "error"),
    [
        ((READ, -1, 2, 0), errno.EINVAL),
        ((READ, 1 << 63, 1, 0), errno.EINVAL),
        ((READ, (1 << 64) - 1, 4096, 0), errno.EINVAL),
        ((WRITE, -1, 2, 0), errno.ENOSPC),
        ((WRITE, (1 << 64) - 4096, 4096, 0), errno.ENOSPC),
        ((TRIM, -1, 2, 0), errno.ENOSPC),
        ((ZEROES, 0, (1 << 32) - 1, 0), errno.ENOSPC),
        ((CACHE, -1, 2, 0), errno.EINVAL),
        ((READ, 0, 512, NO_HOLE), errno.EINVAL),
        ((WRITE, 0, 512, DF), errno.EINVAL),
        ((WRITE, 0, 512, 1 << 15), errno.EINVAL),
        ((FLUSH, 512, 0, 0), errno.EINVAL),
        ((FLUSH, 0, 512, 0), errno.EINVAL),
        ((BLOCK_STATUS, 0, 0, 0), errno.EINVAL),
        ((8, 0, 512, 0), errno.EINVAL),
        ((65535, 0, 512, 0), errno.EINVAL),
        ((READ, 0, (32 << 20) + 1, 0), errno.EOVERFLOW),
        ((WRITE, 0, (32 << 20) + 1, 0), errno.EINVAL),
    ],
)
def test_a_bad_request_is_refused_and_the_next_is_served(
    client: Client, image: Image, what: tuple[int, int, int, int], error: int
) -> None:
    command, offset, length, flags = what
    before = image.pread(image.size, 0)
    with client:
        data = bytes([7]) * length if command == WRITE else b""
        offset = image.size + offset if offset < 0 else offset
        found = client.ask(command, offset, length, flags=flags, data=data)
        assert found.error == error
        assert client.read(512, 0) == before[:512]
    assert image.pread(image.size, 0) == before


def test_requests_of_no_length_do_nothing(client: Client, image: Image) -> None:
    before = image.pread(image.size, 0)
    with client:
        for command in (READ, WRITE, TRIM, ZEROES, CACHE):
            assert client.ask(command, 0, 0).error == 0
            assert client.ask(command, image.size, 0).error == 0
    assert image.pread(image.size, 0) == before


def test_a_read_only_export_refuses_changes(server: NbdServer, image: Image, where: str) -> None:
    server.add("e", image)
    before = image.pread(image.size, 0)
    with Client(where) as client:
        assert client.flags & 2
        assert not client.flags & (1 << 3 | 1 << 5 | 1 << 6 | 1 << 11)
        for command in (WRITE, TRIM, ZEROES):
            data = bytes(512) if command == WRITE else b""
            assert client.ask(command, 0, 512, data=data).error == errno.EPERM
        assert client.ask(FLUSH).error == 0
        assert client.read(image.size, 0) == before


def test_an_image_that_became_read_only_refuses_changes(
    server: NbdServer, image: Image, where: str
) -> None:
    server.add("e", image, writable=True)
    with Client(where) as client:
        client.write(b"before", 0)
        image.reopen(mode="r")
        assert client.ask(WRITE, 0, data=b"after!").error == errno.EPERM
        assert client.read(6, 0) == b"before"
        with Client(where) as late:
            assert late.flags & 2
        image.reopen(mode="r+")
        client.write(b"after!", 0)
        assert client.read(6, 0) == b"after!"


def test_the_header_is_marked_at_the_first_write_and_not_before(
    server: NbdServer, tmp_path: Path, where: str
) -> None:
    path = tmp_path / "disk.vmdk"
    fdstash.create(path, "vmdk", 1 << 20, subformat="monolithicSparse")

    def cid() -> str:
        text = path.read_bytes()
        at = text.index(b"\nCID=")
        return text[at + 5 : at + 13].decode()

    before = cid()
    with fdstash.open(path, "r+") as image:
        server.add("e", image, writable=True)
        with Client(where) as client:
            client.read(4096, 0)
            assert client.ask(FLUSH).error == 0
            assert cid() == before
            client.write(b"x", 0)
            assert cid() != before
        server.remove("e", hard=True)
        until_gone(server)


@pytest.mark.root
def test_fast_zero_is_refused_where_zeros_would_be_written(
    server: NbdServer, where: str, tmpfs: Path
) -> None:
    """tmpfs frees pages, and cannot make them zeros that stay."""
    path = tmpfs / "disk"
    path.write_bytes(b"\1" * 65536)
    with fdstash.open(path, "r+", format="raw") as image:
        server.add("e", image, writable=True)
        with Client(where) as client:
            found = client.ask(ZEROES, 0, 32768, flags=FAST_ZERO | NO_HOLE)
            assert found.error == errno.ENOTSUP
            assert client.read(65536, 0) == b"\1" * 65536
            assert client.ask(ZEROES, 0, 32768, flags=FAST_ZERO).error == 0
            assert client.ask(ZEROES, 32768, 16384, flags=NO_HOLE).error == 0
            assert client.read(65536, 0) == bytes(49152) + b"\1" * 16384
        server.close()


def test_block_status_tells_of_holes_and_data(server: NbdServer, image: Image, where: str) -> None:
    server.add("e", image, writable=True)
    with Client(where) as client:
        assert client.ask(ZEROES, 0, image.size).error == 0
        client.write(b"\1" * 65536, 65536)
        found = client.ask(BLOCK_STATUS, 0, image.size)
        assert sum(length for length, _ in found.extents) == image.size
        data = [False] * (image.size // 512)
        at = 0
        for length, bits in found.extents:
            for sector in range(at // 512, (at + length + 511) // 512):
                data[min(sector, len(data) - 1)] |= not bits & HOLE_AND_ZERO
            at += length
        assert all(data[128:256])
        one = client.ask(BLOCK_STATUS, 70000, image.size - 70000, flags=REQ_ONE)
        assert len(one.extents) == 1
        assert 0 < one.extents[0][0] <= image.size - 70000
        assert one.extents[0][1] == 0


def test_block_status_is_refused_to_who_did_not_ask_for_it(
    server: NbdServer, image: Image, where: str
) -> None:
    server.add("e", image)
    with Client(where, allocation=False) as client:
        found = client.ask(BLOCK_STATUS, 0, 4096)
        assert (found.error, found.structured) == (errno.EINVAL, True)
        assert client.read(512, 0)


def test_what_has_no_bytes_is_not_sent(server: NbdServer, tmp_path: Path, where: str) -> None:
    path = tmp_path / "disk.vmdk"
    fdstash.create(path, "vmdk", 1 << 20, subformat="monolithicSparse")
    with fdstash.open(path, "r+") as image:
        server.add("e", image, writable=True)
        with Client(where) as client:
            client.read(4096, 0)  # the first loads the table
            assert client.ask(READ, 65536, 65536).holes == [(65536, 65536)]
            found = client.ask(READ, 65536, 65536, flags=DF)
            assert (found.holes, found.data) == ([], bytes(65536))
            client.write(b"x", 65536)
            found = client.ask(READ, 65536, 65536)
            assert (found.holes, found.data) == ([], b"x" + bytes(65535))
        server.remove("e", hard=True)
        until_gone(server)


def test_trim_and_cache_are_accepted(client: Client, image: Image) -> None:
    with client:
        client.write(b"\1" * 131072 if image.size >= 131072 else b"\1" * 4096, 0)
        assert client.ask(TRIM, 0, 4096, flags=FUA).error == 0
        assert client.ask(CACHE, 0, image.size).error == 0


def test_what_was_sent_before_a_disconnect_is_done(
    server: NbdServer, raw: Image, where: str
) -> None:
    server.add("e", raw, writable=True)
    client = Client(where)
    for number in range(16):
        client.send(WRITE, number * 4096, data=bytes([number + 1]) * 4096)
    client.send(DISC)
    for _ in range(16):
        assert client.reply().error == 0
    assert client.is_closed()
    client.close()
    assert [raw.pread(1, number * 4096)[0] for number in range(16)] == list(range(1, 17))


def test_a_request_of_bad_magic_ends_the_connection(
    server: NbdServer, raw: Image, where: str
) -> None:
    server.add("e", raw, writable=True)
    with Client(where) as client, Client(where) as other:
        client.socket.sendall(b"\0" * 28)
        assert client.is_closed()
        assert other.read(512, 0) == bytes(512)


def test_two_connections_see_what_the_other_has_written(
    server: NbdServer, image: Image, where: str
) -> None:
    server.add("e", image, writable=True)
    chance = random.Random(3)
    model = bytearray(image.pread(image.size, 0))
    with Client(where) as one, Client(where) as two:
        assert one.flags & 1 << 8
        for _ in range(count(1000)):
            writer, reader = chance.sample([one, two], 2)
            offset = chance.randrange(image.size - 1)
            data = chance.randbytes(chance.randrange(1, min(9000, image.size - offset) + 1))
            writer.write(data, offset)
            model[offset : offset + len(data)] = data
            if chance.random() < 0.05:
                assert reader.ask(FLUSH).error == 0
            at = chance.randrange(image.size)
            n = min(9000, image.size - at)
            assert reader.read(n, at) == model[at : at + n]
