"""Toggles of an image, and the same toggles by the C loop over the same files.

A toggle is a change of the cache mode or of the access mode, there at even turns and back at odd
ones. Each is forced onto one route:

    setfl  the descriptions were never handed out, so F_SETFL serves
    proc   they were, which ends that; the dups are closed again before anything is measured
    path   the image's own path is named, so every path is walked again
    mode   read-only and back, which needs a new description, and the locks of a writer or a reader
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fdstash
from bench.peers import reopen_loop
from bench.peers.reopen_loop import Plan, ReopenLoop

__all__ = ["ROUTES", "Toggles", "make_flat_vmdk", "make_raw", "toggles"]

ROUTES = ("setfl", "proc", "path", "mode")

FILE_BYTES = 16384


def make_raw(folder: Path) -> Path:
    path = folder / "disk.raw"
    path.write_bytes(b"\1" * FILE_BYTES)
    return path


def make_flat_vmdk(folder: Path, extents: int) -> Path:
    """A VMDK of that many extents, each a file with data in it; returns the descriptor."""
    path = folder / "disk.vmdk"
    fdstash.create(
        path,
        "vmdk",
        extents * FILE_BYTES,
        subformat="twoGbMaxExtentFlat",
        extent_size=FILE_BYTES,
    )
    with fdstash.open(path, "r+") as image:
        image.pwrite(b"\1" * image.size, 0)
    return path


class Toggles:
    """An image open read-write with `cache="writeback"`, and the loop over its files."""

    def __init__(self, image: fdstash.Image, loop: ReopenLoop, route: str) -> None:
        self.image = image
        self.loop = loop
        self.route = route
        self.turn = 0
        #: The options of `Image.reopen`, there and back.
        self.options: tuple[dict[str, Any], dict[str, Any]] = (
            ({"mode": "r"}, {"mode": "r+"})
            if route == "mode"
            else ({"cache": "none"}, {"cache": "writeback"})
        )
        if route == "path":
            for options in self.options:
                options["path"] = image.name
        self.plans = (self._plan(there=True), self._plan(there=False))

    def _plan(self, *, there: bool) -> Plan:
        if self.route == "mode":
            header = reopen_loop.LAST_BYTE if self.image.format == "raw" else reopen_loop.DESCRIPTOR
            return Plan(
                route=reopen_loop.PROC,
                flags=os.O_RDONLY if there else os.O_RDWR,
                widen=not there,
                narrow=there,
                header=reopen_loop.NO_HEADER if there else header,
            )
        route = {
            "setfl": reopen_loop.SETFL,
            "proc": reopen_loop.PROC,
            "path": reopen_loop.PATH,
        }[self.route]
        return Plan(route=route, flags=os.O_RDWR | (os.O_DIRECT if there else 0))

    def prepare(self) -> None:
        """Before a toggle, unmeasured: force the route."""
        if self.route == "proc":
            with fdstash.FDStash() as stash:
                self.image.extract_fds(stash)

    def peer(self) -> int:
        """The loop's toggle of this turn: nanoseconds."""
        return self.loop.toggle(self.plans[self.turn & 1])

    def checked(self) -> None:
        """A toggle of both that is looked at: every file took the route, and got what it should."""
        options = self.options[self.turn & 1]
        self.prepare()
        self.peer()
        report = self.image.reopen(**options)
        files = self.image.files
        taken = set(report.routes.values())
        assert taken == {"proc" if self.route == "mode" else self.route}, report
        assert report.files_changed == len(files)
        direct, mode = options.get("cache") == "none", options.get("mode", "r+")
        assert all((file.direct, file.mode) == (direct, mode) for file in files)
        self.turn += 1


@contextmanager
def toggles(path: Path, route: str) -> Iterator[Toggles]:
    """Open the image at `path` and the loop; both are toggled four times, and looked at."""
    format = path.suffix[1:]
    with fdstash.open(path, "r+", format=format) as image:
        paths = [file.path for file in image.files if file.path is not None]
        with ReopenLoop(paths) as loop:
            pair = Toggles(image, loop, route)
            for _ in range(4):
                pair.checked()
            yield pair
            for _ in range(2):
                pair.checked()
