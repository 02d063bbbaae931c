"""What the monitor understands: QEMU's words for what QEMU has, each with what it does here.

The one place where commands, their arguments and events are declared.
"""

from __future__ import annotations

from fdstash.monitor.block_types import BLOCK_TYPES
from fdstash.monitor.schema import Schema
from fdstash.monitor.schema_types import Builtin, Command, Enum, Event, Member, Struct

__all__ = ["SCHEMA"]

_I64 = 1 << 63

_BUILTINS = (
    Builtin("str", "string", "string"),
    Builtin("bool", "boolean", "boolean"),
    Builtin("int", "int", "integer", -_I64, _I64 - 1),
    Builtin("any", "value", "value"),
    Builtin("null", "null", "null"),
)


def _optional(name: str, kind: str, doc: str) -> Member:
    return Member(name, kind, doc, optional=True)


_PROTOCOL_TYPES = (
    Enum("QMPCapability", {}, "What a client may enable: nothing so far."),
    Struct(
        "VersionTriple",
        [
            Member("major", "int", "First number."),
            Member("minor", "int", "Second number."),
            Member("micro", "int", "Third number."),
        ],
    ),
    Struct(
        "VersionInfo",
        [
            Member("qemu", "VersionTriple", "The version of fdstash, where clients look for one."),
            Member("package", "str", "`fdstash` and its version."),
        ],
    ),
    Struct("CommandInfo", [Member("name", "str", "Of the command.")]),
    Struct(
        "SchemaInfo",
        [
            Member("name", "str", "Of the command or event, or a number for a type."),
            Member("meta-type", "str", "What it is; further members as in QEMU's introspection."),
        ],
    ),
    Struct(
        "AddfdInfo",
        [
            Member("fdset-id", "int", "Of the set that has the descriptor now."),
            Member("fd", "int", "The number of the descriptor in the daemon."),
        ],
    ),
    Struct(
        "FdsetFdInfo",
        [
            Member("fd", "int", "The number of the descriptor in the daemon."),
            _optional("opaque", "str", "What `add-fd` was told."),
        ],
    ),
    Struct(
        "FdsetInfo",
        [
            Member("fdset-id", "int", "Of the set."),
            Member("fds", "[FdsetFdInfo]", "Its descriptors."),
        ],
    ),
)

_PROTOCOL = (
    Command(
        "qmp_capabilities",
        "Ends the negotiation; no other command is taken before.",
        [_optional("enable", "[QMPCapability]", "Capabilities to enable.")],
    ),
    Command("query-version", "The daemon's version.", returns="VersionInfo"),
    Command("query-commands", "The names of all commands.", returns="[CommandInfo]"),
    Command("query-qmp-schema", "This page, for programs.", returns="[SchemaInfo]"),
    Command("quit", "Ends the daemon: it flushes, tells its clients, and removes its sockets."),
)

_NAMED = "A name that a file of an image has serves that file."

_DESCRIPTORS = (
    Command(
        "getfd",
        "Keeps the descriptor that came with SCM_RIGHTS, for this client and as long as it stays"
        f" connected. {_NAMED} What the name held before is closed.",
        [Member("fdname", "str", "A name that does not start with a digit.")],
    ),
    Command(
        "closefd",
        "Closes what `getfd` keeps under a name.",
        [Member("fdname", "str", "The name.")],
    ),
    Command(
        "add-fd",
        "Adds the descriptor that came with SCM_RIGHTS to a set that all clients share. The file"
        " name `/dev/fdset/N` means the member of set N with the access mode and O_DIRECT that are"
        " wanted; a set that lacks them is completed by opening the same file again, where the"
        " file's permissions allow it.",
        [
            _optional("fdset-id", "int", "Of the set; without it a new one, the lowest free."),
            _optional(
                "opaque",
                "str",
                f"The file's name, if need be after `rdonly:`, `wronly:` or `rdwr:`. {_NAMED}",
            ),
        ],
        "AddfdInfo",
    ),
    Command(
        "remove-fd",
        "Closes one descriptor of a set, or all of them. Images that were opened with it keep"
        " their own.",
        [
            Member("fdset-id", "int", "Of the set."),
            _optional("fd", "int", "The number that `add-fd` answered."),
        ],
    ),
    Command("query-fdsets", "All sets.", returns="[FdsetInfo]"),
)

