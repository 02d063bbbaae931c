"""Toggles there and back, of images or of the C loop, between markers: a program for strace.

    python -m bench.trace_toggle FOLDER ROUTE ours|peer EXTENTS...

An image for each number, one after the other; 0 stands for a raw file.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from bench.toggles import make_flat_vmdk, make_raw, toggles

__all__ = ["MARK"]

#: A path that is asked for before and after each toggle.
MARK = "/fdstash-trace-mark"


def _mark() -> None:
    os.access(MARK, os.F_OK)


def toggle(path: Path, route: str, side: str) -> None:
    """There and back. The other side goes first, so that both find the same."""
    with toggles(path, route) as pair:
        for options in pair.options:
            pair.prepare()
            if side == "peer":
                pair.image.reopen(**options)
                _mark()
                pair.peer()
                _mark()
            else:
                pair.peer()
                _mark()
                pair.image.reopen(**options)
                _mark()
            pair.turn += 1


def main(folder: str, route: str, side: str, *sizes: str) -> None:
    for size in sizes:
        place = Path(folder, size)
        place.mkdir()
        extents = int(size)
        toggle(make_flat_vmdk(place, extents) if extents else make_raw(place), route, side)


if __name__ == "__main__":
    main(*sys.argv[1:])
