"""The image that another one is based on: a face for reading."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from fdstash.datapath import DataPath
from fdstash.extents import Extent, iterate
from fdstash.graph import Graph, Level
from fdstash.hostfile import FileInfo
from fdstash.reading import Reader
from fdstash.requests import check_range

__all__ = ["Backing"]


class Backing(Reader):
    """An image of a chain below the one that was opened; from `Image.backing`.

    Its reads see no reopen of the image above. It serves until that one is closed or
    gets another path or backing image; then methods raise `ClosedError`, and
    `Image.backing` gives the new one. Any thread.
    """

    def __init__(self, graph: Graph, level: Level, depth: int) -> None:
        name = level.format.file.name
        super().__init__(DataPath(level.map.layer, 0, name), name)
        self._graph = graph
        self._level = level
        self._depth = depth
        graph.views.add(self)

    @property
    def size(self) -> int:
        """Of the disk as it was then, bytes."""
        return self._level.format.size

    @property
    def hint(self) -> str | None:
        """What the header of the image above it calls this one."""
        return self._graph.formats[self._depth - 1].backing_file

    @property
    def format(self) -> str:
        """The format's name."""
        return self._level.format.name

    @property
    def format_info(self) -> Mapping[str, object]:
        """What the format has to say beyond the size, as `qemu-img info` does."""
        return self._level.format.info()

    @property
    def files(self) -> tuple[FileInfo, ...]:
        """Its own host files, as the kernel describes their descriptors now."""
        with self._data.reading():
            children = self._level.format.files
            return tuple(self._graph.files[child.index].info() for child in children)

    @property
    def backing(self) -> Backing | None:
        """The next image of the chain; None for the last one."""
        return backing_at(self._graph, self._depth)

    def extents(self, n: int | None = None, offset: int = 0) -> Iterator[Extent]:
        """As `Image.extents`; depths count from this image."""
        check_range(n or 0, offset)
        end = self.size if n is None else min(self.size, offset + n)
        return iterate(self._data, lambda: (self._graph.files, self._level.map.layer), offset, end)

    def close(self) -> None:
        """For the graph that it belongs to."""
        self._data.close()

    def __repr__(self) -> str:
        return f"<Backing {self.name!r} {self.format}>"


def backing_at(graph: Graph, depth: int) -> Backing | None:
    """The image `depth` + 1 steps below the opened one."""
    if depth == len(graph.below):
        return None
    return Backing(graph, graph.below[depth], depth + 1)
