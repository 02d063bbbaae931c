"""The descriptors that a service manager passes in."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.usefixtures("no_descriptor_leaks")

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
