"""The nodes of a daemon and their names.

An image is one node; each of its files is one too, which only points to it. A file that was added
by itself is kept as descriptors until an image is opened on it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import TracebackType

import fdstash
from fdstash.monitor.descriptors import identities
from fdstash.monitor.errors import QmpError
from fdstash.monitor.options import FileOptions
from fdstash.stash import FDStash

__all__ = [
    "BackingNode",
    "Child",
    "ChildNode",
    "FileNode",
    "Held",
    "ImageNode",
    "Node",
    "NodeGoneError",
    "NodeTable",
]


class Child:
    """A child of an image: `role` as QEMU has it, and the name of the node."""

    __slots__ = ("name", "role")

    def __init__(self, role: str, name: str) -> None:
        self.role = role
        self.name = name


class Node:
    """A name in the table. `lock` is held by whoever changes or deletes the node."""

    def __init__(self, name: str, driver: str) -> None:
        self.name = name
        self.driver = driver
        self.lock = threading.RLock()
        self.deleted = False
        self.exports: set[str] = set()
        self.writers: set[str] = set()  #: exports that let clients write
        self.parents: set[str] = set()  #: images that are based on this node, or read from it

    def owner(self) -> ImageNode | None:
        """The image that a change of this node is a change of."""
        return None


class ImageNode(Node):
    """An open image.

    `kept`: the descriptors passed in that it was opened with, for reopens when whoever passed
    them has gone.
    """

    def __init__(self, name: str, driver: str, image: fdstash.Image, filename: str) -> None:
        super().__init__(name, driver)
        self.image = image
        self.filename = filename
        self.kept = FDStash()
        self.children: list[Child] = []
        self.backing: str | None = None  #: the node that was named as what it is based on
        self.format_options: Mapping[str, object] = {}  #: that it was added with
        self.managed = True  #: added by a client; the command line's image is not

    def owner(self) -> ImageNode | None:
        return self


class ChildNode(Node):
    """One file of an image that was opened with it: number `index` of `Image.files`."""

    def __init__(self, name: str, image: ImageNode, index: int) -> None:
        super().__init__(name, "file")
        self.image = image
        self.index = index

    def owner(self) -> ImageNode | None:
        return self.image


class BackingNode(Node):
    """An image below, `depth` steps down (1: the nearest), that was opened with the one above."""

    def __init__(self, name: str, driver: str, image: ImageNode, depth: int) -> None:
        super().__init__(name, driver)
        self.image = image
        self.depth = depth


class FileNode(Node):
    """A file added by itself: `held` has its descriptor under its name, `mode` is ``r`` or ``r+``.

    `user`: the image that is open on it. `direct_image`: itself as a raw image, as soon as it is
    exported or resized.
    """

    def __init__(self, options: FileOptions, name: str, held: FDStash, mode: str) -> None:
        super().__init__(name, options.driver)
        self.options = options
        self.filename = options.filename
        self.held = held
        self.mode = mode
        self.user: ImageNode | None = None
        self.direct_image: fdstash.Image | None = None

    def owner(self) -> ImageNode | None:
        return self.user

    def is_same(self, device: int, inode: int) -> bool:
        """Whether it is that file (`os.stat`)."""
        return identities(self.held, self.filename) == {(device, inode)}

    def check_unused(self) -> None:
        """Raises `QmpError` where an image cannot be opened on it."""
        if self.user or self.exports:
            user = self.user.name if self.user else min(self.exports)
            raise QmpError(f"Node '{self.name}' is in use by '{user}'")
        self.close_direct()

    def close_direct(self) -> None:
        """Close the raw image, if there is one that is not exported."""
        if self.direct_image is not None and not self.exports:
            image, self.direct_image = self.direct_image, None
            image.close()

    def close(self) -> None:
        """Let go of the file."""
        try:
            self.close_direct()
        finally:
            self.held.close()


class NodeTable:
    """All nodes by name. Any thread; nothing here waits for a file."""

    def __init__(self, limit: int) -> None:
        self._lock = threading.Lock()
        self._limit = limit
        self._nodes: dict[str, Node] = {}
        self._reserved: set[str] = set()
        self._automatic = 0

    def __iter__(self) -> Iterator[Node]:
        with self._lock:
            return iter(list(self._nodes.values()))

    def find(self, name: str) -> Node | None:
        """The node of that name."""
        with self._lock:
            return self._nodes.get(name)

    def get(self, name: str) -> Node:
        """The same; raises as QEMU's `bdrv_lookup_bs` does."""
        node = self.find(name)
        if node is None:
            raise QmpError(f"Cannot find device='{name}' nor node-name='{name}'")
        return node

    def reserve(self, names: Sequence[str]) -> AbstractContextManager[None]:
        """Keep others from these names while nodes of them are made."""
        return self._reserve(names) if names else nullcontext()  # most reopens give none

    @contextmanager
    def _reserve(self, names: Sequence[str]) -> Iterator[None]:
        with self._lock:
            taken: set[str] = set()
            for name in names:
                if name in self._nodes or name in self._reserved or name in taken:
                    raise QmpError(f"Duplicate nodes with node-name='{name}'")
                taken.add(name)
            if len(self._nodes) + len(self._reserved) + len(taken) > self._limit:
                raise QmpError(f"There are {self._limit} nodes, and there may be no more")
            self._reserved |= taken
        try:
            yield
        finally:
            with self._lock:
                self._reserved -= taken

    def automatic_name(self) -> str:
        """A name that no client can choose."""
        with self._lock:
            self._automatic += 1
            return f"#block{self._automatic:03}"

    def add(self, nodes: Sequence[Node]) -> None:
        """Publish nodes. An image and its children come and go together."""
        with self._lock:
            for node in nodes:
                self._nodes[node.name] = node

    def remove(self, nodes: Sequence[Node]) -> None:
        """Forget nodes."""
        self.replace(nodes, ())

    def replace(self, nodes: Sequence[Node], others: Sequence[Node]) -> None:
        """Forget nodes, and publish others, with no moment in which a name of both is free."""
        with self._lock:
            for node in nodes:
                node.deleted = True
                self._nodes.pop(node.name, None)
            for node in others:
                self._nodes[node.name] = node

    def parts_of(self, image: ImageNode) -> list[Node]:
        """The nodes that were made with an image, and end with it."""
        with self._lock:
            return [
                node
                for node in self._nodes.values()
                if isinstance(node, ChildNode | BackingNode) and node.image is image
            ]


class NodeGoneError(QmpError):
    """A node was deleted while somebody waited for it."""


class Held:
    """The nodes that are to be changed: taken in a fixed order, so that nobody waits in a circle.

    Raises `NodeGoneError`.
    """

    def __init__(self, *nodes: Node) -> None:
        self._nodes = sorted(set(nodes), key=_name)

    def __enter__(self) -> None:
        for node in self._nodes:
            node.lock.acquire()
        # Only now: a part of an image is deleted by whoever holds the image.
        for node in self._nodes:
            if node.deleted:
                self._release()
                raise NodeGoneError(f"Failed to find node with node-name='{node.name}'")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._release()

    def _release(self) -> None:
        for node in self._nodes:
            node.lock.release()


def _name(node: Node) -> str:
    return node.name
