"""FDStash: who owns which descriptor, at every moment and after every error."""

from __future__ import annotations

import array
import errno
import fcntl
import gc
import itertools
import os
import resource
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import fdstash
from fdstash import ClosedError, FDStash, ImageIOError
from tests.support.kernel import open_descriptors, same_description
from tests.support.tier import count

pytestmark = pytest.mark.usefixtures("no_descriptor_leaks")

HEADER = struct.Struct(">II")


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError as error:
        assert error.errno == errno.EBADF
        return False
    return True


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Callable[..., int]]:
    """Opens a fresh file; what is still open at the end is closed."""
    made: list[tuple[int, int]] = []

    def make(flags: int = os.O_RDWR) -> int:
        fd = os.open(tmp_path / f"file{len(made)}", flags | os.O_CREAT)
        made.append((fd, os.fstat(fd).st_ino))
        return fd

    yield make
    for fd, inode in made:
        if is_open(fd) and os.fstat(fd).st_ino == inode:
            os.close(fd)


@pytest.fixture
def stash() -> Iterator[FDStash]:
    with FDStash() as made:
        yield made


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    a, b = socket.socketpair()
    with a, b:
        b.settimeout(20)
        yield a, b


# ------------------------------------------------------------------ ownership


def test_take_hands_over_the_very_descriptor_that_was_given(
    stash: FDStash, opened: Callable[..., int]
) -> None:
    fd = opened()
    stash.give("disk", fd)
    assert stash.take("disk") == fd
    assert is_open(fd)
    stash.close()
    assert is_open(fd)


def test_take_of_a_name_that_is_not_held_is_file_not_found(stash: FDStash) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        stash.take("nothing")
    assert isinstance(caught.value, ImageIOError)
    assert caught.value.errno == errno.ENOENT
    assert caught.value.filename == "nothing"
    with pytest.raises(FileNotFoundError):
        stash.dup("nothing")
    assert stash.dup_all("nothing") == []


def test_a_name_can_be_taken_once(stash: FDStash, opened: Callable[..., int]) -> None:
    stash.give("disk", opened())
    stash.take("disk")
    with pytest.raises(FileNotFoundError):
        stash.take("disk")
    assert "disk" not in stash


def test_give_closes_and_replaces_all_that_the_name_held(
    stash: FDStash, opened: Callable[..., int]
) -> None:
    first, second, other, third = opened(), opened(), opened(), opened()
    stash.give("disk", first)
    stash.add("disk", second)
    stash.give("other", other)
    stash.give("disk", third)
    assert not is_open(first)
    assert not is_open(second)
    assert is_open(other)
    assert stash.take("disk") == third
    assert len(stash) == 1


def test_add_keeps_descriptors_side_by_side_and_take_gives_the_oldest(
    stash: FDStash, opened: Callable[..., int]
) -> None:
    fds = [opened() for _ in range(5)]
    for fd in fds:
        stash.add("disk", fd)
    assert len(stash) == 1
    assert [stash.take("disk") for _ in fds] == fds
    assert len(stash) == 0


def test_a_dup_is_the_callers_and_shares_the_description(
    stash: FDStash, opened: Callable[..., int]
) -> None:
    fd = opened()
    stash.give("disk", fd)
    copy = stash.dup("disk")
    assert copy != fd
    assert same_description(fd, copy)
    stash.close()
    assert not is_open(fd)
    assert is_open(copy)
    os.close(copy)


def test_dup_all_gives_every_description_oldest_first(
    stash: FDStash, opened: Callable[..., int]
) -> None:
    fds = [opened() for _ in range(9)]
    for fd in fds:
        stash.add("disk", fd)
    copies = stash.dup_all("disk")
    assert len(copies) == len(fds)
    assert all(same_description(*pair) for pair in zip(fds, copies, strict=True))
    for copy in copies:
        os.close(copy)


