"""qemu-storage-daemon, and one connection to its monitor."""

from __future__ import annotations

import json
import re
import socket
import subprocess
from pathlib import Path
from time import perf_counter_ns
from types import TracebackType
from typing import Any, Self

from tests.support.need import need_program

__all__ = ["QmpError", "StorageDaemon"]


class QmpError(Exception):
    """What the monitor answered instead of a result."""


class StorageDaemon:
    """A daemon without exports, which ends with the block."""

    def __init__(self) -> None:
        program = need_program("qemu-storage-daemon", "qemu-system-common")
        ours, its = socket.socketpair()
        with its:
            number = its.fileno()
            self._process = subprocess.Popen(
                [program, "--chardev", f"socket,id=m,fd={number}", "--monitor", "chardev=m"],
                pass_fds=[number],
            )
        # One command, one answer: no buffering in between, and no waiting for more.
        self._socket = ours
        self._lines = ours.makefile("rb")
        greeting = json.loads(self._lines.readline())
        version = greeting["QMP"]["version"]
        self.version = ".".join(str(version["qemu"][part]) for part in ("major", "minor", "micro"))
        self.execute("qmp_capabilities")

    @property
    def pid(self) -> int:
        return self._process.pid

    @staticmethod
    def command(name: str, **arguments: Any) -> bytes:
        """What `answer` sends."""
        return json.dumps({"execute": name, "arguments": arguments}).encode() + b"\n"

    def timed(self, command: bytes) -> int:
        """Nanoseconds from the command to its answer. Raises `QmpError`."""
        from_ = perf_counter_ns()
        self._socket.sendall(command)
        line = self._lines.readline()
        taken = perf_counter_ns() - from_
        self._result(line)
        return taken

    def execute(self, name: str, **arguments: Any) -> Any:
        """Send a command; its result. Raises `QmpError`."""
        self._socket.sendall(self.command(name, **arguments))
        return self._result(self._lines.readline())

    def _result(self, line: bytes) -> Any:
        answer = json.loads(line)
        while "event" in answer:
            answer = json.loads(self._lines.readline())
        if "error" in answer:
            raise QmpError(answer["error"]["desc"])
        return answer["return"]

    def flags(self, path: Path) -> set[int]:
        """F_GETFL of each description that the daemon has of the file."""
        found = set()
        for link in Path(f"/proc/{self.pid}/fd").iterdir():
            if link.resolve() == path.resolve():
                text = Path(f"/proc/{self.pid}/fdinfo/{link.name}").read_text()
                flags = re.search(r"^flags:\s*([0-7]+)$", text, re.MULTILINE)
                assert flags is not None
                found.add(int(flags[1], 8))
        return found

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._lines.close()
        self._socket.close()
        self._process.terminate()
        self._process.wait(30)
