"""A FUSE file system whose opens can hang and whose transfers can fail: tests/faults/heldfs."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import time
from pathlib import Path

from tests.support.compiler import compile_c
from tests.support.mounts import unmount
from tests.support.need import missing, need_program, plain_environment

__all__ = ["HeldFs"]

_SOURCE = Path(__file__).resolve().parent.parent / "faults" / "heldfs" / "heldfs.c"


def _build() -> Path:
    pkg_config = need_program("pkg-config", "pkg-config")
    done = subprocess.run(
        [pkg_config, "--cflags", "--libs", "fuse3"],
        env=plain_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        missing("libfuse 3 is needed (Debian: libfuse3-dev)")
    flags = ["-std=c11", "-O2", "-g", "-Wall", "-Wextra", "-Werror"]
    return compile_c([_SOURCE], "heldfs", flags, shlex.split(done.stdout))


class HeldFs:
    """The files of `backing`, seen through `folder`; answers everything until told otherwise.

    Start it from the main thread: the server ends with the thread that started it.
    """

    def __init__(self, backing: Path, folder: Path) -> None:
        if not os.path.exists("/dev/fuse"):
            missing("/dev/fuse is needed")
        self.backing = backing
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._server = subprocess.Popen(
            [_build(), backing, folder],
            env=plain_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._server.stdout is not None
        if self._server.stdout.readline() != "ready\n":
            self.close()
            missing("a FUSE file system cannot be mounted here")

    def _order(self, order: str) -> int:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        print(order, file=self._server.stdin, flush=True)
        return int(self._server.stdout.readline())

    def hold_opens(self) -> None:
        """Opens hang from now on, while reads and writes of open files go on."""
        self._order("hold")

    def release_opens(self) -> None:
        """Opens are answered again, those that hang too."""
        self._order("release")

    def refuse_opens(self, error: int) -> None:
        """Opens fail with this errno, also those that hang; 0: no longer."""
        self._order(f"refuse {error}")

    def break_bytes(self, offset: int, n: int, error: int) -> None:
        """Reads and writes that touch these bytes of a file fail with this errno; 0: no longer."""
        self._order(f"break {offset} {n} {error}")

    def wait_open_hanging(self, opens: int = 1, timeout: float = 10) -> None:
        """Wait until that many opens hang because of `hold_opens`."""
        deadline = time.monotonic() + timeout
        while (waiting := self._order("count")) < opens:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{waiting} of {opens} opens hang")
            time.sleep(0.005)

    def stop(self) -> None:
        """The server answers nothing any more, reads and writes included."""
        self._server.send_signal(signal.SIGSTOP)
        # A thread of it may still answer until all of them have stopped.
        os.waitid(os.P_PID, self._server.pid, os.WSTOPPED)

    def resume(self) -> None:
        self._server.send_signal(signal.SIGCONT)

    def close(self) -> None:
        """Unmount; whatever hangs gets ENOTCONN or ECONNABORTED."""
        # A connection ends with the last descriptor of /dev/fuse, and SIGKILL also ends a
        # stopped process: no order of events leaves a hung mount behind.
        self._server.kill()
        self._server.wait()
        for stream in (self._server.stdin, self._server.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        unmount(self.folder)
