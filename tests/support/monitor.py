"""A monitor in this process, a raw client of one, and a server of exports that serves nobody."""

from __future__ import annotations

import array
import contextlib
import itertools
import json
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, NamedTuple, Self

import pytest

from fdstash import Image, ImageIOError
from fdstash.monitor import Daemon, Settings
from fdstash.monitor.nodes import ImageNode
from tests.support.disks import FlatDisk

__all__ = [
    "Client",
    "CommandFailed",
    "FakeExport",
    "FakeServer",
    "add_file",
    "add_flat",
    "add_raw",
    "daemon_in",
    "file_options",
    "image_of",
    "node",
    "refused_reopen",
    "reopen",
]


class CommandFailed(Exception):
    """An error answer: class and text."""

    def __init__(self, answer: dict[str, Any]) -> None:
        super().__init__(f"{answer['error']['class']}: {answer['error']['desc']}")
        self.kind: str = answer["error"]["class"]
        self.desc: str = answer["error"]["desc"]
        self.answer = answer


class Client:
    """A QMP client that can also do what none should. `events`: those that came meanwhile."""

    def __init__(self, path: Path | str, *, negotiate: bool = True, timeout: float = 30) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(timeout)
        self.events: list[dict[str, Any]] = []
        self._rest = b""
        try:
            self.sock.connect(os.fspath(path))
            self.greeting = self.read()
            if negotiate:
                self.execute("qmp_capabilities")
        except BaseException:
            self.sock.close()
            raise

    def send(self, data: bytes, fds: list[int] | None = None) -> None:
        ancillary = []
        if fds:
            ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
        sent = self.sock.sendmsg([data], ancillary)
        self.sock.sendall(data[sent:])

    def read(self) -> dict[str, Any]:
        """The next message, whatever it is; EOFError at the end."""
        while b"\n" not in self._rest:
            data = self.sock.recv(1 << 16)
            if not data:
                raise EOFError
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        found: dict[str, Any] = json.loads(line)
        return found

    def answer(self) -> dict[str, Any]:
        """The next message that is no event."""
        while "event" in (message := self.read()):
            self.events.append(message)
        return message

    def event(self, name: str) -> dict[str, Any]:
        """The data of the next such event."""
        while True:
            for message in self.events:
                if message["event"] == name:
                    self.events.remove(message)
                    return dict(message["data"])
            self.events.append(self.read())

    def say(self, text: str | bytes) -> dict[str, Any]:
        """Send these very bytes, and read an answer."""
        self.send(text.encode() if isinstance(text, str) else text)
        return self.answer()

    def execute(self, name: str, /, **arguments: Any) -> Any:
        """Run a command; underscores in the names of arguments are hyphens."""
        given = {key.replace("_", "-"): value for key, value in arguments.items()}
        return self.run(name, given)

    def run(self, name: str, arguments: dict[str, Any] | None = None) -> Any:
        answer = self.say(json.dumps({"execute": name, "arguments": arguments or {}}))
        if "error" in answer:
            raise CommandFailed(answer)
        return answer["return"]

    def refusal(self, name: str, /, **arguments: Any) -> CommandFailed:
        """The error of a command that must fail."""
        with pytest.raises(CommandFailed) as caught:
            self.execute(name, **arguments)
        return caught.value

    def pass_fd(self, fd: int, *more: int) -> None:
        """As `send_fd_scm` of `qemu.qmp` does."""
        self.send(b" ", [fd, *more])

    def getfd(self, name: str, path: Path, flags: int = os.O_RDWR) -> None:
        """Pass the descriptor of a file under a name."""
        fd = os.open(path, flags)
        try:
            self.pass_fd(fd)
        finally:
            os.close(fd)
        self.execute("getfd", fdname=name)

    def add_fd(self, path: Path, flags: int = os.O_RDWR, **arguments: Any) -> Any:
        fd = os.open(path, flags)
        try:
            self.pass_fd(fd)
        finally:
            os.close(fd)
        return self.execute("add-fd", **arguments)

    def nodes(self) -> dict[str, dict[str, Any]]:
        return {node["node-name"]: node for node in self.execute("query-named-block-nodes")}

    def close(self) -> None:
        self.sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class FakeExport(NamedTuple):
    id: str
    image: Image
    name: str
    writable: bool
    connections: int
    shutting_down: bool