_BLOCK = (
    Command("blockdev-add", "Opens an image, or a file for one.", "BlockdevOptions"),
    Command(
        "blockdev-reopen",
        "Changes how nodes are open: all files of all of them, or none. An option that is left out"
        " gets its default, except `backing` and `extents`, which stay. The options of any file of"
        " an image are those of the whole image; another `filename` must hold the same content.",
        [Member("options", "[BlockdevOptions]", "Of each node; `node-name` says which.")],
    ),
    Command(
        "blockdev-del",
        "Flushes and closes a node that nobody uses.",
        [Member("node-name", "str", "Of the node.")],
    ),
    Command(
        "query-named-block-nodes",
        "All nodes, the files of images included; what it says of modes is what the kernel says.",
        [_optional("flat", "bool", "Leave out what lies below an image.")],
        "[BlockDeviceInfo]",
    ),
    Command("query-block", "All images that nothing is based on.", returns="[BlockInfo]"),
    Command(
        "block_resize",
        "Changes the size of a disk.",
        [
            _optional("device", "str", "Only for whom QEMU's form matters: a node's name, too."),
            _optional("node-name", "str", "Of the node."),
            Member("size", "int", "Bytes."),
        ],
    ),
    Command(
        "block_set_hostcache",
        "Turns the host's page cache on or off: `cache.direct` of `blockdev-reopen`, and nothing"
        " else changes.",
        [
            Member("node-name", "str", "Of the node."),
            Member("hostcache", "bool", "Whether to use the host's page cache."),
        ],
    ),
    Command(
        "nbd-server-start",
        "Listens for NBD clients.",
        [
            Member("addr", "SocketAddressLegacy", "A Unix socket, or TCP on this machine."),
            _optional("max-connections", "int", "At once; 0: the daemon's limit."),
        ],
    ),
    Command("nbd-server-stop", "Disconnects NBD clients, and removes all exports."),
    Command("block-export-add", "Serves a node to NBD clients.", "BlockExportOptions"),
    Command(
        "block-export-del",
        "Ends an export.",
        [
            Member("id", "str", "Of the export."),
            _optional("mode", "BlockExportRemoveMode", "`safe` unless said otherwise."),
        ],
    ),
    Command("query-block-exports", "All exports.", returns="[BlockExportInfo]"),
)

_EVENTS = (
    Event(
        "SHUTDOWN",
        "The daemon ends.",
        [
            Member("guest", "bool", "False: no guest asked for it."),
            Member("reason", "str", "`host-signal`, or `host-qmp-quit`."),
        ],
    ),
    Event(
        "BLOCK_IO_ERROR",
        "A request of an NBD client failed, or the flush at the end of its export, which is told"
        " before BLOCK_EXPORT_DELETED. At most ten a second are told of each export.",
        [
            Member("device", "str", "Empty: QEMU's form."),
            _optional("node-name", "str", "Of the node."),
            Member("operation", "IoOperationType", "What failed."),
            Member("action", "BlockErrorAction", "What was done."),
            _optional("nospace", "bool", "Whether there was no space."),
            Member("reason", "str", "The system's text for the error."),
        ],
    ),
    Event(
        "BLOCK_EXPORT_DELETED",
        "An export has ended.",
        [Member("id", "str", "Of the export.")],
    ),
)

SCHEMA = Schema(
    (*_BUILTINS, *_PROTOCOL_TYPES, *BLOCK_TYPES), (*_PROTOCOL, *_DESCRIPTORS, *_BLOCK), _EVENTS
)
