"""A daemon that may open files in the test's folder, a client of it, and images to open."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fdstash.monitor import Daemon
from tests.support.disks import FlatDisk, make_flat, make_raw
from tests.support.kernel import no_descriptor_leak
from tests.support.monitor import Client, daemon_in


@pytest.fixture(autouse=True)
def _leaves_nothing() -> Iterator[None]:
    """Neither descriptors nor threads."""
    gc.collect()
    threads = set(threading.enumerate())
    with no_descriptor_leak():
        yield
        gc.collect()
    end = time.monotonic() + 5
    while (left := _ours() - threads) and time.monotonic() < end:
        time.sleep(0.01)
    assert not left


def _ours() -> set[threading.Thread]:
    return {each for each in threading.enumerate() if each.name.startswith("fdstash-monitor")}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "images"
    made.mkdir()
    return made


@pytest.fixture
def served(folder: Path) -> Iterator[tuple[Daemon, Path]]:
    with daemon_in(folder) as found:
        yield found


@pytest.fixture
def daemon(served: tuple[Daemon, Path]) -> Daemon:
    return served[0]


@pytest.fixture
def socket_path(served: tuple[Daemon, Path]) -> Path:
    return served[1]


@pytest.fixture
def client(socket_path: Path) -> Iterator[Client]:
    with Client(socket_path) as made:
        yield made


@pytest.fixture
def raw(folder: Path) -> Path:
    return make_raw(folder, 1 << 16)


@pytest.fixture
def flat(folder: Path) -> FlatDisk:
    return make_flat(folder)
