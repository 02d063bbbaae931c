"""FDStash: who owns which descriptor, at every moment and after every error."""

from __future__ import annotations

import errno
import gc
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from fdstash import ClosedError, FDStash, ImageIOError
from tests.support.kernel import is_open, same_description
from tests.support.tier import count

pytestmark = pytest.mark.usefixtures("no_descriptor_leaks")


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