def test_descriptors_that_a_stash_makes_are_not_inherited(
    stash: FDStash, opened: Callable[..., int]
) -> None:
    stash.give("disk", opened())
    for copy in (stash.dup("disk"), *stash.dup_all("disk")):
        assert not os.get_inheritable(copy)
        os.close(copy)


def test_close_closes_every_descriptor_and_twice_is_nothing(
    stash: FDStash, opened: Callable[..., int]
) -> None:
    fds = [opened() for _ in range(20)]
    for i, fd in enumerate(fds):
        stash.add(f"disk{i % 7}", fd)
    stash.close()
    stash.close()
    assert not any(map(is_open, fds))


def test_leaving_the_context_closes_also_on_an_exception(opened: Callable[..., int]) -> None:
    fd = opened()

    def fail() -> None:
        with FDStash() as stash:
            stash.give("disk", fd)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert not is_open(fd)


def test_a_stash_that_nobody_closed_closes_when_it_is_collected(opened: Callable[..., int]) -> None:
    fd = opened()
    stash = FDStash()
    stash.give("disk", fd)
    del stash
    gc.collect()
    assert not is_open(fd)


def test_every_call_after_close_is_a_closed_error_and_the_caller_keeps_the_descriptor(
    stash: FDStash, opened: Callable[..., int], pair: tuple[socket.socket, socket.socket]
) -> None:
    fd = opened()
    stash.close()
    calls: list[Callable[[], object]] = [
        lambda: stash.give("disk", fd),
        lambda: stash.add("disk", fd),
        lambda: stash.take("disk"),
        lambda: stash.dup("disk"),
        lambda: stash.dup_all("disk"),
        stash.names,
        lambda: len(stash),
        lambda: "disk" in stash,
        lambda: stash.send(pair[0]),
        stash.__enter__,
    ]
    for call in calls:
        with pytest.raises(ClosedError):
            call()
    assert is_open(fd)
    assert repr(stash) == "<FDStash closed>"


@pytest.mark.parametrize("name", ["", "a\0b"])
def test_a_descriptor_given_under_an_impossible_name_stays_the_callers(
    stash: FDStash, opened: Callable[..., int], name: str
) -> None:
    fd = opened()
    for call in (stash.give, stash.add):
        with pytest.raises(ImageIOError) as caught:
            call(name, fd)
        assert caught.value.errno == errno.EINVAL
    assert is_open(fd)
    assert len(stash) == 0


@pytest.mark.parametrize("name", ["", "a\0b", 5, None, b"disk"])
def test_what_can_be_no_name_is_not_in_a_stash(
    stash: FDStash, opened: Callable[..., int], name: object
) -> None:
    stash.give("disk", opened())
    assert name not in stash


def test_giving_a_number_that_is_not_open_changes_nothing(
    stash: FDStash, opened: Callable[..., int]
) -> None:
    fd = opened()
    stash.give("disk", fd)
    closed = os.dup(fd)
    os.close(closed)
    for number in (closed, -1):
        for call in (stash.give, stash.add):
            with pytest.raises(ImageIOError) as caught:
                call("disk", number)
            assert caught.value.errno == errno.EBADF
    assert stash.take("disk") == fd


def test_names_come_in_the_order_in_which_they_were_given(
    stash: FDStash, opened: Callable[..., int]
) -> None:
    for name in ("b", "a", "ü/日本.vmdk", "c", "bad\udcff"):
        stash.give(name, opened())
    stash.add("a", opened())
    assert stash.names() == ["b", "a", "ü/日本.vmdk", "c", "bad\udcff"]
    assert len(stash) == 5
    assert "bad\udcff" in stash
    assert "d" not in stash
    assert repr(stash) == f"<FDStash {stash.names()!r}>"


