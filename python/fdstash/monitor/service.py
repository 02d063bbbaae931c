"""What a service manager gives and is told: systemd's protocols, without systemd's library.

Sockets come by name (LISTEN_FDNAMES): ``qmp`` and ``nbd``. Anything else that comes was put into
the manager's descriptor store before, by `Keeper`, and serves the image again after a restart.
"""

from __future__ import annotations

import array
import contextlib
import logging
import os
import socket
from collections.abc import Iterable, Sequence
from urllib.parse import quote, unquote

import fdstash
from fdstash.monitor.descriptors import close_all
from fdstash.stash import FDStash

__all__ = ["Inherited", "Keeper", "inherited", "notify"]

#: What a name in the store begins with; a socket's never does.
_PREFIX = "file="
_MAX_NAME = 255  # characters (sd_pid_notify_with_fds(3)); no colon, no control characters
log = logging.getLogger("fdstash.monitor")


class Inherited:
    """What this process was given: listening sockets, and descriptors of images."""

    def __init__(self) -> None:
        self.qmp: list[socket.socket] = []
        self.nbd: list[socket.socket] = []
        self.files = FDStash()

    def close(self) -> None:
        """Close what nobody has taken."""
        for sock in (*self.qmp, *self.nbd):
            sock.close()
        self.files.close()


def inherited() -> Inherited:
    """Take what was passed in. Raises `ImageIOError` for a count that is none."""
    found = Inherited()
    with FDStash.from_listen_fds() as given:
        for name in given.names():
            fds = given.dup_all(name)
            try:
                _sort_in(found, name, fds)
            finally:
                close_all(fds)
    return found


def _sort_in(found: Inherited, name: str, fds: list[int]) -> None:
    """Takes what it keeps out of `fds`."""
    while fds:
        if name.startswith(_PREFIX):
            found.files.add(unquote(name.removeprefix(_PREFIX)), fds[0])
        elif name in ("qmp", "nbd"):
            getattr(found, name).append(socket.socket(fileno=fds[0]))
        else:
            log.warning("a descriptor named %r was passed in, and is not used", name)
            return
        fds.pop(0)


def notify(*states: str, fds: Sequence[int] = ()) -> bool:
    """Tell the service manager; False where there is none. See sd_notify(3)."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if path[:1] not in ("/", "@"):
        return False
    address = "\0" + path[1:] if path.startswith("@") else path
    ancillary: list[tuple[int, int, array.array[int]]] = []
    if fds:
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        try:
            sock.connect(address)
            sock.sendmsg(["\n".join(states).encode()], ancillary)
        except OSError as error:
            log.warning("the service manager cannot be told %s: %s", states[0], error)
            return False
    return True


class Keeper:
    """Keeps the descriptors of one image with the service manager, for the next start.

    Where there is no store (FDSTORE is not set) it does nothing.
    """

    def __init__(self) -> None:
        self._room = 0
        with contextlib.suppress(ValueError):
            self._room = int(os.environ.get("FDSTORE", "0"))
        self._stored: list[str] = []

    def keep(self, image: fdstash.Image) -> None:
        """Give the store what the image has open now, in the place of what it was given before."""
        if not self._room:
            return
        self.forget(self._stored)
        with FDStash() as stash:
            image.extract_fds(stash)
            names = [(name, _PREFIX + quote(name)) for name in stash.names()]
            if len(names) > self._room or any(len(stored) > _MAX_NAME for _, stored in names):
                log.warning(
                    "the service manager does not keep %s: %d files, and room for %d"
                    " (FileDescriptorStoreMax), with names of at most %d characters",
                    image.name, len(names), self._room, _MAX_NAME,
                )  # fmt: skip
                return
            for name, stored in names:
                fds = stash.dup_all(name)
                notify("FDSTORE=1", f"FDNAME={stored}", "FDPOLL=0", fds=fds)
                close_all(fds)
                self._stored.append(stored)

    def forget(self, names: Iterable[str]) -> None:
        """Take these out of the store."""
        for name in list(names):
            notify("FDSTOREREMOVE=1", f"FDNAME={name}")
        self._stored = []

    def forget_files(self, stash: FDStash) -> None:
        """Take out what an earlier process has put in, and this one was given."""
        if self._room:
            self.forget(_PREFIX + quote(name) for name in stash.names())
