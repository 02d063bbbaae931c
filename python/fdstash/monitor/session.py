"""One client: negotiation, commands in order, answers."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fdstash.monitor.commands import VERSION
from fdstash.monitor.connection import Connection
from fdstash.monitor.descriptors import Passed
from fdstash.monitor.errors import QmpError, command_not_found, told
from fdstash.monitor.json_stream import JsonStream
from fdstash.monitor.vocabulary import SCHEMA

if TYPE_CHECKING:
    from fdstash.monitor.daemon import Daemon

__all__ = ["Session"]

_NEGOTIATE = "qmp_capabilities"
_MEMBERS = ("execute", "arguments", "id")


class Session:
    """Runs on a thread of its own until the client goes."""

    def __init__(self, daemon: Daemon, connection: Connection, number: int) -> None:
        self.number = number
        self.negotiated = False
        self.dropped = False  #: its place is another's
        self._daemon = daemon
        self._connection = connection
        self._passed = Passed(daemon.settings.max_descriptors)
        self._stream = JsonStream(daemon.settings.max_message)
        self.thread = threading.Thread(
            target=self._run, name=f"fdstash-monitor-{number}", daemon=True
        )

    def send(self, message: Mapping[str, Any]) -> None:
        """From any thread; never waits."""
        try:
            data = json.dumps(message).encode() + b"\r\n"
        except RecursionError:  # an id of a thousand arrays in each other
            data = b'{"error": {"class": "GenericError", "desc": "The id is nested too deep"}}\r\n'
        if not self._connection.send(data):
            self._daemon.log.warning("monitor %d does not read: disconnected", self.number)

    def drop(self) -> None:
        """From any thread: disconnect."""
        self.dropped = True
        self._connection.hang_up()

    def finish(self, seconds: float) -> None:
        """Let what was answered reach the client, and disconnect."""
        self._connection.drain(seconds)
        self._connection.hang_up()

    def _run(self) -> None:
        try:
            self.send({"QMP": {"version": VERSION, "capabilities": []}})
            while self._turn():
                pass
        except Exception:
            self._daemon.log.exception("monitor %d: an error in the daemon", self.number)
        finally:
            # All is closed before the daemon forgets the session, and can end without it.
            self._passed.close()
            self._connection.close()
            self._daemon.gone(self)

    def _turn(self) -> bool:
        received = self._connection.receive()
        if received.fds or received.cut:
            dropped = self._passed.arrived(received.fds, cut=received.cut)
            if dropped or received.cut:
                self._daemon.log.warning(
                    "monitor %d: %s", self.number,
                    "descriptors were cut off on the way, and all of the message closed"
                    if received.cut else f"{dropped} descriptors that no command took are closed",
                )  # fmt: skip
        for value in self._stream.feed(received.data):
            self._answer(value)
        return bool(received.data)

    def _answer(self, value: Any) -> None:
        identity: dict[str, Any] = {}
        try:
            if isinstance(value, QmpError):
                raise value
            if not isinstance(value, dict):
                raise QmpError("QMP input must be a JSON object")  # noqa: TRY301
            if "id" in value:
                identity["id"] = value["id"]
            answer: dict[str, Any] = {"return": self._execute(value)}
        except QmpError as error:
            answer = {"error": {"class": error.kind, "desc": error.desc}}
        self.send({**answer, **identity})
        self._daemon.commands.log.write()

    def _execute(self, message: Mapping[str, Any]) -> Any:
        name, arguments = _dissected(message)
        if not self.negotiated and name != _NEGOTIATE:
            raise command_not_found(f"Expecting capabilities negotiation with '{_NEGOTIATE}'")
        command = SCHEMA.commands.get(name)
        if command is None:
            raise command_not_found(f"The command {name[:64]} has not been found")
        if self.negotiated and name == _NEGOTIATE:
            raise command_not_found("Capabilities negotiation is already complete, command ignored")
        SCHEMA.check_arguments(command, arguments)
        if name == _NEGOTIATE:
            self.negotiated = True
            return {}
        self._daemon.log.debug("monitor %d: %s", self.number, name)
        try:
            result = self._daemon.commands.find(name)(self._passed, arguments)
        except QmpError as error:
            self._daemon.log.info("monitor %d: %s refused: %s", self.number, name, error.desc)
            raise
        except Exception as error:
            if not isinstance(error, OSError | ValueError):
                self._daemon.log.exception("monitor %d: %s", self.number, name)
            raise told(error, name) from error
        return {} if result is None else result


def _dissected(message: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    for member in message:
        if member not in _MEMBERS:
            raise QmpError(f"QMP input member '{member[:64]}' is unexpected")
    if "execute" not in message:
        raise QmpError("QMP input lacks member 'execute'")
    name, arguments = message["execute"], message.get("arguments", {})
    if not isinstance(name, str):
        raise QmpError("QMP input member 'execute' must be a string")
    if not isinstance(arguments, dict):
        raise QmpError("QMP input member 'arguments' must be an object")
    return name, arguments
