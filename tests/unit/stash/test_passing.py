"""A stash that is sent arrives whole, and stays with the sender."""

from __future__ import annotations

import fcntl
import os
import resource
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

import fdstash
from fdstash import FDStash
from tests.support.kernel import open_descriptors, same_description

pytestmark = pytest.mark.usefixtures("no_descriptor_leaks")


def send_in_thread(stash: FDStash, sock: socket.socket) -> threading.Thread:
    thread = threading.Thread(target=stash.send, args=(sock,))
    thread.start()
    return thread


def close_all(*fds: int) -> None:
    for fd in fds:
        os.close(fd)


def test_a_stash_arrives_with_its_names_order_and_descriptions(
    stash: FDStash, opened: Callable[..., int], pair: tuple[socket.socket, socket.socket]
) -> None:
    names = ["disk.vmdk", "/a b/ü/日本.vmdk", "lock:disk.vmdk", "bad\udcff"]
    for name in names:
        stash.give(name, opened())
    stash.send(pair[0])
    with FDStash.receive(pair[1]) as received:
        assert received.names() == names
        for name in names:
            mine, theirs = stash.dup(name), received.dup(name)
            assert mine != theirs
            assert same_description(mine, theirs)
            assert not os.get_inheritable(theirs)
            close_all(mine, theirs)
    assert stash.names() == names


def test_several_descriptions_of_one_name_arrive_side_by_side(
    stash: FDStash, opened: Callable[..., int], pair: tuple[socket.socket, socket.socket]
) -> None:
    path = f"/proc/self/fd/{opened()}"
    for flags in (os.O_RDONLY, os.O_RDWR, os.O_RDONLY):
        stash.add("disk", os.open(path, flags))
    stash.give("other", opened())
    stash.send(pair[0])
    with FDStash.receive(pair[1]) as received:
        assert received.names() == ["disk", "other"]
        copies = received.dup_all("disk")
        modes = [fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE for fd in copies]
        assert modes == [os.O_RDONLY, os.O_RDWR, os.O_RDONLY]
        close_all(*copies)


def test_an_empty_stash_arrives_empty(
    stash: FDStash, pair: tuple[socket.socket, socket.socket]
) -> None:
    stash.send(pair[0])
    with FDStash.receive(pair[1]) as received:
        assert received.names() == []


def test_stashes_sent_one_after_the_other_arrive_one_by_one(
    opened: Callable[..., int], pair: tuple[socket.socket, socket.socket]
) -> None:
    for number in range(3):
        with FDStash() as stash:
            for i in range(number):
                stash.give(f"{number}-{i}", opened())
            stash.send(pair[0])
    pair[0].sendall(b"what follows")
    for number in range(3):
        with FDStash.receive(pair[1]) as received:
            assert received.names() == [f"{number}-{i}" for i in range(number)]
    assert pair[1].recv(100) == b"what follows"


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    fdstash.raise_nofile(5000)
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.usefixtures("many_descriptors")
def test_a_thousand_descriptors_arrive_each_under_its_name(
    stash: FDStash, opened: Callable[..., int], pair: tuple[socket.socket, socket.socket]
) -> None:
    folder = os.path.dirname(os.readlink(f"/proc/self/fd/{opened()}"))
    for i in range(1000):
        name = f"extent-{i:04}"
        path = os.path.join(folder, name)
        stash.give(name, os.open(path, os.O_RDWR | os.O_CREAT))
    sender = send_in_thread(stash, pair[0])
    with FDStash.receive(pair[1]) as received:
        sender.join()
        assert received.names() == stash.names()
        for i in range(1000):
            fd = received.take(f"extent-{i:04}")
            assert os.readlink(f"/proc/self/fd/{fd}").endswith(f"/extent-{i:04}")
            os.close(fd)


def test_a_receiver_that_is_gone_is_an_error_and_the_stash_keeps_what_it_held(
    stash: FDStash, opened: Callable[..., int], pair: tuple[socket.socket, socket.socket]
) -> None:
    fd = opened()
    stash.give("disk", fd)
    pair[1].close()
    before = open_descriptors()
    with pytest.raises(BrokenPipeError):
        stash.send(pair[0])
    assert open_descriptors().keys() == before.keys()
    assert stash.take("disk") == fd


def test_a_slow_receiver_gets_all(
    stash: FDStash, opened: Callable[..., int], pair: tuple[socket.socket, socket.socket]
) -> None:
    pair[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4608)
    names = [f"{i:03}" + "x" * 2000 for i in range(150)]
    for name in names:
        stash.add(name, opened())
    sender = send_in_thread(stash, pair[0])
    time.sleep(0.05)
    with FDStash.receive(pair[1]) as received:
        sender.join()
        assert received.names() == names
