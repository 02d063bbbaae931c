"""The handshake of the NBD protocol (fixed newstyle): its numbers, and how replies are packed.

https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md
"""

from __future__ import annotations

import enum
import struct

__all__ = [
    "CLIENT_FLAGS",
    "CONTEXT_ALLOCATION",
    "GREETING",
    "NO_ZEROES",
    "OPTION_HEADER",
    "OPTION_MAGIC",
    "Flag",
    "Info",
    "Option",
    "Reply",
    "pack_reply",
]

OPTION_MAGIC = 0x49484156454F5054  # IHAVEOPT
_REPLY_MAGIC = 0x0003E889045565A9

#: Of the client: it speaks the fixed newstyle, and wants no padding behind OPT_EXPORT_NAME.
FIXED_NEWSTYLE = 1
NO_ZEROES = 2
CLIENT_FLAGS = FIXED_NEWSTYLE | NO_ZEROES

GREETING = b"NBDMAGIC" + struct.pack(">QH", OPTION_MAGIC, FIXED_NEWSTYLE | NO_ZEROES)

#: Magic, option, length of its data.
OPTION_HEADER = struct.Struct(">QII")
_REPLY_HEADER = struct.Struct(">QIII")

#: The one metadata context there is.
CONTEXT_ALLOCATION = "base:allocation"


class Option(enum.IntEnum):
    """What a client may ask for."""

    EXPORT_NAME = 1
    ABORT = 2
    LIST = 3
    STARTTLS = 5
    INFO = 6
    GO = 7
    STRUCTURED_REPLY = 8
    LIST_META_CONTEXT = 9
    SET_META_CONTEXT = 10


class Reply(enum.IntEnum):
    """How an option is answered."""

    ACK = 1
    SERVER = 2
    INFO = 3
    META_CONTEXT = 4
    ERR_UNSUP = 0x80000001
    ERR_POLICY = 0x80000002
    ERR_INVALID = 0x80000003
    ERR_UNKNOWN = 0x80000006
    ERR_SHUTDOWN = 0x80000007
    ERR_TOO_BIG = 0x80000009


class Info(enum.IntEnum):
    """What OPT_INFO and OPT_GO tell of an export."""

    EXPORT = 0
    NAME = 1
    DESCRIPTION = 2
    BLOCK_SIZE = 3


class Flag(enum.IntFlag):
    """Transmission flags of an export."""

    HAS_FLAGS = 1 << 0
    READ_ONLY = 1 << 1
    SEND_FLUSH = 1 << 2
    SEND_FUA = 1 << 3
    SEND_TRIM = 1 << 5
    SEND_WRITE_ZEROES = 1 << 6
    SEND_DF = 1 << 7
    CAN_MULTI_CONN = 1 << 8
    SEND_CACHE = 1 << 10
    SEND_FAST_ZERO = 1 << 11


def pack_reply(option: int, reply: Reply, data: bytes = b"") -> bytes:
    """One reply to an option; of errors, `data` is a text for whoever reads it."""
    return _REPLY_HEADER.pack(_REPLY_MAGIC, option, reply, len(data)) + data
