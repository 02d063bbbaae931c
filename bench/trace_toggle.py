"""One toggle there and back, of the image or of the C loop, between markers: a program for strace.

    python -m bench.trace_toggle FOLDER ROUTE EXTENTS ours|peer

EXTENTS 0 stands for a raw file.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from bench.toggles import make_flat_vmdk, make_raw, toggles

__all__ = ["MARK"]

#: A path that is asked for before and after each of the two.
MARK = "/fdstash-trace-mark"


def _mark() -> None:
    os.access(MARK, os.F_OK)


def main(folder: str, route: str, extents: str, side: str) -> None:
    place = Path(folder)
    path = make_flat_vmdk(place, int(extents)) if int(extents) else make_raw(place)
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


if __name__ == "__main__":
    main(*sys.argv[1:])
