"""Where the bytes of an image are, run by run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from fdstash import needs
from fdstash.formats.base import Kind
from fdstash.state import ImageState

__all__ = ["Extent", "iterate"]


class Extent(NamedTuple):
    """A run of guest bytes of one kind.

    `kind`: ``data``; ``zero``, which reads as zeros (a hole of the host file has a
    file and an offset, and is filled when it is written); ``hole``, which reads the
    backing image; ``compressed``; ``denied``, which can be neither read nor written.
    """

    offset: int  #: in the guest's disk, bytes
    length: int  #: bytes
    kind: str
    file: str | None  #: the name of the file that holds the bytes
    file_offset: int | None  #: where in that file, bytes
    depth: int  #: 0: this image; 1: its backing image, and so on


_NAMES = {
    Kind.ZERO: "zero",
    Kind.HOLE: "hole",
    Kind.DENIED: "denied",
    Kind.COMPRESSED: "compressed",
}


def iterate(state: ImageState, offset: int, end: int) -> Iterator[Extent]:
    """The extents that cover [offset, end), cut to it; lazily, as asked for."""
    while offset < end:
        with state.core.reading():
            extent = _extent_at(state, offset, end)
        if extent is None:
            return
        yield extent
        offset += extent.length


def _extent_at(state: ImageState, offset: int, end: int) -> Extent | None:
    graph = state.graph
    run = graph.layer.lookup(offset, end - offset)
    while run is not None and run.kind in (Kind.UNKNOWN, Kind.BAD):
        needs.load(state.core, graph.layer, run)
        run = graph.layer.lookup(offset, end - offset)
    if run is None:
        return None
    if run.kind not in (Kind.DATA, Kind.DATA | Kind.COPY, Kind.COMPRESSED):
        return Extent(offset, run.length, _NAMES[Kind(run.kind)], None, None, 0)
    file = graph.files[run.file]
    if run.kind == Kind.COMPRESSED:
        return Extent(offset, run.length, "compressed", file.name, run.file_offset, 0)
    length, is_data = file.data_run(run.file_offset, run.length)
    return Extent(offset, length, "data" if is_data else "zero", file.name, run.file_offset, 0)
