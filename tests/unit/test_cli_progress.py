"""The progress bar: on a terminal of its own accord, elsewhere when it is asked for."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest

ARGUMENTS = "bench reopen --reopens 40 --extents 2 --no-naive --output json --dir".split()


def run(folder: Path, *options: str, terminal: bool) -> tuple[dict[str, object], str]:
    """What the program printed, and what it said on standard error."""
    if terminal:
        ours, theirs = pty.openpty()
    else:
        ours, theirs = os.pipe()
    said = bytearray()

    def listen() -> None:
        while True:
            try:
                part = os.read(ours, 4096)
            except OSError:  # EIO: nobody has the other side of a terminal any more
                return
            if not part:
                return
            said.extend(part)

    program = [sys.executable, "-m", "fdstash.cli.main", *ARGUMENTS, str(folder), *options]
    with subprocess.Popen(
        program,
        stdout=subprocess.PIPE,
        stderr=theirs,
        env=os.environ | {"TERM": "xterm", "COLUMNS": "100"},
    ) as running:
        os.close(theirs)
        listener = threading.Thread(target=listen)
        listener.start()
        assert running.stdout is not None
        printed = running.stdout.read()
        listener.join(60)
    os.close(ours)
    assert running.returncode == 0, said.decode() + printed.decode()
    return json.loads(printed), said.decode()


def assert_ran_to_its_end(said: str) -> None:
    """It began at nothing, and never went back; what is made to fail is counted too."""
    seen = [(int(done), int(total)) for done, total in re.findall(r"(\d+)/(\d+)", said)]
    assert "reopen" in said
    assert seen[0][0] == 0
    assert len(set(seen)) > 2
    assert seen == sorted(seen)
    assert seen[-1][0] == seen[-1][1] >= 40


def test_on_a_terminal_a_bar_runs_to_its_end(tmp_path: Path) -> None:
    found, said = run(tmp_path, terminal=True)
    assert found["reopens"] == 40
    assert_ran_to_its_end(said)


def test_without_a_terminal_nothing_is_said(tmp_path: Path) -> None:
    _, said = run(tmp_path, terminal=False)
    assert said == ""


@pytest.mark.parametrize("option", ["-p", "--progress"])
def test_without_a_terminal_a_bar_runs_where_it_is_asked_for(tmp_path: Path, option: str) -> None:
    _, said = run(tmp_path, option, terminal=False)
    assert_ran_to_its_end(said)
