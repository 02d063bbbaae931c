"""Fixtures of tests/interop/qemu_list.

This folder shows where QEMU's reopen falls short, row by row, and what happens here
instead. Where QEMU 7.2 can be watched at the same thing, through qemu-storage-daemon or qemu-io,
a test beside it shows that.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.disks import FlatDisk, make_flat_for_qemu
from tests.support.qmp import StorageDaemon


@pytest.fixture
def flat(tmp_path: Path) -> FlatDisk:
    return make_flat_for_qemu(tmp_path)


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[StorageDaemon]:
    with StorageDaemon(tmp_path) as running:
        yield running
