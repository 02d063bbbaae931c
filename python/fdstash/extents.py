"""Where the bytes of an image are, run by run."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from fdstash.datapath import Layer
from fdstash.formats.base import Kind, Segment
from fdstash.graph import Graph
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


_NAMES = {Kind.ZERO: "zero", Kind.HOLE: "hole", Kind.DENIED: "denied"}


def iterate(state: ImageState, offset: int, end: int) -> Iterator[Extent]:
    """The extents that cover [offset, end), cut to it; lazily, as asked for."""
    layer: Layer | None = None
    segments: Sequence[Segment] = ()
    starts: list[int] = []
    while offset < end:
        with state.core.reading():
            graph = state.graph
            if graph.layer is not layer:  # at first, and after a change of path or size
                layer = graph.layer
                segments = graph.format.segments()
                starts = [segment.start for segment in segments]
            extent = _extent_at(graph, segments, starts, offset, end)
        if extent is None:
            return
        yield extent
        offset += extent.length


def _extent_at(
    graph: Graph, segments: Sequence[Segment], starts: list[int], offset: int, end: int
) -> Extent | None:
    segment = segments[bisect_right(starts, offset) - 1] if segments else None
    if segment is None or offset >= segment.start + segment.length:
        return None
    length = min(end, segment.start + segment.length) - offset
    if segment.kind != Kind.DATA:
        return Extent(offset, length, _NAMES[Kind(segment.kind)], None, None, 0)
    file = graph.files[segment.file]
    place = segment.file_offset + offset - segment.start
    length, is_data = file.data_run(place, length)
    return Extent(offset, length, "data" if is_data else "zero", file.name, place, 0)
