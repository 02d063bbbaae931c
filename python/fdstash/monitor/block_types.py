"""The types of options, nodes and exports: a part of `vocabulary`."""

from __future__ import annotations

from fdstash.monitor.schema_types import Alternate, Enum, Member, Struct, Union

__all__ = ["BLOCK_TYPES"]


def _optional(name: str, kind: str, doc: str) -> Member:
    return Member(name, kind, doc, optional=True)


_OPTIONS = (
    Enum(
        "BlockdevDriver",
        {
            "file": "A file, or a block device.",
            "host_device": "The same.",
            "raw": "A disk as it is.",
            "vmdk": "VMware's format, of one file or of many.",
        },
    ),
    Enum(
        "BlockdevDiscardOptions",
        {"ignore": "Trimming does nothing.", "unmap": "Trimming gives space back."},
        "Taken for QEMU's sake: what an NBD client trims is given back in any case.",
    ),
    Struct(
        "BlockdevCacheOptions",
        [
            _optional("direct", "bool", "Past the host's page cache (O_DIRECT); false by default."),
            _optional("no-flush", "bool", "A flush does nothing; false by default."),
        ],
        "An image and its files have one cache mode.",
    ),
    Struct(
        "BlockdevOptionsFile",
        [
            Member("filename", "str", "A path, `/dev/fdset/N`, or the name of a descriptor."),
            _optional("locking", "OnOffAuto", "Whether other programs are kept off the file."),
        ],
    ),
    Enum("OnOffAuto", {"auto": "As `on`.", "on": "Lock, or fail.", "off": "Do without."}),
    Struct(
        "BlockdevOptionsRaw",
        [
            Member("file", "BlockdevRef", "The file."),
            _optional("offset", "int", "Where in the file the disk starts, bytes."),
            _optional("size", "int", "Of the disk, bytes; without it up to the end of the file."),
        ],
    ),
    Struct(
        "BlockdevOptionsVmdk",
        [
            Member("file", "BlockdevRef", "The descriptor file, or the only one."),
            _optional(
                "extents",
                "[BlockdevRef]",
                "The files that the descriptor file names, in its order: each where it says, and"
                " not where the descriptor file says. Those at the end may be left out.",
            ),
            _optional(
                "backing",
                "BlockdevRefOrNull",
                "The image that this one is based on, where it is not the one that its header"
                " names; null: none, and what only images below have reads as zeros.",
            ),
        ],
    ),
    Union(
        "BlockdevOptions",
        [
            Member("driver", "BlockdevDriver", "What reads it."),
            _optional("node-name", "str", "What the node is to be called; needed at the top."),
            _optional("discard", "BlockdevDiscardOptions", "What trimming does."),
            _optional("cache", "BlockdevCacheOptions", "The cache mode."),
            _optional("read-only", "bool", "Whether nothing may be written; false by default."),
            _optional(
                "auto-read-only", "bool", "Open for reading where the file cannot be written."
            ),
        ],
        "driver",
        {
            "file": "BlockdevOptionsFile",
            "host_device": "BlockdevOptionsFile",
            "raw": "BlockdevOptionsRaw",
            "vmdk": "BlockdevOptionsVmdk",
        },
        "The options of a node.",
    ),
    Alternate(
        "BlockdevRef", ["BlockdevOptions", "str"], "Options of a new node, or a node's name."
    ),
    Alternate("BlockdevRefOrNull", ["BlockdevOptions", "str", "null"], "The same, or none."),
)

