"""Children of os.fork that check something and end: each with a verdict, none hanging for ever."""

from __future__ import annotations

import os
import signal
import time
import traceback
from collections.abc import Callable

import pytest

__all__ = ["PATIENCE", "reap", "run_in_child"]

PATIENCE = 30.0
"""Seconds after which a child counts as hanging."""


def run_in_child(check: Callable[[], None]) -> int:
    """Fork, `check`, and end; the child's pid."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        check()
        status = 0
    except BaseException:  # noqa: BLE001 - shown, and told by the status
        os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(status)


def reap(pid: int) -> None:
    """The child must end by itself, and well; where it hangs is on standard error."""
    deadline = time.monotonic() + PATIENCE
    while (done := os.waitpid(pid, os.WNOHANG))[0] == 0:
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGABRT)  # pytest's faulthandler shows its Python stack
            time.sleep(1)
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            pytest.fail(f"a forked child hung for {PATIENCE} s")
        time.sleep(0.0005)
    assert os.waitstatus_to_exitcode(done[1]) == 0
