"""`fdstash serve`: images behind a monitor and an NBD server."""

from __future__ import annotations

import importlib
import logging
import os
import signal
import socket
import sys
from contextlib import ExitStack
from typing import Any, NamedTuple

import click

import fdstash
from fdstash.cache import CACHE_MODES
from fdstash.cli.options import format_option
from fdstash.monitor import Daemon, Settings
from fdstash.monitor.exports import ExportServer
from fdstash.monitor.listener import Listener
from fdstash.monitor.nodes import ImageNode
from fdstash.monitor.options import check_name
from fdstash.monitor.service import Inherited, Keeper, inherited, notify

__all__ = ["serve"]

_DEFAULTS = Settings()
_LEVELS = ("debug", "info", "warning", "error")


@click.command(short_help="Serve images to QMP and NBD clients.")
@format_option
@click.option(
    "--mode", type=click.Choice(["r", "r+"]), default="r", show_default=True,
    help="Of IMAGE: for reading, or for writing too.",
)  # fmt: skip
@click.option(
    "--cache", type=click.Choice(list(CACHE_MODES)), default="writeback", show_default=True,
    help="Cache mode of IMAGE.",
)  # fmt: skip
@click.option("--node-name", default="disk", show_default=True, help="What IMAGE is to be called.")
@click.option("--qmp", metavar="SOCKET", help="Listen there for QMP clients.")
@click.option("--nbd", metavar="SOCKET", help="Listen there for NBD clients.")
@click.option(
    "--socket-mode", default="0600", show_default=True, metavar="OCTAL",
    help="Permissions of both sockets.",
)  # fmt: skip
@click.option(
    "--allow-folder", "folders", multiple=True, metavar="DIR",
    help="Let QMP clients open files beneath DIR; may be given several times. Otherwise they can"
    " only use IMAGE and descriptors that they pass.",
)  # fmt: skip
@click.option(
    "--max-clients", type=click.IntRange(1), default=_DEFAULTS.max_clients, show_default=True,
    help="QMP clients at once.",
)  # fmt: skip
@click.option(
    "--max-connections", type=click.IntRange(1), default=_DEFAULTS.max_connections,
    show_default=True, help="NBD clients at once.",
)  # fmt: skip
@click.option(
    "--max-descriptors", type=click.IntRange(1), default=_DEFAULTS.max_descriptors,
    show_default=True, help="Descriptors that each QMP client, and all sets, may hold.",
)  # fmt: skip
@click.option(
    "--log-level", type=click.Choice(_LEVELS), default="info", show_default=True,
    help="What is told on standard error.",
)  # fmt: skip
@click.argument("image", required=False)
def serve(
    *,
    image_format: str | None,
    mode: str,
    cache: str,
    node_name: str,
    qmp: str | None,
    nbd: str | None,
    socket_mode: str,
    folders: tuple[str, ...],
    max_clients: int,
    max_connections: int,
    max_descriptors: int,
    log_level: str,
    image: str | None,
) -> None:
    """Serve IMAGE over NBD under the empty name, and let QMP clients reopen it meanwhile.

    Without IMAGE, clients open images themselves. SIGTERM and SIGINT flush all images, tell
    QMP clients, and remove the sockets. Sockets that systemd passes in are taken by their names,
    qmp and nbd. docs/monitor.md lists the commands.
    """
    permissions = _permissions(socket_mode)
    check_name(node_name)
    _log_to_stderr(log_level)
    settings = Settings(
        allow_folders=folders,
        max_clients=max_clients,
        max_connections=max_connections,
        max_descriptors=max_descriptors,
    )
    with ExitStack() as stack:
        given = inherited()
        stack.callback(given.close)
        if not (qmp or nbd or given.qmp or given.nbd):
            raise click.UsageError("nobody could connect: give --qmp, --nbd, or both")
        keeper = Keeper()
        daemon = Daemon(
            settings,
            server=_nbd_server,
            on_reopened=lambda node: keeper.keep(node.image) if not node.managed else None,
        )
        stack.callback(_stop, daemon)
        served = None
        if image is not None:
            served = _Served(image, node_name, image_format, mode, cache)
            _open(daemon, keeper, given, served)
        _listen_nbd(daemon, given, nbd, permissions, served)
        _listen_qmp(daemon, given, qmp, permissions)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: daemon.quit("host-signal"))
        notify("READY=1", f"STATUS=Serving {image or 'what clients open'}")
        daemon.log.info("ready")
        while not daemon.wait(3600):
            pass


