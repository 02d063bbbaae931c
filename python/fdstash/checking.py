"""`check`: whether an image's metadata are what they should be."""

from __future__ import annotations

import os

from fdstash.file_opener import Source
from fdstash.formats.check import CheckReport, Repair
from fdstash.graph import Graph

__all__ = ["check"]


def check(
    path: str | os.PathLike[str],
    *,
    repair: bool | str = False,
    format: str | None = None,
    lock: bool = True,
) -> CheckReport:
    """Look at all metadata of the image at `path`, not at images that it is based on.

    `repair`: True or ``all`` makes copies of metadata agree and takes back space that
    nothing refers to; ``leaks`` does only the latter. What cannot be put right without
    losing data is told and left. Nothing is written unless there is something to put
    right; then the image must be in nobody's use (`LockError`).

    Raises `UnsupportedFormatError` for a format that has nothing to check, and as `open`
    where a header is wrong, which no check can go beyond.
    """
    wanted = Repair.ALL if repair is True else Repair(repair or "nothing")
    source = Source(os.fsdecode(path), None, format, {}, None, lock, backing=False)
    report = _check(source, Repair.NOTHING)
    useful = report.leaks or (report.corruptions and wanted is Repair.ALL) or report.unclean
    if wanted is Repair.NOTHING or not useful:
        return report
    return _check(source, wanted)


def _check(source: Source, repair: Repair) -> CheckReport:
    graph = Graph.open(source, writable=repair is not Repair.NOTHING, direct=False)
    try:
        report = graph.format.check(repair)
        if repair is not Repair.NOTHING:
            for file in graph.own_files:
                if file.writable:
                    file.flush()
        return report
    finally:
        graph.close()
