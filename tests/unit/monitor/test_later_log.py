"""Whoever sends a command does not wait for the line that the log gets about it."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

from tests.support.monitor import Client, add_raw, daemon_in, file_options, reopen


class _Slow(logging.Handler):
    """Takes no line about a node before the test lets it."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.let = threading.Event()
        self.lines: list[str] = []
        self.told = threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        if "node" in record.getMessage():
            assert self.let.wait(60)
            self.lines.append(record.getMessage())
            if "reopened" in self.lines[-1]:
                self.told.set()


def test_an_answer_does_not_wait_for_the_log(tmp_path: Path) -> None:
    path = tmp_path / "disk.raw"
    path.write_bytes(bytes(1 << 20))
    file = file_options(path)
    log = logging.getLogger("fdstash.monitor")
    slow, level = _Slow(), log.level
    log.addHandler(slow)
    log.setLevel(logging.INFO)
    try:
        with daemon_in(tmp_path) as (_, where), Client(where, timeout=5) as client:
            try:
                add_raw(client, path)  # its line still waits when the answer is there
                slow.let.set()
                reopen(client, {"driver": "raw", "node-name": "disk", "file": file})
                assert slow.told.wait(60)
            finally:
                slow.let.set()
    finally:
        log.removeHandler(slow)
        log.setLevel(level)
    assert ["added" in slow.lines[0], "reopened" in slow.lines[1]] == [True, True]
