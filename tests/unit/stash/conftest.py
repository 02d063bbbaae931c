"""Fixtures of tests/unit/stash, asked for by name."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.kernel import is_open


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
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    a, b = socket.socketpair()
    with a, b:
        b.settimeout(20)
        yield a, b
