"""Which kind of VMDK file this is, by its first bytes.

After VMware's "Virtual Disk Format 5.0" and QEMU's driver: a hosted sparse
extent starts with KDMV, an ESX one with COWD or the seSparse constant header,
and a descriptor is text.
"""

from __future__ import annotations

import re

__all__ = ["SPARSE_MAGICS", "descriptor_confidence", "sparse_variant"]

SPARSE_MAGICS = (b"KDMV", b"COWD", (0xCAFEBABE).to_bytes(8, "little"))

_SESPARSE_VERSION = (0x0000000200000001).to_bytes(8, "little")
_NO_DIRECTORY = b"\xff" * 8  # the grain directory comes at the end of the stream
_COMPRESSION_DEFLATE = (1).to_bytes(2, "little")
_CREATE_TYPE = re.compile(rb'createType[ \t]*=[ \t]*"(\w{1,40})"', re.IGNORECASE)
_VERSION_LINE = re.compile(rb"[ \t]*version[ \t]*=[ \t]*[0-9]", re.IGNORECASE)


def sparse_variant(head: bytes) -> str | None:
    """The kind of sparse extent that starts with `head`, or None if it is none."""
    if head.startswith(b"KDMV"):
        if head[77:79] == _COMPRESSION_DEFLATE or head[56:64] == _NO_DIRECTORY:
            return "streamOptimized"
        embedded = _CREATE_TYPE.search(head)
        return embedded[1].decode("ascii") if embedded else "sparse extent"
    if head.startswith(b"COWD"):
        return "vmfsSparse"
    if head.startswith(SPARSE_MAGICS[2]) and head[8:16] == _SESPARSE_VERSION:
        return "seSparse"
    return None


def descriptor_confidence(head: bytes) -> int:
    """0 to 100: how sure it is that `head` starts a descriptor."""
    text = head.partition(b"\0")[0]
    for line in text.splitlines():
        if line.strip().lower().startswith(b"# disk descriptorfile"):
            return 100
        if _VERSION_LINE.match(line):
            return 90
        if line.strip() and not line.lstrip().startswith(b"#"):
            return 0
    return 0
