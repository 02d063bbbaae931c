"""`fdstash serve` as a program, and what the kernel says of its descriptors."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

__all__ = ["Daemon", "files_of", "modes_of", "serving", "sockets_of"]

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
def serving(*arguments: str, quiet: Sequence[Path] = (), **more: Any) -> Iterator[Daemon]:
    """The program, ready. `quiet`: told by these sockets, as its log is not to say so."""
    daemon = Daemon(*arguments, **more)
    try:
        if quiet:
            for path in quiet:
                _await_socket(daemon, path)
        else:
            daemon.ready()
        yield daemon
    finally:
        daemon.process.kill()
        daemon.process.communicate()


def _await_socket(daemon: Daemon, path: Path) -> None:
    while True:
        with socket.socket(socket.AF_UNIX) as sock, suppress(OSError):
            sock.connect(os.fspath(path))
            return
        assert daemon.process.poll() is None, daemon.wait() or daemon.log
        time.sleep(0.01)


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


def _flags(pid: int, number: str) -> int | None:
    """Access mode and O_DIRECT; None of a description that holds a lock."""
    told = Path(f"/proc/{pid}/fdinfo/{number}").read_text("ascii").splitlines()
    if any(line.startswith("lock:") for line in told):
        return None
    flags = next(int(line.split()[1], 8) for line in told if line.startswith("flags"))
    return flags & (os.O_ACCMODE | os.O_DIRECT)


def files_of(pid: int, folder: Path) -> dict[str, set[int]]:
    """Access mode and O_DIRECT of what a process has open there, by path.

    Descriptions that hold locks, which transfer nothing, are left out.
    """
    found: dict[str, set[int]] = {}
    for number, name in _descriptors(pid).items():
        if Path(name).parent == folder and (flags := _flags(pid, number)) is not None:
            found.setdefault(name, set()).add(flags)
    return found


def modes_of(pid: int, inodes: Container[int]) -> list[int]:
    """As `files_of`, of these files wherever they are, for each description."""
    found = []
    for number, name in _descriptors(pid).items():
        if name.startswith("/") and os.stat(f"/proc/{pid}/fd/{number}").st_ino in inodes:
            flags = _flags(pid, number)
            found += [] if flags is None else [flags]
    return found