class FakeServer:
    """What `fdstash.export` does, without a client. `made`: every one."""

    made: ClassVar[list[FakeServer]] = []

    def __init__(
        self,
        *,
        max_connections: int,
        on_error: Callable[[str, str, int], None],
        on_deleted: Callable[[str], None],
    ) -> None:
        self.max_connections = max_connections
        self.on_error = on_error
        self.on_deleted = on_deleted
        self.where: Any = None
        self.held: dict[str, FakeExport] = {}
        self.busy: set[str] = set()
        self.closed = False
        FakeServer.made.append(self)

    def listen_unix(self, path: str, *, mode: int = 0o600) -> None:
        if not os.path.isdir(os.path.dirname(path) or "."):
            raise ImageIOError(2, "No such file or directory", path)
        self.where = path

    def listen_tcp(self, host: str, port: int) -> tuple[str, int]:
        self.where = host, port
        return host, port

    def listen_socket(self, sock: socket.socket) -> None:
        self.where = sock

    def add(
        self,
        export_id: str,
        image: Image,
        *,
        name: str = "",
        description: str = "",
        writable: bool = False,
    ) -> None:
        self.held[export_id] = FakeExport(export_id, image, name, writable, 0, False)

    def remove(self, export_id: str, *, hard: bool = False) -> None:
        if export_id in self.busy and not hard:
            raise ImageIOError(16, "in use", export_id)
        if export_id in self.busy and not self.closed:
            self.held[export_id] = self.held[export_id]._replace(shutting_down=True)
        else:
            self.end(export_id)

    def end(self, export_id: str) -> None:
        """Its last client has gone."""
        del self.held[export_id]
        self.on_deleted(export_id)

    def exports(self) -> tuple[FakeExport, ...]:
        return tuple(self.held.values())

    def close(self, timeout: float = 10.0) -> None:
        self.closed = True
        for export_id in list(self.held):
            self.remove(export_id, hard=True)


_numbers = itertools.count()


@contextlib.contextmanager
def daemon_in(
    folder: Path, *, server: Callable[..., Any] | None = None, **settings: Any
) -> Iterator[tuple[Daemon, Path]]:
    """A daemon of this process, and where its clients connect. It must end clean.

    `server`: what makes its NBD server, unless that is to be one that serves nobody.
    """
    settings.setdefault("allow_folders", (os.fspath(folder),))
    path = folder / f"qmp-{next(_numbers)}"
    daemon = Daemon(Settings(**settings), server=server or FakeServer)
    try:
        daemon.listen(os.fspath(path))
        yield daemon, path
    finally:
        clean = daemon.close()
        FakeServer.made.clear()
    assert clean
    assert not path.exists()


def file_options(path: Path | str, **more: Any) -> dict[str, Any]:
    return {"driver": "file", "filename": os.fspath(path), **more}


def add_raw(client: Client, path: Path, name: str = "disk", **more: Any) -> None:
    client.execute("blockdev-add", driver="raw", node_name=name, file=file_options(path), **more)


def add_flat(client: Client, flat: FlatDisk, name: str = "vm", **more: Any) -> None:
    file = file_options(flat.path, **{"node-name": f"{name}-file"})
    client.execute("blockdev-add", driver="vmdk", node_name=name, file=file, **more)


def reopen(client: Client, *options: dict[str, Any]) -> None:
    client.execute("blockdev-reopen", options=list(options))


def refused_reopen(client: Client, *options: dict[str, Any]) -> str:
    """Why; nothing that nodes say of themselves has changed."""
    before = client.nodes()
    error = client.refusal("blockdev-reopen", options=list(options))
    assert client.nodes() == before
    return error.desc


def add_file(client: Client, name: str, path: Path | str, **more: Any) -> None:
    """Add a file by itself."""
    options = file_options(path, **more) | {"node-name": name}
    client.run("blockdev-add", options)


def node(name: str, file: Any, driver: str = "raw", **more: Any) -> dict[str, Any]:
    options = {"driver": driver, "node-name": name, "file": file}
    return options | {key.replace("_", "-"): value for key, value in more.items()}


def image_of(daemon: Daemon, name: str) -> Image:
    """The image that is the node of that name."""
    found = daemon.table.get(name)
    assert isinstance(found, ImageNode)
    return found.image
