"""A QMP client, the same one for every daemon.

What it takes itself is part of every time that it measures, so it does as little as can be: one
socket, one command at a time, on the thread that asks.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self

from fdstash.errors import Error

__all__ = ["Monitor", "RefusedCommandError"]

_RETRY = 0.02
#: Seconds until a daemon whose connection has ended must have ended.
_DYING = 1.0


class RefusedCommandError(Error):
    """What the daemon answered to a command that it did not carry out."""


class Monitor:
    """A connection to a daemon's monitor. Owner: one thread.

    `alive` raises where the daemon has ended, or does within so many seconds; it is asked where the
    connection fails. `name`: of the daemon, in errors. `timeout`: seconds, of the connection and of
    each answer.
    """

    def __init__(
        self,
        path: str,
        alive: Callable[[float], None],
        *,
        name: str = "the daemon",
        timeout: float = 30,
    ) -> None:
        """Connect as soon as somebody listens at `path`."""
        self._alive = alive
        self._name = name
        self._timeout = timeout
        self._asked = b""
        self._socket = self._connected(path, timeout)
        self._lines = self._socket.makefile("rb")
        try:
            self._next()  # the greeting
            self.execute("qmp_capabilities")
        except BaseException:
            self.close()
            raise

    def _connected(self, path: str, timeout: float) -> socket.socket:
        deadline = time.monotonic() + timeout
        while True:
            self._alive(0)
            found = socket.socket(socket.AF_UNIX)
            try:
                found.settimeout(timeout)
                found.connect(path)
            except BaseException as error:
                found.close()
                early = isinstance(error, FileNotFoundError | ConnectionRefusedError)
                if not early or time.monotonic() > deadline:
                    raise
                time.sleep(_RETRY)
            else:
                return found

    def execute(self, command: str, arguments: Mapping[str, object] | None = None) -> Any:
        """Run one command; what it returns. Raises as `timed` does."""
        return _value(self._answer(_encoded(command, arguments)))

    def timed(self, command: str, arguments: Mapping[str, object] | None = None) -> int:
        """Nanoseconds from the command to its answer.

        Raises `RefusedCommandError`, what `alive` raises, and `Error` where the connection ended.
        """
        message = _encoded(command, arguments)
        begun = time.perf_counter_ns()
        answer = self._answer(message)
        took = time.perf_counter_ns() - begun
        _value(answer)
        return took

    def _answer(self, message: bytes) -> dict[str, Any]:
        self._asked = message
        try:
            self._socket.sendall(message)
        except OSError as error:
            raise self._ended(error) from error
        while "event" in (answer := self._next()):
            pass
        return answer

    def _next(self) -> dict[str, Any]:
        """Both daemons send each object as a line."""
        try:
            line = self._lines.readline()
        except OSError as error:
            raise self._ended(error) from error
        if not line:
            raise self._ended(EOFError("end of file"))
        try:
            found = json.loads(line)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise Error(f"that is no monitor: it said {line[:80]!r}")
        return found

    def _ended(self, error: Exception) -> Error:
        self._alive(_DYING)
        if isinstance(error, TimeoutError):
            asked = self._asked.decode().strip() or "its connection"
            return Error(f"{self._name} has not answered {asked} for {self._timeout:g} s")
        return Error(f"the connection to {self._name}'s monitor ended: {error}")

    def close(self) -> None:
        """Disconnect."""
        self._lines.close()
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _encoded(command: str, arguments: Mapping[str, object] | None) -> bytes:
    message: dict[str, object] = {"execute": command}
    if arguments is not None:
        message["arguments"] = dict(arguments)
    return json.dumps(message).encode() + b"\n"


def _value(answer: Mapping[str, Any]) -> Any:
    if "error" in answer:
        raise RefusedCommandError(str(answer["error"]["desc"]))
    return answer["return"]
