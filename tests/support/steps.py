"""A load that follows from a seed, so that another process knows what it wrote.

Run as a program it makes the steps on an image, and says on standard output, and in the
file of marks where there is one, how many were done when a flush had returned.

    python -m tests.support.steps IMAGE SEED COUNT [MARKS]
"""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Iterator
from typing import NamedTuple

import fdstash
from fdstash.formats import registry
from tests.support.toy_format import Toy

__all__ = ["SECTOR", "Model", "Step", "model_after", "steps"]

SECTOR = 512
_LENGTHS = (SECTOR, 2 * SECTOR, 4096, 5 * SECTOR, 65536, 65536 + SECTOR, 150 * SECTOR)
#: Long enough to give whole clusters up.
_GIVEN_UP = (SECTOR, 16384, 65536 + SECTOR, 3 * 65536)
_WITH_PLACE = ("write", "fua", "zero", "unmap", "trim")
_CACHES = ("writeback", "none", "writethrough", "directsync")


class Step(NamedTuple):
    """One step; `offset` and `length` are whole sectors."""

    kind: str  #: write, fua, zero, unmap, trim, flush, cache, mode
    offset: int = 0
    length: int = 0
    data: bytes = b""
    cache: str = ""


def steps(seed: int, count: int, size: int) -> Iterator[Step]:
    """`count` steps on a disk of `size` bytes; one in eight or so is a flush."""
    pick = random.Random(seed)
    for _ in range(count):
        kind = pick.choices(
            ("write", "fua", "zero", "unmap", "trim", "flush", "cache", "mode"),
            (50, 4, 6, 8, 6, 12, 2, 2),
        )[0]
        length = min(pick.choice(_LENGTHS if kind in ("write", "fua") else _GIVEN_UP), size)
        offset = pick.randrange((size - length) // SECTOR + 1) * SECTOR
        data = pick.randbytes(16) * (length // 16) if kind in ("write", "fua") else b""
        place = (offset, length) if kind in _WITH_PLACE else (0, 0)
        yield Step(kind, *place, data, pick.choice(_CACHES))


class Model:
    """What each sector may read as, should the steps end here or have ended since a flush."""

    def __init__(self, content: bytes) -> None:
        self._content = bytearray(content)
        #: By offset of a sector: what it may be by now. A trim leaves what was there, or zeros.
        self._now: dict[int, frozenset[bytes]] = {}
        #: The same, and what it may have been since the last flush.
        self._since: dict[int, frozenset[bytes]] = {}

    def apply(self, step: Step) -> None:
        """A step that was made, or begun."""
        for at in range(step.offset, step.offset + step.length, SECTOR):
            before = self._now.get(at, frozenset([bytes(self._content[at : at + SECTOR])]))
            place = at - step.offset
            new = frozenset([step.data[place : place + SECTOR] or bytes(SECTOR)])
            self._now[at] = before | new if step.kind == "trim" else new
            self._since[at] = self._since.get(at, before) | new

    def durable(self, step: Step) -> None:
        """A flush has returned, and all is durable, or a write that is so by itself."""
        if step.kind == "flush":
            self._since = dict(self._now)
        for at in range(step.offset, step.offset + step.length, SECTOR):
            self._since[at] = self._now[at]

    def wrong(self, found: bytes) -> list[int]:
        """Offsets of sectors that hold what they cannot hold."""
        wanted = bytearray(self._content)
        for at, allowed in self._since.items():
            held = found[at : at + SECTOR]
            wanted[at : at + SECTOR] = held if held in allowed else min(allowed)
        if wanted == found:
            return []
        return [at for at in range(0, len(wanted), SECTOR) if differs(wanted, found, at)]


def differs(wanted: bytes | bytearray, found: bytes, at: int) -> bool:
    return wanted[at : at + SECTOR] != found[at : at + SECTOR]


def model_after(content: bytes, made: list[Step], begun: list[Step]) -> Model:
    """After `made`, the flushes of which have returned, and some or none of `begun`."""
    model = Model(content)
    for step in made:
        model.apply(step)
        if step.kind in ("flush", "fua"):
            model.durable(step)
    for step in begun:
        model.apply(step)
    return model


def make(image: fdstash.Image, step: Step) -> None:
    """Make the step."""
    match step.kind:
        case "write" | "fua":
            image.pwrite(step.data, step.offset, fua=step.kind == "fua")
        case "zero" | "unmap":
            image.zero(step.length, step.offset, unmap=step.kind == "unmap")
        case "trim":
            image.trim(step.length, step.offset)
        case "flush":
            image.flush()
        case "cache":
            image.reopen(cache=step.cache)
        case "mode":
            image.reopen(mode="r")
            image.reopen(mode="r+")


def main(words: list[str]) -> None:
    path, seed, count = words[0], int(words[1]), int(words[2])
    registry._DRIVERS["toy"] = Toy
    marks = os.open(words[3], os.O_WRONLY | os.O_APPEND) if len(words) > 3 else -1
    with fdstash.open(path, "r+") as image:
        for number, step in enumerate(steps(seed, count, image.size), start=1):
            make(image, step)
            if step.kind == "flush":
                os.write(1, b"%d\n" % number)
            if marks >= 0:
                os.write(marks, b"%d\n" % number)


if __name__ == "__main__":
    main(sys.argv[1:])
