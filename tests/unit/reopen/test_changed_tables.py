"""Entries of cluster tables that are not on disk yet, and a reopen that comes meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fdstash import Image, needs
from tests.support.sparse_files import guest_bytes, sparse_trouble
from tests.support.thread_disk import Disk

pytestmark = pytest.mark.usefixtures("no_descriptor_leaks")

GRAIN = 64 << 10


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    made = Disk(tmp_path, "delta")
    made.close()  # the stash
    return made


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("write", lambda image: image.pwrite(b"w" * GRAIN, 0)),
        ("zero", lambda image: image.zero(GRAIN, 0)),
        ("trim", lambda image: image.trim(GRAIN, 0)),
        ("flush", lambda image: image.flush()),
    ],
)
def test_a_request_that_needs_the_map_takes_the_one_after_a_reopen(
    name: str, change: Callable[[Image], object], disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = getattr(needs, name)

    def reopen_first(*arguments: Any) -> Any:
        image.reopen(path=disk.link)
        return real(*arguments)

    with disk.open() as image:
        image.pwrite(b"x" * 100, 5 * GRAIN)
        with monkeypatch.context() as slow:
            slow.setattr(needs, name, reopen_first)
            change(image)
        image.flush()
        found = image.pread(image.size, 0)
    assert guest_bytes(disk.path) == found
    if name in ("write", "zero"):
        assert found[:GRAIN] == (b"w" if name == "write" else b"\0") * GRAIN
    assert not list(sparse_trouble(disk.path))
