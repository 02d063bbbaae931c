"""How to tell the formats that have no driver here yet.

Each rule looks at the first and last bytes of a file only. The marks are those
of the formats' published specifications and of QEMU's block drivers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

__all__ = ["SIGNATURES", "Signature"]


class Signature(NamedTuple):
    """A format's name, what messages call it, and the rule that knows it."""

    name: str
    title: str
    matches: Callable[[bytes, bytes], bool]  #: (head, tail) of the file


def _prefix(*marks: bytes) -> Callable[[bytes, bytes], bool]:
    return lambda head, _tail: head.startswith(marks)


def _at(offset: int, mark: bytes) -> Callable[[bytes, bytes], bool]:
    return lambda head, _tail: head[offset : offset + len(mark)] == mark


def _qcow(*versions: int) -> Callable[[bytes, bytes], bool]:
    return _prefix(*(b"QFI\xfb" + version.to_bytes(4, "big") for version in versions))


def _vhd_dynamic(head: bytes, _tail: bytes) -> bool:
    return head.startswith(b"conectix")


def _vhd_fixed(_head: bytes, tail: bytes) -> bool:
    # The footer is the last sector; the oldest writers left off its last byte.
    return tail[-512:].startswith(b"conectix") or tail[-511:].startswith(b"conectix")


def _dmg(_head: bytes, tail: bytes) -> bool:
    return tail[-512:].startswith(b"koly")


SIGNATURES: tuple[Signature, ...] = (
    Signature("qcow", "qcow (version 1)", _qcow(1)),
    Signature("qcow2", "qcow2", _qcow(2, 3)),
    Signature("qed", "QED", _prefix(b"QED\0")),
    Signature("vdi", "VirtualBox VDI", _at(0x40, (0xBEDA107F).to_bytes(4, "little"))),
    Signature("vpc", "VHD (dynamic)", _vhd_dynamic),
    Signature("vpc", "VHD (fixed)", _vhd_fixed),
    Signature("vhdx", "VHDX", _prefix(b"vhdxfile")),
    Signature("parallels", "Parallels", _prefix(b"WithoutFreeSpace", b"WithouFreSpacExt")),
    Signature("bochs", "Bochs growing or undoable", _prefix(b"Bochs Virtual HD Image\0")),
    Signature("cloop", "cloop", _prefix(b"#!/bin/sh\n#V2.0 Format\nmodprobe cloop ")),
    Signature("dmg", "Apple disk image", _dmg),
    Signature("luks", "LUKS1", _prefix(b"LUKS\xba\xbe\0\x01")),
    Signature("luks", "LUKS2", _prefix(b"LUKS\xba\xbe\0\x02")),
)
