"""A qemu-storage-daemon to compare with, spoken to over QMP. qemu-img and qemu-io: qemu_tools."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from qemu.qmp import ConnectError, ExecuteError, QMPClient

from tests.support.need import need_program, plain_environment

__all__ = ["StorageDaemon", "StorageDaemonError", "disconnect", "file_node"]


class StorageDaemonError(Exception):
    """What the daemon said to a command that failed."""


def file_node(path: Path, **options: object) -> dict[str, object]:
    """The options of a block node that is a file."""
    return {"driver": "file", "node-name": "file", "filename": str(path), **options}


async def disconnect(client: QMPClient) -> None:
    """Leave a monitor that was told to quit: who ends the connection first is anyone's guess."""
    with contextlib.suppress(EOFError):
        await client.disconnect()


class StorageDaemon:
    """A qemu-storage-daemon with a QMP socket in `folder`.

    `arguments`: further ones, such as `--blockdev`. One thread at a time may use it.
    """

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.socket = folder / "qmp.sock"
        self._process = subprocess.Popen(
            [
                need_program("qemu-storage-daemon", "qemu-system-common"),
                "--chardev",
                f"socket,id=qmp,path={self.socket},server=on,wait=off",
                "--monitor",
                "chardev=qmp",
                *arguments,
            ],
            env=plain_environment(),
            stderr=subprocess.PIPE,
            text=True,
        )
        self._loop = asyncio.new_event_loop()
        self._client = QMPClient("fdstash-tests")
        try:
            self._connect()
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        return self._process.pid

    def _connect(self, timeout: float = 20) -> None:
        deadline = time.monotonic() + timeout
        while True:
            if self._process.poll() is not None:
                assert self._process.stderr is not None
                raise StorageDaemonError(self._process.stderr.read())
            if time.monotonic() > deadline:
                raise StorageDaemonError(f"no socket after {timeout} s")
            # It binds the socket first and listens a moment later.
            with contextlib.suppress(ConnectError):
                if self.socket.exists():
                    self._loop.run_until_complete(self._client.connect(os.fspath(self.socket)))
                    return
            time.sleep(0.02)

    def execute(self, command: str, arguments: dict[str, object] | None = None) -> Any:
        """Run one command; what it returns. StorageDaemonError if it fails."""
        try:
            return self._loop.run_until_complete(self._client.execute(command, arguments))
        except ExecuteError as error:
            raise StorageDaemonError(f"{command}: {error}") from error

    def descriptors(self) -> dict[int, tuple[str, int]]:
        """Every descriptor of the daemon: what it stands for, and its flags as F_GETFL has them."""
        found = {}
        for name in os.listdir(f"/proc/{self.pid}/fd"):
            target = os.readlink(f"/proc/{self.pid}/fd/{name}")
            with open(f"/proc/{self.pid}/fdinfo/{name}", encoding="ascii") as lines:
                flags = next(int(line.split()[1], 8) for line in lines if line.startswith("flags"))
            found[int(name)] = target, flags
        return found

    def flags_in(self, folder: Path) -> dict[str, int]:
        """Access mode and O_DIRECT of every file that the daemon has open there, by name."""
        compared = os.O_ACCMODE | os.O_DIRECT
        return {
            Path(name).name: flags & compared
            for name, flags in self.descriptors().values()
            if Path(name).parent == folder and not name.endswith(".sock")
        }

    def reopen(self, node: dict[str, object]) -> None:
        """Reopen one block node with these options."""
        self.execute("blockdev-reopen", {"options": [node]})

    def close(self) -> None:
        if not self._loop.is_closed():
            self._loop.run_until_complete(self._client.disconnect())
            self._loop.close()
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stderr is not None:
            self._process.stderr.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
