"""What each command does. Runs on the thread of the client that sent it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import fdstash
from fdstash._version import __version__
from fdstash.monitor import options as node_options
from fdstash.monitor.describe import describe_all, query_block
from fdstash.monitor.descriptors import Passed, close_all
from fdstash.monitor.errors import QmpError, device_not_found, told
from fdstash.monitor.introspection import schema_info
from fdstash.monitor.later_log import LaterLog
from fdstash.monitor.nodes import BackingNode, ChildNode, FileNode, Held, ImageNode, Node
from fdstash.monitor.vocabulary import SCHEMA

if TYPE_CHECKING:
    from fdstash.monitor.daemon import Daemon

__all__ = ["VERSION", "Commands"]

_numbers = (*(int(n) for n in re.findall(r"\d+", __version__)), 0, 0, 0)
VERSION = {
    "qemu": dict(zip(("major", "minor", "micro"), _numbers, strict=False)),
    "package": f"fdstash {__version__}",
}
#: What the log says of an image: `_told_of` it.
_IMAGE = "%s %r, mode %s, cache %s"
_REOPENED = f"node %r reopened: {_IMAGE}"
_EXPORT_ID = re.compile(r"[A-Za-z][-A-Za-z0-9._]*")

Arguments = Mapping[str, Any]


class Commands:
    """A method for each command of `SCHEMA`, but for the negotiation, which the session sees to.

    Each takes what the client has passed in and its arguments, checked, and returns the answer.
    """

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self.log = LaterLog(daemon.log)  #: written by the session, after the answer

    def find(self, name: str) -> Callable[[Passed, Arguments], Any]:
        """The method for a command."""
        method: Callable[[Passed, Arguments], Any] = getattr(self, name.replace("-", "_"))
        return method

    # -- about the monitor

    def query_version(self, passed: Passed, given: Arguments) -> Any:
        return VERSION

    def query_commands(self, passed: Passed, given: Arguments) -> Any:
        return [{"name": name} for name in SCHEMA.commands]

    def query_qmp_schema(self, passed: Passed, given: Arguments) -> Any:
        return schema_info(SCHEMA)

    def quit(self, passed: Passed, given: Arguments) -> None:
        self._daemon.quit("host-qmp-quit")

    # -- descriptors

    def getfd(self, passed: Passed, given: Arguments) -> None:
        passed.getfd(given["fdname"])

    def closefd(self, passed: Passed, given: Arguments) -> None:
        passed.closefd(given["fdname"])

    def add_fd(self, passed: Passed, given: Arguments) -> Any:
        fd = passed.take()
        try:
            return self._daemon.sets.add(fd, given.get("fdset-id"), given.get("opaque"))
        except BaseException:
            close_all([fd])
            raise

    def remove_fd(self, passed: Passed, given: Arguments) -> None:
        self._daemon.sets.remove(given["fdset-id"], given.get("fd"))

    def query_fdsets(self, passed: Passed, given: Arguments) -> Any:
        return self._daemon.sets.query()

    # -- nodes

    def blockdev_add(self, passed: Passed, given: Arguments) -> None:
        node = self._daemon.opener.add(node_options.parse(given), passed.stash)
        self.log.info("node %r added: %s", node.name, _shown(node))

    def blockdev_reopen(self, passed: Passed, given: Arguments) -> None:
        options = [node_options.parse(each) for each in given["options"]]
        for node in self._daemon.reopener.reopen(options, passed.stash):
            self._reopened(node)

    def _reopened(self, node: ImageNode) -> None:
        if node.deleted:  # by another client, meanwhile
            return
        self.log.info(_REOPENED, node.name, *_told_of(node))
        self._daemon.reopened(node)

    def block_set_hostcache(self, passed: Passed, given: Arguments) -> None:
        name = given["node-name"]
        node = self._daemon.table.find(name)
        if node is None:
            raise device_not_found(name)
        owner = node.owner()
        if owner is None:
            raise QmpError(f"Node '{name}' is not an open image")
        self._daemon.reopener.set_host_cache(owner, use=given["hostcache"])
        self._reopened(owner)

    def blockdev_del(self, passed: Passed, given: Arguments) -> None:
        name = given["node-name"]
        node = self._daemon.table.find(name)
        if node is None:
            raise QmpError(f"Failed to find node with node-name='{name}'")
        if isinstance(node, ChildNode | BackingNode):
            raise QmpError(f"Node '{name}' is a part of '{node.image.name}', and ends with it")
        with Held(node):
            if node.exports:
                raise QmpError(f"Node {name} is in use: export '{min(node.exports)}' serves it")
            if node.parents:
                raise QmpError(
                    f"Block device {name} is in use: '{min(node.parents)}' is based on it"
                )
            self._daemon.delete(node)
        self.log.info("node %r deleted", name)

    def query_named_block_nodes(self, passed: Passed, given: Arguments) -> Any:
        return describe_all(self._daemon.table, flat=given.get("flat", False))

    def query_block(self, passed: Passed, given: Arguments) -> Any:
        return query_block(self._daemon.table)

    def block_resize(self, passed: Passed, given: Arguments) -> None:
        name, device = given.get("node-name", ""), given.get("device", "")
        node = self._daemon.table.find(name or device)
        if node is None or (name and device):
            raise QmpError(f"Cannot find device='{device}' nor node-name='{name}'")
        if given["size"] < 0:
            raise QmpError("Parameter 'size' expects a >0 size")
        with Held(node):
            image = self._daemon.opener.image_of(node)
            try:
                image.resize(given["size"])
            except (fdstash.Error, OSError) as error:
                raise told(error, f"Could not resize '{node.name}'") from error
            finally:
                if isinstance(node, FileNode):
                    node.close_direct()

    # -- exports

    def nbd_server_start(self, passed: Passed, given: Arguments) -> None:
        address, connections = given["addr"], given.get("max-connections", 0)
        data = address["data"]
        if address["type"] == "unix":
            self._daemon.exports.start_unix(data["path"], connections=connections)
        else:
            self._daemon.exports.start_tcp(data["host"], data["port"], connections=connections)
        self.log.info("NBD server listens on %s", ":".join(map(str, data.values())))

    def nbd_server_stop(self, passed: Passed, given: Arguments) -> None:
        self._daemon.exports.stop()

    def block_export_add(self, passed: Passed, given: Arguments) -> None:
        export_id, name = given["id"], given["node-name"]
        if not _EXPORT_ID.fullmatch(export_id):
            raise QmpError("Invalid block export id")
        node = self._daemon.table.find(name)
        if node is None:
            raise QmpError(f"Cannot find device='' nor node-name='{name}'")
        writable = given.get("writable", False)
        with Held(node):
            image = self._daemon.opener.image_of(node)
            if writable and image.mode == "r":
                raise QmpError("Cannot export read-only node as writable")
            shown = given.get("name", name)
            self._daemon.exports.add(
                export_id, node, image, shown, given.get("description", ""), writable=writable
            )
        self.log.info("export %r of node %r added", export_id, name)

    def block_export_del(self, passed: Passed, given: Arguments) -> None:
        self._daemon.exports.remove(given["id"], hard=given.get("mode", "safe") == "hard")

    def query_block_exports(self, passed: Passed, given: Arguments) -> Any:
        return self._daemon.exports.query()


def _told_of(node: ImageNode) -> tuple[str, str, str, str]:
    """What `_IMAGE` shows."""
    image = node.image
    return image.format, node.filename, image.mode, image.cache


def _shown(node: Node) -> str:
    if isinstance(node, ImageNode):
        return _IMAGE % _told_of(node)
    return f"file {node.filename!r}, mode {node.mode}" if isinstance(node, FileNode) else ""