def test_a_number_below_three_is_moved_up_and_the_old_one_is_closed(tmp_path: Path) -> None:
    code = """
import os, sys
from fdstash import FDStash
os.close(0)
fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
assert fd == 0
with FDStash() as stash:
    stash.give("disk", fd)
    try:
        os.fstat(0)
    except OSError:
        pass
    else:
        sys.exit("0 is still open")
    assert stash.dup("disk") >= 3
    assert stash.take("disk") >= 3
"""
    path = str(tmp_path / "file")
    subprocess.run([sys.executable, "-c", code, path], check=True, timeout=60)


def test_a_number_below_three_that_cannot_be_moved_stays_the_callers(tmp_path: Path) -> None:
    code = """
import errno, os, resource, sys
from fdstash import FDStash, ImageIOError
stash = FDStash()
os.close(0)
fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
assert fd == 0
resource.setrlimit(resource.RLIMIT_NOFILE, (3, 4096))
for call in stash.give, stash.add:
    try:
        call("disk", fd)
    except ImageIOError as error:
        assert error.errno in (errno.EMFILE, errno.EINVAL), error
    else:
        sys.exit("moved beyond the limit")
os.fstat(0)
assert len(stash) == 0
"""
    path = str(tmp_path / "file")
    subprocess.run([sys.executable, "-c", code, path], check=True, timeout=60)


@pytest.mark.threads
def test_threads_neither_lose_nor_close_a_descriptor_twice(opened: Callable[..., int]) -> None:
    stash = FDStash()
    source = opened()
    inode = os.fstat(source).st_ino
    wrong: list[object] = []

    def work(number: int) -> None:
        for i in range(count(20_000)):
            name = f"n{(i + number) % 5}"
            try:
                if i % 3 == 0:
                    stash.give(name, os.dup(source))
                elif i % 3 == 1:
                    stash.add(name, os.dup(source))
                fd = stash.dup(name) if i % 2 else stash.take(name)
            except FileNotFoundError:
                continue
            if os.fstat(fd).st_ino != inode:
                wrong.append(fd)
            os.close(fd)
            stash.names()

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    stash.close()


# ----------------------------------------------------------- send and receive


def send_in_thread(stash: FDStash, sock: socket.socket) -> threading.Thread:
    thread = threading.Thread(target=stash.send, args=(sock,))
    thread.start()
    return thread


def close_stash(*stashes: FDStash) -> None:
    for stash in stashes:
        stash.close()


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
            close_both(mine, theirs)
    assert stash.names() == names


def close_both(*fds: int) -> None:
    for fd in fds:
        os.close(fd)


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
        close_both(*copies)


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


