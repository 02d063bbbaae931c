"""Descriptors that clients pass in: named, in sets, and none of them leaked."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from fdstash.monitor import Daemon
from tests.support.disks import FlatDisk, make_raw, noise
from tests.support.kernel import descriptors_left, open_descriptors
from tests.support.monitor import Client, daemon_in, file_options, image_of
from tests.support.seen import image_descriptors
from tests.support.tier import count

SIZE = 1 << 16


@pytest.fixture
def served(tmp_path: Path, folder: Path) -> Iterator[tuple[Daemon, Path]]:
    """A daemon that may open nothing by a path."""
    with daemon_in(tmp_path, allow_folders=()) as found:
        yield found


def settled(paths: list[Path], wanted: int) -> bool:
    """Whether that many descriptors lead to the files, once what was sent has been read."""
    return len(image_descriptors(*paths)) == wanted


# -- getfd and closefd


def test_getfd_takes_the_descriptor_that_came_before_it(client: Client, raw: Path) -> None:
    client.getfd("disk", raw)
    assert settled([raw], 1)
    client.execute("closefd", fdname="disk")
    assert settled([raw], 0)


def test_a_descriptor_may_come_with_the_command_itself(client: Client, raw: Path) -> None:
    fd = os.open(raw, os.O_RDONLY)
    client.send(b'{"execute": "getfd", "arguments": {"fdname": "disk"}}', [fd])
    os.close(fd)
    assert client.answer() == {"return": {}}
    assert settled([raw], 1)


def test_a_descriptor_waits_for_the_next_command_that_takes_one(client: Client, raw: Path) -> None:
    fd = os.open(raw, os.O_RDONLY)
    client.pass_fd(fd)
    os.close(fd)
    client.execute("query-version")
    client.refusal("blockdev-del", node_name="none")
    client.execute("getfd", fdname="disk")
    assert settled([raw], 1)


def test_several_at_once_give_the_first_and_close_the_rest(client: Client, raw: Path) -> None:
    fds = [os.open(raw, os.O_RDONLY) for _ in range(5)]
    client.pass_fd(*fds)
    for fd in fds:
        os.close(fd)
    client.execute("getfd", fdname="disk")
    assert settled([raw], 1)
    assert "SCM_RIGHTS" in client.refusal("getfd", fdname="other").desc


def test_the_same_name_closes_and_replaces(client: Client, raw: Path, folder: Path) -> None:
    other = make_raw(folder, SIZE, name="other.img")
    client.getfd("disk", raw)
    client.getfd("disk", other)
    assert settled([raw], 0)
    assert settled([other], 1)


@pytest.mark.parametrize("name", ["", "1disk", "٣disk"])
def test_a_name_must_not_start_with_a_digit(client: Client, raw: Path, name: str) -> None:
    fd = os.open(raw, os.O_RDONLY)
    client.pass_fd(fd)
    os.close(fd)
    error = client.refusal("getfd", fdname=name)
    assert error.desc == "Parameter 'fdname' expects a name not starting with a digit"
    assert settled([raw], 0)


def test_without_a_descriptor_getfd_says_so(client: Client) -> None:
    error = client.refusal("getfd", fdname="disk")
    assert error.desc == "No file descriptor supplied via SCM_RIGHTS"
    error = client.refusal("closefd", fdname="disk")
    assert error.desc == "File descriptor named 'disk' not found"


def test_a_name_is_one_clients_own(tmp_path: Path, raw: Path) -> None:
    with (
        daemon_in(tmp_path, allow_folders=()) as (_, path),
        Client(path) as one,
        Client(path) as two,
    ):
        one.getfd("disk", raw)
        assert "not found" in two.refusal("closefd", fdname="disk").desc
        one.execute("closefd", fdname="disk")


def test_what_a_client_leaves_behind_is_closed(tmp_path: Path, raw: Path) -> None:
    with daemon_in(tmp_path, allow_folders=()) as (daemon, path):
        with Client(path) as one:
            one.getfd("disk", raw)
            fd = os.open(raw, os.O_RDONLY)
            one.pass_fd(fd)
            os.close(fd)
            one.execute("query-version")
            assert settled([raw], 2)
        for session in list(daemon._sessions):
            session.thread.join(10)
        assert settled([raw], 0)


# -- thousands


def test_descriptors_that_do_not_fit_are_an_error_and_all_are_closed(
    client: Client, raw: Path
) -> None:
    fds = [os.open(raw, os.O_RDONLY) for _ in range(40)]
    before = len(open_descriptors())
    with descriptors_left(10):
        client.pass_fd(*fds)
        error = client.refusal("getfd", fdname="disk")
    assert "MSG_CTRUNC" in error.desc
    assert len(open_descriptors()) == before
    for fd in fds:
        os.close(fd)
    client.getfd("disk", raw)
    client.execute("closefd", fdname="disk")


def test_a_thousand_descriptors_leave_one_and_a_thousand_names_what_is_allowed(
    tmp_path: Path, raw: Path
) -> None:
    with daemon_in(tmp_path, max_descriptors=30) as (_, path), Client(path) as client:
        fd = os.open(raw, os.O_RDONLY)
        for _ in range(count(80)):
            client.send(b" ", [fd] * 250)
        client.execute("query-version")
        os.close(fd)
        assert settled([raw], 250)
        client.execute("getfd", fdname="disk")
        assert settled([raw], 1)
        for number in range(29):
            client.getfd(f"disk{number}", raw)
        for number in range(29, 1000):
            fd = os.open(raw, os.O_RDONLY)
            client.pass_fd(fd)
            os.close(fd)
            assert "30 descriptors" in client.refusal("getfd", fdname=f"disk{number}").desc
        assert settled([raw], 30)
        client.getfd("disk0", raw)
        for _ in range(30):
            client.add_fd(raw)
        fd = os.open(raw, os.O_RDONLY)
        client.pass_fd(fd)
        os.close(fd)
        assert "30 descriptors" in client.refusal("add-fd").desc
        assert settled([raw], 60)


# -- sets


def test_sets_get_the_lowest_free_number(client: Client, raw: Path) -> None:
    assert [client.add_fd(raw)["fdset-id"] for _ in range(3)] == [0, 1, 2]
    client.execute("remove-fd", fdset_id=1)
    assert client.add_fd(raw, fdset_id=7)["fdset-id"] == 7
    assert client.add_fd(raw)["fdset-id"] == 1
    assert client.add_fd(raw)["fdset-id"] == 3


def test_sets_are_told_and_their_members_removed_one_by_one(client: Client, raw: Path) -> None:
    one = client.add_fd(raw, fdset_id=4, opaque="rdwr:disk")
    two = client.add_fd(raw, fdset_id=4)
    assert client.execute("query-fdsets") == [
        {"fdset-id": 4, "fds": [{"fd": one["fd"], "opaque": "rdwr:disk"}, {"fd": two["fd"]}]}
    ]
    client.execute("remove-fd", fdset_id=4, fd=one["fd"])
    assert settled([raw], 1)
    error = client.refusal("remove-fd", fdset_id=4, fd=one["fd"])
    assert error.desc == f"File descriptor named 'fdset-id:4, fd:{one['fd']}' not found"
    client.execute("remove-fd", fdset_id=4, fd=two["fd"])
    assert client.execute("query-fdsets") == []
    assert client.refusal("remove-fd", fdset_id=4).desc == (
        "File descriptor named 'fdset-id:4' not found"
    )


def test_a_negative_number_is_none(client: Client, raw: Path) -> None:
    fd = os.open(raw, os.O_RDONLY)
    client.pass_fd(fd)
    os.close(fd)
    error = client.refusal("add-fd", fdset_id=-1)
    assert error.desc == "Parameter 'fdset-id' expects a non-negative value"
    assert settled([raw], 0)
    assert client.refusal("add-fd").desc == "No file descriptor supplied via SCM_RIGHTS"


def test_sets_are_for_all_clients_and_end_with_the_last_unless_an_image_uses_them(
    tmp_path: Path, raw: Path
) -> None:
    with daemon_in(tmp_path, allow_folders=()) as (daemon, path):
        with Client(path) as one, Client(path) as two:
            one.add_fd(raw)
            one.add_fd(raw)
            two.execute(
                "blockdev-add", driver="raw", node_name="disk", file=file_options("/dev/fdset/0")
            )
        for session in list(daemon._sessions):
            session.thread.join(10)
        assert [each["fdset-id"] for each in daemon.sets.query()] == [0]


# -- images


MODES = [("r", False), ("r+", False), ("r", True), ("r+", True)]


@pytest.mark.parametrize("route", ["getfd", "add-fd", "opaque"])
def test_every_file_of_an_image_can_come_as_a_descriptor(
    client: Client, flat: FlatDisk, route: str, daemon: Daemon
) -> None:
    options = pass_in(client, flat, route, os.O_RDWR)
    client.execute("blockdev-add", driver="vmdk", node_name="disk", **options)
    image = image_of(daemon, "disk")
    assert image.pread(image.size, 0) == flat.guest_bytes()
    image.pwrite(b"written", 12345)
    image.flush()
    assert flat.guest_bytes()[12345:12352] == b"written"
    for mode, direct in MODES:
        flags = (os.O_RDWR if mode == "r+" else os.O_RDONLY) | (os.O_DIRECT if direct else 0)
        options = pass_in(client, flat, route, flags)
        node = {
            "driver": "vmdk",
            "node-name": "disk",
            "read-only": mode == "r",
            "cache": {"direct": direct},
            **options,
        }
        client.execute("blockdev-reopen", options=[node])
        assert {(file.mode, file.direct) for file in image.files} == {(mode, direct)}
        assert image.pread(image.size, 0) == flat.guest_bytes()


def test_the_last_client_goes_while_an_image_is_open_on_sets(
    flat: FlatDisk, daemon: Daemon, socket_path: Path
) -> None:
    with Client(socket_path) as client:
        options = pass_in(client, flat, "add-fd", os.O_RDWR)
        client.execute("blockdev-add", driver="vmdk", node_name="disk", **options)
        client.add_fd(flat.path, fdset_id=99)
        (session,) = daemon._sessions
    # An exception of its thread fails the test.
    session.thread.join(20)
    assert not session.thread.is_alive()
    with Client(socket_path) as client:
        sets = {each["fdset-id"] for each in client.execute("query-fdsets")}
        assert 10 in sets
        assert 99 not in sets
        client.execute("block_set_hostcache", node_name="disk", hostcache=False)
        image = image_of(daemon, "disk")
        assert {(file.mode, file.direct) for file in image.files} == {("r+", True)}


def pass_in(client: Client, flat: FlatDisk, route: str, flags: int) -> dict[str, object]:
    """Pass every file; the options by which the daemon finds them."""
    if route == "getfd":
        for path in flat.files:
            client.getfd(path.name, path, flags)
        return {"file": file_options(flat.path.name)}
    for number, path in enumerate(flat.files):
        opaque = {"opaque": f"rdwr:{path}"} if route == "opaque" else {}
        client.add_fd(path, flags, fdset_id=10 + number, **opaque)
    if route == "opaque":
        return {"file": file_options(flat.path)}
    extents = [file_options(f"/dev/fdset/{11 + n}") for n in range(len(flat.files) - 1)]
    return {"file": file_options("/dev/fdset/10"), "extents": extents}


def test_a_set_that_lacks_a_mode_is_completed(client: Client, raw: Path, daemon: Daemon) -> None:
    client.add_fd(raw, os.O_RDONLY)
    file = file_options("/dev/fdset/0")
    client.execute("blockdev-add", driver="raw", node_name="disk", file=file)
    (info,) = image_of(daemon, "disk").files
    assert (info.mode, info.direct) == ("r+", False)


def test_a_set_that_is_not_there_is_told_with_its_number(client: Client) -> None:
    error = client.refusal(
        "blockdev-add", driver="raw", node_name="disk", file=file_options("/dev/fdset/5")
    )
    assert error.desc == (
        "Could not open '/dev/fdset/5': No such file or directory: there is no set 5; pass its"
        " descriptors with add-fd"
    )
    error = client.refusal(
        "blockdev-add", driver="raw", node_name="disk", file=file_options("/dev/fdset/x")
    )
    assert "names no set" in error.desc


def test_the_descriptor_of_an_extent_that_was_not_passed_is_named(
    client: Client, flat: FlatDisk
) -> None:
    for path in flat.files[:-1]:
        client.getfd(path.name, path)
    error = client.refusal(
        "blockdev-add", driver="vmdk", node_name="disk", file=file_options(flat.path.name)
    )
    assert flat.files[-1].name in error.desc
    assert "pass its descriptor" in error.desc
    assert settled(flat.files, len(flat.files) - 1)


def test_a_descriptor_that_cannot_serve_is_refused_when_it_is_used(
    client: Client, raw: Path
) -> None:
    client.getfd("disk", raw, os.O_RDWR | os.O_APPEND)
    error = client.refusal("blockdev-add", driver="raw", node_name="d", file=file_options("disk"))
    assert "O_APPEND" in error.desc
    read, write = os.pipe()
    client.pass_fd(read)
    client.execute("getfd", fdname="pipe")
    client.refusal("blockdev-add", driver="raw", node_name="d", file=file_options("pipe"))
    os.close(read)
    os.close(write)


def test_reopens_go_on_with_what_was_passed_after_the_client_has_gone(
    tmp_path: Path, raw: Path
) -> None:
    with daemon_in(tmp_path, allow_folders=()) as (daemon, path):
        with Client(path) as one:
            one.getfd("disk", raw)
            one.execute("blockdev-add", driver="raw", node_name="d", file=file_options("disk"))
        for session in list(daemon._sessions):
            session.thread.join(10)
        raw.rename(raw.with_name("elsewhere"))
        with Client(path) as two:
            for read_only in (True, False):
                node = {"driver": "raw", "node-name": "d", "read-only": read_only}
                node["file"] = file_options("disk")
                two.execute("blockdev-reopen", options=[node])
                assert two.nodes()["d"]["ro"] is read_only
        assert image_of(daemon, "d").pread(SIZE, 0) == noise(SIZE, 1)
