"""The daemon: its nodes and exports, its clients, and its end.

A thread for each client runs its commands one after another, so that a reopen that takes long
keeps nobody else waiting; one thread accepts. Whoever changes a node holds that node's lock and no
other's; the table of nodes is locked only to look at it.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import fdstash
from fdstash.monitor.commands import Commands
from fdstash.monitor.connection import Connection
from fdstash.monitor.descriptors import FdSets, set_of
from fdstash.monitor.errors import QmpError, told
from fdstash.monitor.exports import Exports, ServerMaker
from fdstash.monitor.listener import Listener, bind_unix
from fdstash.monitor.nodes import FileNode, ImageNode, Node, NodeTable
from fdstash.monitor.offers import Offers
from fdstash.monitor.opener import Opener
from fdstash.monitor.policy import Policy
from fdstash.monitor.reopener import Reopener
from fdstash.monitor.session import Session
from fdstash.monitor.settings import Settings

__all__ = ["Daemon"]

_HINT: dict[int | None, str] = {
    errno.EMFILE: "no descriptor is left: raise LimitNOFILE, or see --max-clients",
    errno.ENFILE: "the system has no descriptor left",
}


#: Seconds between two lines about the same trouble.
_QUIET = 10.0


class Daemon:
    """Everything that `fdstash serve` runs. Any thread.

    `on_reopened` is called after each change of an image, with its node.
    """

    def __init__(
        self,
        settings: Settings = Settings(),  # noqa: B008 - a tuple
        *,
        server: ServerMaker | None = None,
        on_reopened: Callable[[ImageNode], None] | None = None,
    ) -> None:
        self.settings = settings
        self.log = logging.getLogger("fdstash.monitor")
        self.policy = Policy(settings.allow_folders)
        self.table = NodeTable(settings.max_nodes)
        self.sets = FdSets(settings.max_descriptors)
        offers = Offers(self.table, self.sets, self.policy)
        self.opener = Opener(self.table, offers, self.policy)
        self.reopener = Reopener(self.table, self.opener, self.policy, settings.reopen_timeout)
        self.exports = Exports(
            server,
            max_connections=settings.max_connections,
            timeout=settings.close_timeout,
            emit=self.emit,
        )
        self.commands = Commands(self)
        self._on_reopened = on_reopened
        self._lock = threading.Lock()
        self._sessions: list[Session] = []
        self._accepted = 0
        self._listeners: list[tuple[Listener, threading.Thread]] = []
        self._reason: str | None = None
        self._quit = threading.Event()
        self._closing = False

    # -- clients

    def listen(self, path: str, mode: int = 0o600) -> None:
        """Take clients on a Unix socket at `path`. Raises `ImageIOError`."""
        self.adopt(Listener(bind_unix(path, mode), path))

    def adopt(self, listener: Listener) -> None:
        """Take clients on a socket that listens already."""
        thread = threading.Thread(
            target=self._accept, args=(listener,), name="fdstash-monitor-accept", daemon=True
        )
        self._listeners.append((listener, thread))
        thread.start()

    def _accept(self, listener: Listener) -> None:
        quiet_until = 0.0
        while True:
            try:
                sock = listener.accept()
            except OSError as error:
                if time.monotonic() > quiet_until:
                    self.log.warning("no monitor can connect: %s", _HINT.get(error.errno, error))
                    quiet_until = time.monotonic() + _QUIET
                time.sleep(0.1)
                continue
            if sock is None:
                return
            connection = None
            try:
                connection = Connection(sock, self.settings.max_output)
                self._begin(connection)
            except (OSError, RuntimeError, fdstash.Error) as error:
                self.log.warning("a monitor could not be served: %s", error)
                if connection is not None:
                    connection.close()
                sock.close()

    def _begin(self, connection: Connection) -> None:
        with self._lock:
            self._accepted += 1
            number = self._accepted
            staying = [session for session in self._sessions if not session.dropped]
            if len(staying) >= self.settings.max_clients:
                # One that has never negotiated may be there for no other purpose.
                silent = next((session for session in staying if not session.negotiated), None)
                if silent is None:
                    self.log.warning(
                        "monitor %d refused: %d are connected already",
                        number, self.settings.max_clients,
                    )  # fmt: skip
                    connection.close()
                    return
                self.log.warning("monitor %d never negotiated: disconnected", silent.number)
                silent.drop()
            session = Session(self, connection, number)
            self._sessions.append(session)
        session.thread.start()
        self.log.info("monitor %d connected", number)

    def gone(self, session: Session) -> None:
        """A session has ended."""
        with self._lock:
            self._sessions.remove(session)
            last = not self._sessions
        self.log.info("monitor %d disconnected", session.number)
        if last and not self._closing:
            dropped = self.sets.drop(self._sets_in_use())
            if dropped:
                self.log.info("%d descriptors of sets that no image uses are closed", dropped)

    def _sets_in_use(self) -> set[int]:
        names = []
        for node in self.table:
            if isinstance(node, FileNode):
                names.append(node.filename)
            elif isinstance(node, ImageNode):
                with contextlib.suppress(fdstash.Error):  # it is being deleted
                    names += [file.name for file in node.image.files]
        # An extent beside a descriptor that is a set's goes by no set's name: /dev/fdset/NAME.
        return {n for name in names if (n := set_of(name)) is not None}

    def emit(self, event: str, data: Mapping[str, Any]) -> None:
        """Tell every client that has negotiated."""
        now = time.time_ns()
        stamp = {"seconds": now // 10**9, "microseconds": now % 10**9 // 1000}
        message = {"timestamp": stamp, "event": event, "data": data}
        with self._lock:
            sessions = [session for session in self._sessions if session.negotiated]
        for session in sessions:
            session.send(message)

    # -- nodes

    def serve(self, node: ImageNode) -> None:
        """Add an image that was opened elsewhere; it belongs to the daemon now."""
        self.policy.name(node.filename)
        self.opener.publish(node)

    def reopened(self, node: ImageNode) -> None:
        """After a change of an image."""
        if self._on_reopened is not None:
            self._on_reopened(node)

    def delete(self, node: Node) -> None:
        """Close a node that nobody uses. The caller holds it."""
        assert isinstance(node, ImageNode | FileNode)  # noqa: S101 - the command has looked
        parts: list[Node] = [node]
        if isinstance(node, ImageNode):
            self.opener.release(node)
            parts += self.table.parts_of(node)
        self.table.remove(parts)
        try:
            if isinstance(node, ImageNode):
                node.kept.close()
                node.image.close()
            else:
                node.close()
        except (fdstash.Error, OSError) as error:
            raise told(
                error, f"Node '{node.name}' is deleted, but what was written to it may be lost"
            ) from error

    # -- the end

    def quit(self, reason: str) -> None:
        """Ask for the end; `host-signal` or `host-qmp-quit`."""
        if self._reason is None:
            self._reason = reason
        self._quit.set()

    def wait(self, seconds: float | None = None) -> bool:
        """Until somebody asks for the end; whether somebody has."""
        return self._quit.wait(seconds)

    def close(self) -> bool:
        """Tell clients, end exports, flush and close images, remove sockets.

        False where something went wrong, which the log says; what hangs is left behind after
        `Settings.close_timeout`.
        """
        self._closing = True
        clean = True
        for listener, _ in self._listeners:
            listener.wake()
        self.emit("SHUTDOWN", {"guest": False, "reason": self._reason or "host-signal"})
        closers: list[tuple[str, Callable[[], object]]] = [("exports", self.exports.close)]
        nodes = [n for n in self.table if isinstance(n, ImageNode | FileNode)]
        nodes.sort(key=lambda node: isinstance(node, FileNode))
        closers += [(f"node '{node.name}'", partial(self._end, node)) for node in nodes]
        # A server waits for its clients before it flushes.
        seconds = 2 * self.settings.close_timeout
        for what, closer in closers:
            clean = self._within(what, closer, seconds) and clean
            seconds = self.settings.close_timeout
        with self._lock:
            sessions = list(self._sessions)
        for session in sessions:
            session.finish(1)
        for session in sessions:
            if session.thread is not threading.current_thread():
                session.thread.join(self.settings.close_timeout)
        for listener, thread in self._listeners:
            thread.join(self.settings.close_timeout)
            listener.close()
        self.sets.drop(set())
        return clean

    def _end(self, node: Node) -> None:
        with node.lock:
            if not node.deleted:
                self.delete(node)

    def _within(self, what: str, closer: Callable[[], object], seconds: float) -> bool:
        outcome: list[BaseException | None] = []

        def run() -> None:
            try:
                closer()
                outcome.append(None)
            except BaseException as error:  # noqa: BLE001 - told below
                outcome.append(error)

        thread = threading.Thread(target=run, name="fdstash-monitor-close", daemon=True)
        thread.start()
        thread.join(seconds)
        if not outcome:
            self.log.error("closing %s takes too long, and is given up", what)
            return False
        if outcome[0] is not None:
            text = outcome[0].desc if isinstance(outcome[0], QmpError) else outcome[0]
            self.log.error("closing %s: %s", what, text)
            return False
        return True
