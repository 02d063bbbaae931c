"""`fdstash serve` as a program, and what the kernel says of its descriptors."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

__all__ = ["Daemon", "files_of", "serving", "sockets_of"]

_FDSTASH = [sys.executable, "-m", "fdstash.cli.main"]


class Daemon:
    """The program. `log`: what it has said so far."""

    def __init__(self, *arguments: str, fds: Mapping[str, int] | None = None, **env: str) -> None:
        given = fds or {}
        command = [*_FDSTASH, "serve", *arguments]
        if given:
            # LISTEN_PID is the program's own, which only it knows before it starts.
            script = (
                "import fcntl, os, sys\n"
                "fds = [int(n) for n in sys.argv[1].split(',')]\n"
                "fds = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 200) for fd in fds]\n"
                "for to, fd in enumerate(fds, 3): os.dup2(fd, to, inheritable=True)\n"
                "os.environ['LISTEN_PID'] = str(os.getpid())\n"
                "os.execv(sys.argv[2], sys.argv[2:])\n"
            )
            numbers = ",".join(map(str, given.values()))
            command = [sys.executable, "-c", script, numbers, *command]
            env |= {"LISTEN_FDS": str(len(given)), "LISTEN_FDNAMES": ":".join(given)}
        self.process = subprocess.Popen(
            command,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **env},
            pass_fds=list(given.values()),
        )
        self.log = ""

    def ready(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log += line
            if "INFO: ready" in line:
                return
        raise AssertionError(self.log)

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        _, said = self.process.communicate(timeout=60)
        self.log += said
        return self.process.returncode


@contextmanager
def serving(*arguments: str, **more: Any) -> Iterator[Daemon]:
    daemon = Daemon(*arguments, **more)
    try:
        daemon.ready()
        yield daemon
    finally:
        daemon.process.kill()
        daemon.process.communicate()


def _descriptors(pid: int) -> dict[str, str]:
    """What each number stands for."""
    found = {}
    for number in os.listdir(f"/proc/{pid}/fd"):
        with suppress(FileNotFoundError):  # closed since
            found[number] = os.readlink(f"/proc/{pid}/fd/{number}")
    return found


def sockets_of(pid: int) -> int:
    """How many sockets a process has."""
    return sum(name.startswith("socket:") for name in _descriptors(pid).values())


def files_of(pid: int, folder: Path) -> dict[str, set[int]]:
    """Access mode and O_DIRECT of what a process has open there, by path.

    Descriptions that hold locks, which transfer nothing, are left out.
    """
    found: dict[str, set[int]] = {}
    for number, name in _descriptors(pid).items():
        if Path(name).parent != folder:
            continue
        told = Path(f"/proc/{pid}/fdinfo/{number}").read_text("ascii").splitlines()
        if not any(line.startswith("lock:") for line in told):
            flags = next(int(line.split()[1], 8) for line in told if line.startswith("flags"))
            found.setdefault(name, set()).add(flags & (os.O_ACCMODE | os.O_DIRECT))
    return found
