"""The sandboxes are what they claim: folders are gone, and another user has no privileges."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from fdstash import FDStash
from tests.support import kernel
from tests.support.sandbox import NOBODY, Identity, Sandbox, SandboxError, run_as, run_in_namespace

pytestmark = pytest.mark.root

_LOOK = """
import os
def attempt(call, *words):
    try:
        return call(*words)
    except OSError as error:
        return -error.errno
import socket
_, fds, _, _ = socket.recv_fds(sock, 1, 1)
result = {
    "ids": [*os.getresuid(), *os.getresgid(), *os.getgroups()],
    "capabilities": [line.split()[1] for line in open("/proc/self/status") if "CapEff" in line],
    "listing": attempt(os.listdir, args[0]),
    "read": os.pread(fds[0], 5, 0).decode(),
    "again": attempt(os.open, f"/proc/self/fd/{fds[0]}", os.O_RDONLY) >= 0,
    "writable": attempt(os.open, f"/proc/self/fd/{fds[0]}", os.O_RDWR) >= 0,
    "again_errno": attempt(os.open, f"/proc/self/fd/{fds[0]}", os.O_RDONLY),
}
"""


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "secret"
    path.write_bytes(b"bytes")
    path.chmod(0o600)
    return path


def look(
    secret: Path, hidden: Sequence[Path] = (), identity: Identity | None = None
) -> dict[str, Any]:
    fd = os.open(secret, os.O_RDWR)

    try:
        with Sandbox(_LOOK, os.fspath(secret.parent), hidden=hidden, identity=identity) as child:
            socket.send_fds(child.sock, [b"x"], [fd])
            return dict(child.result())
    finally:
        os.close(fd)


def test_in_a_namespace_the_folder_is_empty_and_descriptors_still_work(secret: Path) -> None:
    found = look(secret, hidden=[secret.parent])
    assert found["listing"] == []
    assert found["read"] == "bytes"
    assert found["again"]
    assert found["writable"]
    assert found["ids"] == [0] * 6 + os.getgroups()
    assert os.listdir(secret.parent) == ["secret"]


def test_another_user_has_only_what_was_sent(secret: Path) -> None:
    found = look(secret, identity=NOBODY)
    assert found["ids"] == [65534] * 6
    assert int(found["capabilities"][0], 16) == 0
    assert found["read"] == "bytes"
    assert found["again_errno"] == -13, "inode permission applies to /proc links too"


def test_a_readable_file_may_be_opened_again_by_another_user(secret: Path) -> None:
    secret.chmod(0o644)
    found = look(secret, identity=NOBODY)
    assert found["again"]
    assert not found["writable"]


def test_proc_itself_can_be_hidden() -> None:
    script = "import os; result = os.path.exists('/proc/self')"
    assert run_in_namespace(script, hidden=["/proc"]) is False


def test_a_stash_reaches_the_other_user_and_fdstash_is_loaded(secret: Path) -> None:
    script = """
    import os, sys
    import fdstash.reopen
    from fdstash import FDStash
    with FDStash.receive(sock) as stash:
        fd = stash.take("disk")
    result = [os.pread(fd, 5, 0).decode(), os.geteuid()]
    """
    with kernel.no_descriptor_leak(), FDStash() as stash:
        stash.give("disk", os.open(secret, os.O_RDONLY))
        assert run_as(script, send=stash.send) == ["bytes", 65534]


def sum_of(sock: socket.socket, *numbers: int) -> list[int]:
    return [sum(numbers), os.geteuid()]


def test_a_function_of_a_module_runs_there() -> None:
    assert run_as(sum_of, 1, 2) == [3, 65534]


def test_a_failing_script_says_why() -> None:
    with pytest.raises(SandboxError, match="ZeroDivisionError"):
        run_in_namespace("1 / 0", hidden=[])
    with pytest.raises(SandboxError, match="ended with 7"):
        run_in_namespace("import os; os._exit(7)", hidden=[])
    with pytest.raises(TimeoutError):
        run_as("import time; time.sleep(60)", timeout=1.5)


def test_both_sides_can_talk_while_the_script_runs() -> None:
    with Sandbox("result = sock.recv(10).decode(); sock.send(b'heard')", identity=NOBODY) as child:
        child.sock.send(b"hello")
        assert child.sock.recv(10) == b"heard"
        assert child.result() == "hello"
