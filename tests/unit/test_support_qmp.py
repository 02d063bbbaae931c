"""The storage daemon that we compare with really reopens, and says so when it will not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.qmp import StorageDaemon, StorageDaemonError


def node(path: Path, **options: object) -> dict[str, object]:
    file = {"driver": "file", "node-name": "disk", "filename": os.fspath(path)}
    return {**file, **options}


def test_a_node_is_reopened_with_o_direct(tmp_path: Path) -> None:
    path = tmp_path / "disk.raw"
    path.write_bytes(bytes(1 << 20))
    with StorageDaemon(tmp_path) as daemon:

        def flags() -> list[int]:
            return [flag for name, flag in daemon.descriptors().values() if name == str(path)]

        daemon.execute("blockdev-add", node(path))
        assert not any(flag & os.O_DIRECT for flag in flags())
        daemon.execute("blockdev-reopen", {"options": [node(path, cache={"direct": True})]})
        assert any(flag & os.O_DIRECT for flag in flags())
        daemon.execute("blockdev-del", {"node-name": "disk"})
        assert flags() == []


def test_a_refused_command_and_a_daemon_that_does_not_start_say_why(tmp_path: Path) -> None:
    with (
        StorageDaemon(tmp_path) as daemon,
        pytest.raises(StorageDaemonError, match="No such file"),
    ):
        daemon.execute("blockdev-add", node(tmp_path / "missing"))
    with pytest.raises(StorageDaemonError, match="nonsense"):
        StorageDaemon(tmp_path, "--nonsense")
