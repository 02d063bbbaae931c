"""An image for tests of threads: every way to open it, and reopens without end."""

from __future__ import annotations

import itertools
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fdstash
from fdstash import FDStash, Image
from tests.support.disks import ExtentSpec, make_flat, make_raw
from tests.support.sparse_disks import make_cowd, make_delta

__all__ = ["LAYOUTS", "SPARSE", "Disk", "reopen_for", "short_turns"]

LAYOUTS = ("raw", "vmdk")
#: More tables than `clusters` keeps at least, so that pages come and go.
SPARSE = ("delta", "cowd")
_EXTENTS = tuple(
    ExtentSpec("RW", sectors, name=f"extent-{number}.bin", start=start)
    for number, (sectors, start) in enumerate([(37, 0), (128, 8), (91, 3), (24, 1), (203, 16)])
)
_SPARSE_EXTENTS = 12
_DELTA_SECTORS = 1024  # of each but the last one, the last grain of which is cut
_COWD_SECTORS = 1000


class Disk:
    """An image, the ways to open it, hard links to its files, and a stash with every mode."""

    def __init__(self, folder: Path, layout: str) -> None:
        self.layout = layout
        self.format = "raw" if layout == "raw" else "vmdk"
        own, linked = folder / "own", folder / "linked"
        own.mkdir()
        linked.mkdir()
        self.path, files, self.parent = _make(own, layout)
        for file in files:
            os.link(file, linked / file.name)
        self.link = linked / self.path.name
        self._stash = FDStash()
        for file, flags, direct in itertools.product(
            [*files, *(linked / file.name for file in files)],
            (os.O_RDWR, os.O_RDONLY),
            (0, os.O_DIRECT),
        ):
            self._stash.add(str(file), os.open(file, flags | direct))

    def open(self, mode: str = "r+") -> Image:
        return fdstash.open(self.path, mode, format=self.format)

    def reopens(self, *, writing: bool) -> Iterator[dict[str, Any]]:
        """Options for one reopen after the other, each of another kind than the last."""
        mode = "r+" if writing else "r"
        quick: list[dict[str, Any]] = [
            {"cache": "none"},
            {"cache": "writethrough"},
            {"stash": self._stash, "cache": "none"},
            {"stash": self._stash, "cache": "writeback"},
            {"cache": "directsync"},
        ]
        if not writing:
            quick += [{"mode": "r+"}, {}, {"mode": "r+", "cache": "none"}, {"cache": "writeback"}]
        # These open every file anew, and the load takes the interpreter's lock each time.
        slow: list[dict[str, Any]] = [
            {"path": self.link},
            {"path": self.path, "cache": "writeback"},
            {"path": self.path},
            {"path": self.link, "stash": self._stash, "cache": "none"},
            {"path": self.path, "cache": "writeback"},
        ]
        if self.parent is not None:
            below = self.link.parent / self.parent.name
            slow += [{"backing": below}, {"backing": self.parent, "cache": "none"}]
        kinds = [kind for each in slow for kind in [*quick, each]]
        return itertools.cycle([{"mode": mode} | kind for kind in kinds])

    def close(self) -> None:
        self._stash.close()


def _make(folder: Path, layout: str) -> tuple[Path, list[Path], Path | None]:
    """The image, its files, and its parent if it has one."""
    if layout == "raw":
        raw = make_raw(folder, 256 << 10)
        return raw, [raw], None
    if layout == "vmdk":
        flat = make_flat(folder, _EXTENTS)
        return flat.path, flat.files, None
    if layout == "delta":
        size = (_SPARSE_EXTENTS * _DELTA_SECTORS - 24) * 512
        disk = make_delta(folder, size, _DELTA_SECTORS * 512)
    else:
        grains = itertools.cycle([1, 8])
        disk = make_cowd(
            folder, [(_COWD_SECTORS, next(grains)) for _ in range(_SPARSE_EXTENTS)], seed=None
        )
    return disk.path, disk.files, disk.parent


@contextmanager
def short_turns() -> Iterator[None]:
    """The interpreter's lock goes round quickly, or one thread of many hardly ever has it."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    yield
    sys.setswitchinterval(before)


_FEWEST = 24


def reopen_for(seconds: float, reopen: Callable[[], object]) -> int:
    """How often it did: `_FEWEST` times at least, however slow the machine is."""
    deadline = time.monotonic() + seconds
    done = 0
    while done < _FEWEST or time.monotonic() < deadline:
        reopen()
        done += 1
    return done
