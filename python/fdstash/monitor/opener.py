"""`blockdev-add`: from options to nodes."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import ExitStack
from types import MappingProxyType
from typing import Any, Literal

import fdstash
from fdstash.monitor.errors import QmpError, told
from fdstash.monitor.nodes import (
    BackingNode,
    Child,
    ChildNode,
    FileNode,
    Held,
    ImageNode,
    Node,
    NodeTable,
)
from fdstash.monitor.offers import Offers, in_modes
from fdstash.monitor.options import (
    Caching,
    FileOptions,
    ImageOptions,
    Reference,
    check_name,
    names_in,
)
from fdstash.monitor.policy import Policy
from fdstash.stash import FDStash

__all__ = ["Opener"]


class Opener:
    """Opens files and images, and makes their nodes. Any thread."""

    def __init__(self, table: NodeTable, offers: Offers, policy: Policy) -> None:
        self.offers = offers
        self._table = table
        self._policy = policy

    # -- nodes

    def add(self, options: FileOptions | ImageOptions, passed: FDStash | None) -> Node:
        """See the command."""
        if options.node_name is None:
            raise QmpError("'node-name' must be specified for the root node")
        names = list(names_in(options))
        for name in names:
            check_name(name)
        with self._table.reserve(names):
            if isinstance(options, FileOptions):
                node: Node = self._add_file(options, options.node_name, passed)
            else:
                node = self._add_image(options, options.node_name, passed)
        return node

    def _add_file(self, options: FileOptions, name: str, passed: FDStash | None) -> FileNode:
        with self.offers.offered(passed) as stash:
            mode, found = self.offers.hold(options, stash)
        node = FileNode(options, name, found, mode)
        self._table.add([node])
        return node

    def _add_image(self, options: ImageOptions, name: str, passed: FDStash | None) -> ImageNode:
        referred = self.offers.referred(options)
        with Held(*referred), ExitStack() as undo:
            for node in referred:
                if isinstance(node, FileNode):
                    node.check_unused()
            filename, locking = self.offers.name_of(options.file)
            with self.offers.offered(passed) as stash, FDStash() as empty:
                mine = empty if stash is None else stash
                self.offers.offer_children(
                    options, filename, mine, writable=options.read_only is not True
                )
                image = self._open(options, filename, mine, locking=locking)
                undo.callback(image.close)
                made = ImageNode(name, options.driver, image, filename)
                made.format_options = options.format_options
                self.offers.keep(made, mine)
            nodes = self.children(made, options)
            self.adopt(made, options)
            undo.pop_all()
        self._table.add([*nodes, made])
        return made

    def publish(self, node: ImageNode) -> None:
        """Add an image that was opened elsewhere, and nodes for what it consists of."""
        names = [node.name]
        with self._table.reserve(names):
            self._table.add([*self.children(node, None), node])

    def adopt(self, made: ImageNode, options: ImageOptions) -> None:
        """The nodes that the options name are this image's from now on."""
        children = {child.name for child in made.children}
        own = children - {node.name for node in self._table if isinstance(node, FileNode)}
        for node in self.offers.referred(options, own):
            if isinstance(node, FileNode):
                if node.name not in children:
                    continue  # it turned out to be the file of another child
                node.user = made
            else:
                made.backing = node.name
            node.parents.add(made.name)

    def release(self, node: ImageNode, staying: Collection[str] = ()) -> None:
        """Nodes that an image was using are free again. `staying`: names of those that are not."""
        for other in self._table:
            if node.name in other.parents and other.name not in staying:
                other.parents.discard(node.name)
                if isinstance(other, FileNode):
                    other.user = None
        node.backing = None

    def children(
        self,
        made: ImageNode,
        options: ImageOptions | None,
        names: Mapping[str, str] = MappingProxyType({}),
    ) -> list[Node]:
        """New nodes for what an image consists of, and its list of children.

        `names`: by role, what children are called that are given no name.
        """
        references: list[Reference | None] = [None] * len(made.image.files)
        if options is not None:
            references = [options.file, *options.extents, *references]
        nodes: list[Node] = []
        children: list[Child] = []
        for index in range(own_files(made.image)):
            role = "file" if index == 0 else f"extents.{index - 1}"
            reference = references[index]
            given = reference.node_name if isinstance(reference, FileOptions) else reference
            name = given or names.get(role) or self._table.automatic_name()
            if not isinstance(self._table.find(name), FileNode):
                nodes.append(ChildNode(name, made, index))
            children.append(Child(role, name))
        nodes += self._backing_nodes(made, options, children)
        made.children = children
        return nodes

    def _backing_nodes(
        self, made: ImageNode, options: ImageOptions | None, children: list[Child]
    ) -> list[Node]:
        below = made.image.backing
        if below is None:
            return []
        given = options.backing if options is not None else None
        if isinstance(given, str):
            children.append(Child("backing", given))
            return []
        name = given.node_name if given else None
        nodes: list[Node] = []
        while below is not None:
            node = BackingNode(
                name or self._table.automatic_name(), below.format, made, len(nodes) + 1
            )
            nodes.append(node)
            name, below = None, below.backing
        children.append(Child("backing", nodes[0].name))
        return nodes

    # -- images

    def image_of(self, node: Node) -> fdstash.Image:
        """The image to export or resize; of a file that was added by itself, a raw one.

        The caller holds the node.
        """
        if isinstance(node, ImageNode):
            return node.image
        if not isinstance(node, FileNode):
            raise QmpError(f"Node '{node.name}' is a part of an image: name the image")
        if node.user is not None:
            raise QmpError(f"Node '{node.name}' is in use by '{node.user.name}': name that one")
        if node.direct_image is None:
            try:
                node.direct_image = fdstash.open(
                    node.filename,
                    node.mode,
                    format="raw",
                    cache=(node.options.cache or Caching()).mode(),
                    stash=node.held,
                    resolver=self._policy.resolver(node.filename),
                    lock=node.options.locking,
                )
            except (fdstash.Error, OSError) as error:
                raise told(error, f"Could not open '{node.filename}'") from error
        return node.direct_image

    def _open(
        self, options: ImageOptions, filename: str, stash: FDStash, *, locking: bool
    ) -> fdstash.Image:
        caching = options.cache or self._file_cache(options) or Caching()
        modes = ["r"] if options.read_only else ["r+"]
        if options.auto_read_only and not options.read_only:
            modes.append("r")
        if not options.read_only and self._file_mode(options) == "r":
            if not options.auto_read_only:
                raise QmpError(f"Block node is read-only: the file of '{options.node_name}' is")
            modes = ["r"]

        backing = self.backing_path(options, stash)

        def open_in(mode: str) -> fdstash.Image:
            return fdstash.open(
                filename,
                mode,
                format=options.driver,
                cache=caching.mode(),
                stash=stash if stash.names() else None,
                resolver=self._policy.resolver(filename),
                lock=locking,
                backing=backing,
                **dict[str, Any](options.format_options),
            )

        try:
            return in_modes(modes, open_in)
        except (fdstash.Error, OSError) as error:
            raise told(error, f"Could not open '{filename}'") from error

    def backing_path(
        self, options: ImageOptions, stash: FDStash | None
    ) -> str | Literal[False] | None:
        """The path of the image that is to lie below; False: none; None: what the header says.

        What lies below that one is what its header says; raises `QmpError` where the options
        want it otherwise.
        """
        below = options.backing
        if below is None or below is False:
            return below
        if isinstance(below, str):
            node = self._table.get(below)
            assert isinstance(node, ImageNode)  # noqa: S101 - `referred` has looked
            if node.image.backing is None:
                _check_lowest(node.image, f"Node '{below}'")
            return node.filename
        if not isinstance(below.file, FileOptions) or below.backing:
            raise QmpError("Parameter 'backing' expects the name of an image, or one of one file")
        filename = below.file.filename
        self.offers.check_set(filename)
        if below.backing is False:
            self._check_lowest_of_all(below.driver, filename, stash)
        return filename

    def _check_lowest_of_all(self, driver: str, filename: str, stash: FDStash | None) -> None:
        try:
            with fdstash.open(
                filename,
                format=driver,
                stash=stash,
                resolver=self._policy.resolver(filename),
                lock=False,
                backing=False,
            ) as image:
                _check_lowest(image, f"'{filename}'")
        except (fdstash.Error, OSError) as error:
            raise told(error, f"Could not open '{filename}'") from error

    def _file_cache(self, options: ImageOptions) -> Caching | None:
        if isinstance(options.file, FileOptions):
            return options.file.cache
        node = self._table.get(options.file)
        return node.options.cache if isinstance(node, FileNode) else None

    def _file_mode(self, options: ImageOptions) -> str | None:
        if isinstance(options.file, FileOptions):
            return "r" if options.file.read_only else None
        node = self._table.get(options.file)
        return node.mode if isinstance(node, FileNode) else None


def own_files(image: fdstash.Image) -> int:
    """How many of an image's files are its own, and not those of images below."""
    count = len(image.files)
    below = image.backing
    while below is not None:
        count -= len(below.files)
        below = below.backing
    return count


def _check_lowest(image: fdstash.Image, what: str) -> None:
    parent = image.format_info.get("parent")
    if parent is not None:
        raise QmpError(
            "An image that another one is based on cannot be open without what it is itself based"
            f" on: {what} is based on '{parent}'"
        )
