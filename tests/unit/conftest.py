"""Fixtures of tests/unit, asked for by name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.mounts import mount, unmount
from tests.support.need import need_root
from tests.support.seen import no_descriptor_leaks

__all__ = ["no_descriptor_leaks"]


@pytest.fixture
def tmpfs(tmp_path: Path) -> Iterator[Path]:
    """A folder on a tmpfs of 8 MiB."""
    need_root("a tmpfs")
    folder = tmp_path / "tmpfs"
    folder.mkdir()
    mount("fdstash-tests", folder, "tmpfs", "rw,size=8m")
    yield folder
    unmount(folder)
