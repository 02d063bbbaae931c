"""What the preloaded write log (tests/faults/writelog) has recorded, and how it is recorded.

The log is in order of completion. Beside the changes of image files it has those of one file,
`MARKS`, by whose lines the program under test says where it is.
"""

from __future__ import annotations

import enum
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.support.compiler import compile_c
from tests.support.need import plain_environment

__all__ = ["MARKS", "Kind", "Record", "parse", "recording_environment"]

MARKS = "marks"
"""The file of marks, in the watched folder. A mark is one write."""

_SOURCES = Path(__file__).parents[1] / "faults" / "writelog"
_FLAGS = (
    "-std=c11 -O2 -g -fPIC -shared -fvisibility=hidden -fno-builtin -U_FORTIFY_SOURCE"
    " -Wall -Wextra -Werror"
).split()
_HEAD = struct.Struct("<IIQQQ")
_DURABLE = 1


class Kind(enum.IntEnum):
    """As `enum record_kind` of writelog.h has it."""

    WRITE = 1
    ZERO = 2
    SIZE = 3
    GROW = 4
    SYNC_BEGIN = 5
    SYNC_END = 6


@dataclass(frozen=True, slots=True)
class Record:
    """One record; what `offset` and `length` (bytes) say depends on the kind: see writelog.h."""

    kind: Kind
    name: str  #: of the file, relative to the watched folder
    offset: int
    length: int
    data: bytes = b""
    durable: bool = False  #: by itself, when the call returned


def recording_environment(folder: Path, log: Path) -> dict[str, str]:
    """An environment in which a program's changes of files beneath `folder` go into `log`.

    `log` is elsewhere than in the folder.
    """
    shim = compile_c(sorted(_SOURCES.glob("*.[ch]")), "writelog.so", _FLAGS, ["-ldl", "-lpthread"])
    own = {
        "LD_PRELOAD": " ".join([*os.environ.get("LD_PRELOAD", "").split(), str(shim)]),
        "FDSTASH_WRITELOG_FOLDER": os.path.realpath(folder),
        "FDSTASH_WRITELOG_FILE": str(log),
    }
    return {**plain_environment(), **own}


def parse(log: Path) -> Iterator[Record]:
    """The records, in the order of the log."""
    content = log.read_bytes()
    at = 0
    while at < len(content):
        kind, flags, offset, length, name_length = _HEAD.unpack_from(content, at)
        at += _HEAD.size
        name = os.fsdecode(content[at : at + name_length])
        at += name_length
        data = b""
        if kind == Kind.WRITE:
            data = content[at : at + length]
            at += length
        yield Record(Kind(kind), name, offset, length, data, bool(flags & _DURABLE))