_NODES = (
    Struct(
        "BlockdevCacheInfo",
        [
            Member(
                "writeback", "bool", "Whether a write may be told as done before it is durable."
            ),
            Member("direct", "bool", "Whether the host's page cache is avoided."),
            Member("no-flush", "bool", "Whether a flush does nothing."),
        ],
    ),
    Struct(
        "ImageInfo",
        [
            Member("filename", "str", "Of the image or file."),
            Member("format", "str", "Of the image; `file` of a file."),
            Member("virtual-size", "int", "Of the disk, bytes."),
            _optional("actual-size", "int", "On the host, bytes."),
            Member("dirty-flag", "bool", "False."),
            _optional("backing-filename", "str", "Of the image below."),
            _optional("format-specific", "any", "What else the format says."),
        ],
    ),
    Struct(
        "BlockdevChild",
        [
            Member("child", "str", "`file`, `extents.N` or `backing`."),
            Member("node-name", "str", "Of the node."),
        ],
    ),
    Struct(
        "BlockDeviceInfo",
        [
            Member("file", "str", "Name of the file."),
            Member("node-name", "str", "Of the node."),
            Member("drv", "str", "Its driver."),
            Member("ro", "bool", "Whether nothing can be written."),
            _optional("backing_file", "str", "Of the image below."),
            Member("backing_file_depth", "int", "How many images lie below."),
            Member("encrypted", "bool", "False."),
            Member("detect_zeroes", "str", "`off`."),
            *(
                Member(name, "int", "0: nothing is throttled.")
                for name in ("bps", "bps_rd", "bps_wr", "iops", "iops_rd", "iops_wr")
            ),
            Member("write_threshold", "int", "0."),
            Member("cache", "BlockdevCacheInfo", "The cache mode."),
            Member("image", "ImageInfo", "More."),
            Member("children", "[BlockdevChild]", "What it consists of."),
        ],
    ),
    Struct(
        "BlockInfo",
        [
            Member("device", "str", "Empty."),
            Member("type", "str", "`unknown`."),
            Member("removable", "bool", "False."),
            Member("locked", "bool", "False."),
            _optional("inserted", "BlockDeviceInfo", "The node."),
        ],
    ),
)

_EXPORTS = (
    Enum("SocketAddressType", {"unix": "A Unix socket.", "inet": "TCP."}),
    Struct("UnixSocketAddress", [Member("path", "str", "Of the socket.")]),
    Struct(
        "InetSocketAddress",
        [
            Member("host", "str", "`127.0.0.1`, `::1` or `localhost`: a proxy serves others."),
            Member("port", "str", "A number; 0: any."),
        ],
    ),
    Struct("UnixSocketAddressWrapper", [Member("data", "UnixSocketAddress", "The address.")]),
    Struct("InetSocketAddressWrapper", [Member("data", "InetSocketAddress", "The address.")]),
    Union(
        "SocketAddressLegacy",
        [Member("type", "SocketAddressType", "What it is.")],
        "type",
        {"unix": "UnixSocketAddressWrapper", "inet": "InetSocketAddressWrapper"},
    ),
    Enum("BlockExportType", {"nbd": "For NBD clients."}),
    Struct(
        "BlockExportOptionsNbd",
        [
            _optional("name", "str", "What clients ask for; the node's name by default."),
            _optional("description", "str", "What clients are told."),
        ],
    ),
    Union(
        "BlockExportOptions",
        [
            Member("type", "BlockExportType", "How it is served."),
            Member("id", "str", "What the export is to be called here."),
            Member("node-name", "str", "Of the node."),
            _optional("writable", "bool", "Whether clients may write; false by default."),
        ],
        "type",
        {"nbd": "BlockExportOptionsNbd"},
    ),
    Enum(
        "BlockExportRemoveMode",
        {"safe": "Only if no client uses it.", "hard": "Disconnect its clients."},
    ),
    Struct(
        "BlockExportInfo",
        [
            Member("id", "str", "Of the export."),
            Member("type", "BlockExportType", "How it is served."),
            Member("node-name", "str", "Of the node."),
            Member("shutting-down", "bool", "Whether it waits for its last client."),
        ],
    ),
    Enum("IoOperationType", {"read": "A read.", "write": "Anything else."}),
    Enum(
        "BlockErrorAction",
        {"report": "The client was told.", "ignore": "Nothing.", "stop": "Not used."},
    ),
)

BLOCK_TYPES = (*_OPTIONS, *_NODES, *_EXPORTS)