def send_by_hand(
    sock: socket.socket, data: bytes, fds: list[int] | None = None, level: int = socket.SOL_SOCKET
) -> None:
    ancillary = [(level, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    assert sock.sendmsg([data], ancillary) == len(data)


def test_more_descriptors_than_were_made_room_for_are_an_error_and_leak_nothing(
    opened: Callable[..., int], pair: tuple[socket.socket, socket.socket]
) -> None:
    fd = opened()
    names = b"n\0" * 200
    send_by_hand(pair[0], HEADER.pack(200, len(names)), [fd] * 200)
    pair[0].sendall(names + HEADER.pack(0, 0))
    before = open_descriptors()
    with pytest.raises(ImageIOError) as caught:
        FDStash.receive(pair[1])
    assert caught.value.errno == errno.EMSGSIZE
    assert open_descriptors().keys() == before.keys()


def test_a_limit_on_descriptors_that_cuts_some_off_is_an_error_and_leaks_nothing(
    stash: FDStash, opened: Callable[..., int], pair: tuple[socket.socket, socket.socket]
) -> None:
    for i in range(10):
        stash.give(f"disk{i}", opened())
    stash.send(pair[0])
    before = open_descriptors()
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = (number for number in itertools.count() if number not in before)
    sixth = next(itertools.islice(free, 5, None))
    resource.setrlimit(resource.RLIMIT_NOFILE, (sixth, limits[1]))
    try:
        with pytest.raises(ImageIOError) as caught:
            FDStash.receive(pair[1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert caught.value.errno == errno.EMSGSIZE
    assert open_descriptors().keys() == before.keys()


NAMES = b"one\0two\0"


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
    before = open_descriptors()
    with pytest.raises(ImageIOError) as caught:
        FDStash.receive(pair[1])
    assert caught.value.errno == errno.ECONNRESET
    assert isinstance(caught.value, ConnectionResetError)
    assert open_descriptors().keys() == before.keys()


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
    before = open_descriptors()
    with pytest.raises(ImageIOError) as caught:
        FDStash.receive(pair[1])
    assert caught.value.errno == errno.EPROTO
    assert open_descriptors().keys() == before.keys()


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


# --------------------------------------------------------- a service manager

LISTEN = """
import os, sys
import fdstash
from fdstash import FDStash

def pass_in(numbers, **environment):
    for number in range(3, 3 + numbers):
        fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
        if fd != number:
            os.dup2(fd, number)
            os.close(fd)
        os.set_inheritable(number, True)
    os.environ.update(environment)

me = str(os.getpid())
"""


def in_a_service(code: str, tmp_path: Path) -> None:
    command = [sys.executable, "-c", LISTEN + code, str(tmp_path / "file")]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("LISTEN_")}
    subprocess.run(command, check=True, timeout=60, env=environment)


def test_descriptors_from_a_service_manager_are_held_under_their_names(tmp_path: Path) -> None:
    in_a_service(
        """
pass_in(4, LISTEN_PID=me, LISTEN_FDS="4", LISTEN_FDNAMES="disk:lock\\xfc:disk")
stash = FDStash.from_listen_fds()
assert stash.names() == ["disk", "lock\\xfc", "unknown"], stash.names()
assert not any(name.startswith("LISTEN_") for name in os.environ)
assert not any(map(os.get_inheritable, range(3, 7)))
assert [stash.take("disk"), stash.take("disk")] == [3, 5]
assert stash.take("unknown") == 6
stash.close()
try:
    os.fstat(4)
except OSError:
    pass
else:
    sys.exit("the stash did not own it")
""",
        tmp_path,
    )


def test_descriptors_for_another_process_are_left_alone(tmp_path: Path) -> None:
    in_a_service(
        """
pass_in(2, LISTEN_PID=str(os.getppid()), LISTEN_FDS="2", LISTEN_FDNAMES="a:b")
stash = FDStash.from_listen_fds()
assert stash.names() == []
stash.close()
os.fstat(3), os.fstat(4)
assert os.get_inheritable(3)
""",
        tmp_path,
    )


def test_without_a_service_manager_the_stash_is_empty(tmp_path: Path) -> None:
    in_a_service("assert FDStash.from_listen_fds().names() == []", tmp_path)


def test_descriptors_of_a_service_manager_are_taken_once(tmp_path: Path) -> None:
    in_a_service(
        """
pass_in(1, LISTEN_PID=me, LISTEN_FDS="1")
first = FDStash.from_listen_fds()
assert first.names() == ["unknown"]
assert FDStash.from_listen_fds().names() == []
""",
        tmp_path,
    )


@pytest.mark.parametrize("text", ["x", "-1", "", "1e3"])
def test_a_count_that_is_none_is_an_error(tmp_path: Path, text: str) -> None:
    in_a_service(
        f"""
pass_in(1, LISTEN_PID=me, LISTEN_FDS={text!r})
try:
    FDStash.from_listen_fds()
except fdstash.ImageIOError as error:
    assert error.errno == 22
else:
    sys.exit("taken")
os.fstat(3)
""",
        tmp_path,
    )


def test_listen_fds_that_are_not_open_are_an_error(tmp_path: Path) -> None:
    in_a_service(
        """
pass_in(2, LISTEN_PID=me, LISTEN_FDS="300")
try:
    FDStash.from_listen_fds()
except fdstash.ImageIOError as error:
    assert error.errno == 9, error
else:
    sys.exit("taken")
""",
        tmp_path,
    )