def _permissions(text: str) -> int:
    try:
        mode = int(text, 8)
    except ValueError:
        mode = -1
    if not 0 <= mode <= 0o777:
        raise click.BadParameter(
            f"{text!r} is no octal number up to 0777", param_hint="--socket-mode"
        )
    return mode


def _log_to_stderr(level: str) -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(_Lines("%(asctime)s %(levelname)s: %(message)s"))
    logger = logging.getLogger("fdstash")
    logger.addHandler(handler)
    logger.setLevel(level.upper())


class _Lines(logging.Formatter):
    """One line an event, whatever a client has put into it."""

    def format(self, record: logging.LogRecord) -> str:
        return (
            super().format(record).replace("\n", "\\n")
            if not record.exc_info
            else (super().format(record))
        )


def _nbd_server(**options: Any) -> ExportServer:
    """Made, and imported, only when somebody exports something."""
    made: ExportServer = importlib.import_module("fdstash.export").NbdServer(**options)
    return made


class _Served(NamedTuple):
    """The image of the command line."""

    image: str
    node_name: str
    format: str | None
    mode: str
    cache: str


def _open(daemon: Daemon, keeper: Keeper, given: Inherited, served: _Served) -> None:
    opened = fdstash.open(
        served.image,
        served.mode,
        format=served.format,
        cache=served.cache,
        stash=given.files if given.files.names() else None,
    )
    node = ImageNode(served.node_name, opened.format, opened, served.image)
    node.managed = False
    daemon.serve(node)
    keeper.forget_files(given.files)
    keeper.keep(opened)
    given.files.close()
    count = len(opened.files)
    daemon.log.info(
        "node %r: %s %r of %d %s, mode %s, cache %s",
        node.name,
        opened.format,
        served.image,
        count,
        "file" if count == 1 else "files",
        opened.mode,
        opened.cache,
    )


def _listen_nbd(
    daemon: Daemon, given: Inherited, path: str | None, permissions: int, served: _Served | None
) -> None:
    if path is not None:
        daemon.exports.start_unix(path, mode=permissions)
    elif given.nbd:
        daemon.exports.start_on(_duplicate(given.nbd[0]))
    else:
        return
    daemon.log.info("NBD clients connect to %s", path or "the socket passed in")
    if served is not None:
        node = daemon.table.get(served.node_name)
        image = daemon.opener.image_of(node)
        daemon.exports.add(node.name, node, image, "", "", writable=image.mode == "r+")


def _listen_qmp(daemon: Daemon, given: Inherited, path: str | None, permissions: int) -> None:
    if path is not None:
        daemon.listen(path, permissions)
        daemon.log.info("QMP clients connect to %s", path)
    for sock in given.qmp:
        daemon.adopt(Listener(_duplicate(sock), None))
        daemon.log.info("QMP clients connect to the socket passed in")


def _duplicate(sock: socket.socket) -> socket.socket:
    """For whoever closes it; `Inherited` closes its own."""
    return sock.dup()


def _stop(daemon: Daemon) -> None:
    notify("STOPPING=1")
    clean = daemon.close()
    daemon.log.info("ended")
    if not clean:
        # What hangs in the kernel would keep the interpreter from ending.
        logging.shutdown()
        sys.stderr.flush()
        os._exit(1)
