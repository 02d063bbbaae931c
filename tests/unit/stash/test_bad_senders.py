"""What no honest sender sends is refused, and no descriptor of it is kept."""

from __future__ import annotations

import array
import errno
import itertools
import resource
import socket
import struct
from collections.abc import Callable

import pytest

from fdstash import FDStash, ImageIOError
from tests.support.kernel import open_descriptors

pytestmark = pytest.mark.usefixtures("no_descriptor_leaks")

HEADER = struct.Struct(">II")
NAMES = b"one\0two\0"


def send_by_hand(sock: socket.socket, data: bytes, fds: list[int]) -> None:
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    assert sock.sendmsg([data], rights) == len(data)


def refused(sock: socket.socket) -> ImageIOError:
    """With what a receive fails, which must leave no descriptor behind."""
    before = open_descriptors()
    with pytest.raises(ImageIOError) as caught:
        FDStash.receive(sock)
    assert open_descriptors().keys() == before.keys()
    return caught.value


def test_more_descriptors_than_were_made_room_for_are_an_error_and_leak_nothing(
    opened: Callable[..., int], pair: tuple[socket.socket, socket.socket]
) -> None:
    fd = opened()
    names = b"n\0" * 200
    send_by_hand(pair[0], HEADER.pack(200, len(names)), [fd] * 200)
    pair[0].sendall(names + HEADER.pack(0, 0))
    assert refused(pair[1]).errno == errno.EMSGSIZE


def test_a_limit_on_descriptors_that_cuts_some_off_is_an_error_and_leaks_nothing(
    stash: FDStash, opened: Callable[..., int], pair: tuple[socket.socket, socket.socket]
) -> None:
    for i in range(10):
        stash.give(f"disk{i}", opened())
    stash.send(pair[0])
    held = open_descriptors()
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = (number for number in itertools.count() if number not in held)
    sixth = next(itertools.islice(free, 5, None))
    resource.setrlimit(resource.RLIMIT_NOFILE, (sixth, limits[1]))
    try:
        error = refused(pair[1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert error.errno == errno.EMSGSIZE


@pytest.mark.parametrize(
    "parts",
    [
        pytest.param([], id="nothing"),
        pytest.param([(HEADER.pack(2, len(NAMES))[:3], 2)], id="half a header, descriptors"),
        pytest.param([(HEADER.pack(2, len(NAMES)), 2)], id="no names"),
        pytest.param([(HEADER.pack(2, len(NAMES)), 2), (NAMES[:5], 0)], id="half the names"),
        pytest.param([(HEADER.pack(2, len(NAMES)) + NAMES, 2)], id="no end"),
        pytest.param(
            [(HEADER.pack(2, len(NAMES)) + NAMES, 2), (HEADER.pack(0, 0)[:7], 0)], id="half an end"
        ),
    ],
)
def test_a_sender_that_dies_half_way_is_an_error_and_leaks_nothing(
    opened: Callable[..., int],
    pair: tuple[socket.socket, socket.socket],
    parts: list[tuple[bytes, int]],
) -> None:
    fd = opened()
    for data, descriptors in parts:
        send_by_hand(pair[0], data, [fd] * descriptors)
    pair[0].close()
    error = refused(pair[1])
    assert error.errno == errno.ECONNRESET
    assert isinstance(error, ConnectionResetError)


def test_a_sender_that_falls_silent_is_a_timeout_and_leaks_nothing(
    opened: Callable[..., int], pair: tuple[socket.socket, socket.socket]
) -> None:
    send_by_hand(pair[0], HEADER.pack(2, len(NAMES)) + NAMES[:5], [opened()] * 2)
    pair[1].settimeout(0.1)
    before = open_descriptors()
    with pytest.raises(TimeoutError):
        FDStash.receive(pair[1])
    assert open_descriptors().keys() == before.keys()


@pytest.mark.parametrize(
    ("data", "descriptors"),
    [
        pytest.param(b"GET / HTTP/1.1\r\n\r\n", 0, id="another protocol"),
        pytest.param(bytes(4096), 1, id="an end that carries a descriptor"),
        pytest.param(HEADER.pack(0, 5) + b"hello", 0, id="an end with names"),
        pytest.param(HEADER.pack(1, 2) + b"a\0", 0, id="a name without a descriptor"),
        pytest.param(HEADER.pack(1, 2) + b"a\0", 2, id="a descriptor without a name"),
        pytest.param(HEADER.pack(2, 4) + b"a\0b\0", 1, id="too few descriptors"),
        pytest.param(HEADER.pack(1, 1) + b"\0", 1, id="an empty name"),
        pytest.param(HEADER.pack(2, 3) + b"a\0\0", 2, id="an empty name among others"),
        pytest.param(HEADER.pack(1, 4) + b"a\0b\0", 1, id="too many names"),
        pytest.param(HEADER.pack(1, 6) + b"a\0junk", 1, id="bytes after the last name"),
        pytest.param(HEADER.pack(1, 1) + b"a", 1, id="a name that does not end"),
        pytest.param(HEADER.pack(1, 0xFFFFFFFF), 1, id="names of 4 GiB"),
        pytest.param(HEADER.pack(0xFFFFFFFF, 2) + b"a\0", 1, id="four billion descriptors"),
        pytest.param(bytes([255]) * 4096, 3, id="ones"),
    ],
)
def test_garbage_is_refused_and_leaks_nothing(
    opened: Callable[..., int],
    pair: tuple[socket.socket, socket.socket],
    data: bytes,
    descriptors: int,
) -> None:
    send_by_hand(pair[0], data, [opened()] * descriptors)
    # Were it taken for the beginning of something, this would end it well.
    pair[0].sendall(HEADER.pack(0, 0))
    assert refused(pair[1]).errno == errno.EPROTO
