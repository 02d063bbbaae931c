"""Storage daemons that are spoken to in the same commands: ours, and QEMU's."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any, NamedTuple, Self

from fdstash.bench.programs import end, last_words, need_program
from fdstash.bench.qmp import Monitor
from fdstash.errors import Error

__all__ = ["DAEMONS", "OURS", "PEERS", "Daemon", "DaemonError", "ServedImage"]

OURS = "fdstash"

_EXPORT = "export"
_FILE = "file"
_IMAGE = "disk"


class DaemonError(Error):
    """A daemon ended that should not have."""


class ServedImage(NamedTuple):
    """What is served."""

    path: str
    format: str
    files: Sequence[str]  #: every file of it: real paths
    writable: bool
    direct: bool  #: to begin with
    aio: str  #: of qemu-storage-daemon


def _ours(monitor: str, folder: str) -> list[str]:
    words = ["serve", "--qmp", monitor, "--allow-folder", folder]
    return [sys.executable, "-m", "fdstash.cli.main", *words]


def _qemu(monitor: str, _folder: str) -> list[str]:
    path = monitor.replace(",", ",,")
    return [
        need_program("qemu-storage-daemon"),
        *("--chardev", f"socket,id=qmp,path={path},server=on,wait=off"),
        *("--monitor", "chardev=qmp"),
    ]


#: How each is started, by its name: with a monitor there, and images in that folder.
DAEMONS: dict[str, Callable[[str, str], list[str]]] = {
    OURS: _ours,
    "qemu-storage-daemon": _qemu,
}
PEERS = tuple(name for name in DAEMONS if name != OURS)


class Daemon:
    """A daemon that serves an image over NBD until the end of the block. Owner: one thread.

    `nbd`: its socket, the export has the empty name. `monitor`: a connection to it.
    """

    def __init__(self, name: str, image: ServedImage) -> None:
        """Raises `DaemonError`, `RefusedCommandError` where the image is not served."""
        self.name = name
        self._image = image
        with ExitStack() as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="fdstash-bench-"))
            qmp, self.nbd, self._log = (
                os.path.join(folder, each) for each in ("qmp", "nbd", "log")
            )
            command = DAEMONS[name](qmp, os.path.dirname(os.path.abspath(image.path)))
            with open(self._log, "wb") as log:
                self._process = subprocess.Popen(  # noqa: S603 - a program that was asked for
                    command, stdin=subprocess.DEVNULL, stdout=log, stderr=log
                )
            stack.callback(end, self._process)
            self.monitor = stack.enter_context(Monitor(qmp, self.alive, name=name))
            self._serve()
            self._stack = stack.pop_all()

    def alive(self, patience: float = 0.0) -> None:
        """Raises `DaemonError` where it has ended, or does within `patience` seconds."""
        try:
            status = self._process.wait(patience)
        except subprocess.TimeoutExpired:
            return
        how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
        said = last_words(self._log)
        raise DaemonError(f"{self.name} {how}{': ' if said else ''}{said}")

    @property
    def pid(self) -> int:
        """Of its process."""
        return self._process.pid

    def version(self) -> str:
        """Its version, as its monitor says."""
        found = self.monitor.execute("query-version")["qemu"]
        return ".".join(str(found[part]) for part in ("major", "minor", "micro"))

    def _serve(self) -> None:
        direct = self._image.direct
        execute = self.monitor.execute
        execute("blockdev-add", self._file_node(direct=direct))
        execute("blockdev-add", self._image_node(direct=direct))
        address = {"type": "unix", "data": {"path": self.nbd}}
        execute("nbd-server-start", {"addr": address})
        export = {"type": "nbd", "id": _EXPORT, "node-name": _IMAGE, "name": ""}
        execute("block-export-add", export | {"writable": self._image.writable})

    def _file_node(self, *, direct: bool) -> dict[str, Any]:
        node: dict[str, Any] = {
            "driver": "file",
            "node-name": _FILE,
            "filename": os.path.abspath(self._image.path),
        }
        if self.name != OURS:
            node["aio"] = self._image.aio
        return node | self._common(direct=direct)

    def _image_node(self, *, direct: bool) -> dict[str, Any]:
        node = {"driver": self._image.format, "node-name": _IMAGE, "file": _FILE}
        return node | self._common(direct=direct)

    def _common(self, *, direct: bool) -> dict[str, Any]:
        return {"read-only": not self._image.writable, "cache": {"direct": direct}}

    def reopen_command(self, *, direct: bool) -> tuple[str, dict[str, Any]]:
        """The least that changes the cache mode of the whole image.

        The only file of a raw image has it; to a VMDK's file QEMU would say yes, and leave
        its extents as they are.
        """
        options = [self._file_node(direct=direct)]
        if self._image.format != "raw":
            options.insert(0, self._image_node(direct=direct))
        return "blockdev-reopen", {"options": options}

    def direct_descriptors(self) -> dict[str, int]:
        """How many descriptors with O_DIRECT the daemon has of each file of the image.

        Of several that it has one serves requests: how the count changes tells how that one does.
        """
        counts = dict.fromkeys(self._image.files, 0)
        folder = f"/proc/{self.pid}/fd"
        for number in os.listdir(folder):
            try:
                path = os.readlink(f"{folder}/{number}")
                with open(f"/proc/{self.pid}/fdinfo/{number}", encoding="ascii") as file:
                    found = re.search(r"^flags:\s*([0-7]+)$", file.read(), re.MULTILINE)
            except FileNotFoundError:
                continue  # closed meanwhile
            if path in counts and found is not None and int(found[1], 8) & os.O_DIRECT:
                counts[path] += 1
        return counts

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()
