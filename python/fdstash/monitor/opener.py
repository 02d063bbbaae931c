"""`blockdev-add`: from options to nodes."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from types import MappingProxyType
from typing import Any

import fdstash
from fdstash.formats.vmdk import descriptor
from fdstash.monitor.descriptors import FdSets, close_all, copy_all, fdset_number, offer
from fdstash.monitor.errors import QmpError, told
from fdstash.monitor.nodes import (
    BackingNode,
    Child,
    ChildNode,
    FileNode,
    ImageNode,
    Node,
    NodeTable,
    held,
)
from fdstash.monitor.options import Caching, FileOptions, ImageOptions, Reference, check_name
from fdstash.monitor.policy import Policy
from fdstash.names import join_name
from fdstash.stash import FDStash

__all__ = ["Opener"]

_NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS)


class Opener:
    """Opens files and images, and makes their nodes. Any thread."""

    def __init__(self, table: NodeTable, sets: FdSets, policy: Policy) -> None:
        self._table = table
        self._sets = sets
        self._policy = policy

    # -- nodes

    def add(self, options: FileOptions | ImageOptions, passed: FDStash | None) -> Node:
        """See the command."""
        if options.node_name is None:
            raise QmpError("'node-name' must be specified for the root node")
        names = list(_given_names(options))
        for name in names:
            check_name(name)
        with self._table.reserve(names):
            if isinstance(options, FileOptions):
                node: Node = self._add_file(options, options.node_name, passed)
            else:
                node = self._add_image(options, options.node_name, passed)
        return node

    def _add_file(self, options: FileOptions, name: str, passed: FDStash | None) -> FileNode:
        with self.offered(passed) as stash:
            mode, found = self.hold(options, stash)
        node = FileNode(options, name, found, mode)
        self._table.add([node])
        return node

    def _add_image(self, options: ImageOptions, name: str, passed: FDStash | None) -> ImageNode:
        referred = self.referred(options)
        with held(*referred), ExitStack() as undo:
            for node in referred:
                if isinstance(node, FileNode):
                    if node.user or node.exports:
                        user = node.user.name if node.user else min(node.exports)
                        raise QmpError(f"Node '{node.name}' is in use by '{user}'")
                    node.close_direct()
            filename, locking = self.name_of(options.file)
            with self.offered(passed) as stash:
                mine = stash if stash is not None else undo.enter_context(FDStash())
                self.offer_children(options, mine, writable=options.read_only is not True)
                image = self._open(options, filename, mine, locking=locking)
                undo.callback(image.close)
                made = ImageNode(name, options.driver, image, filename)
                made.locking = locking
                self.keep(made, mine)
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

    def referred(self, options: ImageOptions) -> list[Node]:
        """The nodes that options name."""
        names = [each for each in (options.file, *options.extents) if isinstance(each, str)]
        found: list[Node] = []
        for name in names:
            node = self._table.get(name)
            if not isinstance(node, FileNode):
                raise QmpError(f"Node '{name}' is no file that was added by itself")
            found.append(node)
        if isinstance(options.backing, str):
            below = self._table.get(options.backing)
            if not isinstance(below, ImageNode):
                raise QmpError(f"Node '{options.backing}' is no image that was added by itself")
            found.append(below)
        return found

    def adopt(self, made: ImageNode, options: ImageOptions) -> None:
        """The nodes that the options name are this image's from now on."""
        for node in self.referred(options):
            node.parents.add(made.name)
            if isinstance(node, FileNode):
                node.user = made
            else:
                made.backing = node.name

    def release(self, node: ImageNode) -> None:
        """Nodes that an image was using are free again."""
        for other in self._table:
            if node.name in other.parents:
                other.parents.discard(node.name)
                if isinstance(other, FileNode):
                    other.user = None

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
            for index, each in enumerate((options.file, *options.extents)):
                references[index] = each
        nodes: list[Node] = []
        made.children = []
        for index in range(own_files(made.image)):
            role = "file" if index == 0 else f"extents.{index - 1}"
            reference = references[index]
            if isinstance(reference, str):
                made.children.append(Child(role, reference))
                continue
            given = reference.node_name if reference is not None else None
            name = given or names.get(role) or self._table.automatic_name()
            if not isinstance(self._table.find(name), FileNode):
                nodes.append(ChildNode(name, made, index))
            made.children.append(Child(role, name))
        nodes += self._backing_nodes(made, options)
        return nodes

    def _backing_nodes(self, made: ImageNode, options: ImageOptions | None) -> list[Node]:
        below = made.image.backing
        if below is None:
            return []
        given = options.backing if options is not None else None
        if isinstance(given, str):
            made.children.append(Child("backing", given))
            return []
        name = given.node_name if given is not None else None
        nodes: list[Node] = []
        while below is not None:
            node = BackingNode(
                name or self._table.automatic_name(), below.format, made, len(nodes) + 1
            )
            nodes.append(node)
            name, below = None, below.backing
        made.children.append(Child("backing", nodes[0].name))
        return nodes

    # -- descriptors

    @contextmanager
    def offered(self, *passed: FDStash | None) -> Iterator[FDStash | None]:
        """All that was passed in."""
        stash = offer(self._sets, *passed)
        try:
            yield stash
        finally:
            if stash is not None:
                stash.close()

    def name_of(self, reference: Reference) -> tuple[str, bool]:
        """The file name that a reference stands for, and whether to lock it."""
        if isinstance(reference, FileOptions):
            self.check_set(reference.filename)
            return reference.filename, reference.locking
        node = self._table.get(reference)
        assert isinstance(node, FileNode)  # noqa: S101 - `referred` has looked
        return node.filename, node.options.locking

    def check_set(self, filename: str) -> None:
        """Raises `QmpError` where a set is named that does not exist."""
        number = fdset_number(filename)
        if number is not None and number not in self._sets:
            raise QmpError(
                f"Could not open '{filename}': No such file or directory: there is no set"
                f" {number}; pass its descriptors with add-fd"
            )

    def hold(self, options: FileOptions, stash: FDStash | None) -> tuple[str, FDStash]:
        """The mode in which a file could be opened, and its descriptor under its name."""
        self.check_set(options.filename)
        cache = (options.cache or Caching()).mode()
        modes = ["r"] if options.read_only else ["r+", "r"] if options.auto_read_only else ["r+"]
        held_now = FDStash()
        try:
            for mode in modes:
                try:
                    with fdstash.open(
                        options.filename,
                        mode,
                        format="raw",
                        cache=cache,
                        stash=stash,
                        resolver=self._policy.resolver(options.filename),
                        lock=False,
                    ) as image:
                        image.extract_fds(held_now)
                except OSError as error:
                    if mode == modes[-1] or error.errno not in _NOT_WRITABLE:
                        raise
                else:
                    return mode, held_now
            raise AssertionError("the last mode returns or raises")
        except BaseException as error:
            held_now.close()
            if not isinstance(error, fdstash.Error):
                raise
            raise told(error, f"Could not open '{options.filename}'") from error

    def offer_children(self, options: ImageOptions, stash: FDStash, *, writable: bool) -> None:
        """Put what the references of an image stand for where the image looks for it."""
        filename, _ = self.name_of(options.file)
        if isinstance(options.file, str):
            node = self._table.get(options.file)
            assert isinstance(node, FileNode)  # noqa: S101 - `referred` has looked
            copy_all(node.held, stash)
        if not options.extents:
            return
        texts = self._extent_names(options, filename, stash)
        if len(options.extents) > len(texts):
            raise QmpError(
                f"'{filename}' names {len(texts)} extents, and {len(options.extents)} are given"
            )
        for text, reference in zip(texts, options.extents, strict=False):
            self._offer_extent(join_name(text, filename), reference, stash, writable=writable)

    def _offer_extent(
        self, name: str, reference: Reference, stash: FDStash, *, writable: bool
    ) -> None:
        """Whatever else has this name, the file that was given serves it."""
        if isinstance(reference, str):
            node = self._table.get(reference)
            assert isinstance(node, FileNode)  # noqa: S101 - `referred` has looked
            fds = node.held.dup_all(node.filename)
        else:
            wanted = reference
            if reference.read_only is None and not writable:
                wanted = FileOptions(**{**vars(reference), "read_only": True})
            _, found = self.hold(wanted, stash)
            with found:
                fds = found.dup_all(reference.filename)
            if reference.filename in stash:  # of other modes, too
                fds += stash.dup_all(reference.filename)
        try:
            stash.give(name, fds[0])
            fds.pop(0)
            while fds:
                stash.add(name, fds[0])
                fds.pop(0)
        finally:
            close_all(fds)

    def _extent_names(self, options: ImageOptions, filename: str, stash: FDStash) -> Sequence[str]:
        """What a VMDK's descriptor file names, each file once."""
        try:
            with fdstash.open(
                filename,
                format="raw",
                stash=stash,
                resolver=self._policy.resolver(filename),
                lock=False,
            ) as image:
                text = image.pread(min(image.size, descriptor.MAX_BYTES), 0)
            lines = descriptor.parse(text, filename).extents
        except fdstash.Error as error:
            raise told(error, f"Could not open '{filename}'") from error
        return list(dict.fromkeys(line.name for line in lines if line.name is not None))

    def keep(self, node: ImageNode, stash: FDStash) -> None:
        """What of `stash` serves the image's files is kept for reopens."""
        files = [file.name for file in node.image.files]
        lasts = {name.rpartition("/")[2] for name in files}
        names = [
            name
            for name in stash.names()
            if (plain := name.removeprefix("lock:")) in files
            or plain in lasts
            or any(file.endswith(f"/{plain}") for file in files)
        ]
        copy_all(stash, node.kept, names)

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
        if options.without_backing:
            raise QmpError("An image cannot be opened without the image that it is based on")
        caching = options.cache or self._file_cache(options) or Caching()
        modes = ["r"] if options.read_only else ["r+"]
        if options.auto_read_only and not options.read_only:
            modes.append("r")
        if not options.read_only and self._file_mode(options) == "r":
            if not options.auto_read_only:
                raise QmpError(f"Block node is read-only: the file of '{options.node_name}' is")
            modes = ["r"]
        for mode in modes:
            with contextlib.suppress(_FallThrough):
                return self._open_in(mode, options, filename, stash, caching, locking, modes[-1])
        raise AssertionError("the last mode returns or raises")

    def _open_in(  # noqa: PLR0917 - one call, split for its handlers
        self,
        mode: str,
        options: ImageOptions,
        filename: str,
        stash: FDStash,
        caching: Caching,
        locking: bool,
        last: str,
    ) -> fdstash.Image:
        try:
            return fdstash.open(
                filename,
                mode,
                format=options.driver,
                cache=caching.mode(),
                stash=stash if stash.names() else None,
                resolver=self._policy.resolver(filename),
                lock=locking,
                backing=self.backing_path(options),
                **dict[str, Any](options.format_options),
            )
        except (fdstash.Error, OSError) as error:
            if mode != last and isinstance(error, OSError) and error.errno in _NOT_WRITABLE:
                raise _FallThrough from error
            raise told(error, f"Could not open '{filename}'") from error

    def backing_path(self, options: ImageOptions) -> str | None:
        """The path of the image that is to lie below; None: what the header says."""
        below = options.backing
        if below is None:
            return None
        if isinstance(below, str):
            node = self._table.get(below)
            assert isinstance(node, ImageNode)  # noqa: S101 - `referred` has looked
            return node.filename
        if not isinstance(below.file, FileOptions) or below.backing is not None:
            raise QmpError("Parameter 'backing' expects the name of an image, or one of one file")
        self.check_set(below.file.filename)
        return below.file.filename

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


class _FallThrough(Exception):
    """It cannot be opened for writing; for reading it may."""


def own_files(image: fdstash.Image) -> int:
    """How many of an image's files are its own, and not those of images below."""
    count = len(image.files)
    below = image.backing
    while below is not None:
        count -= len(below.files)
        below = below.backing
    return count


def _given_names(options: FileOptions | ImageOptions | str | None) -> Iterator[str]:
    if options is None or isinstance(options, str):
        return
    if options.node_name is not None:
        yield options.node_name
    if isinstance(options, ImageOptions):
        for each in (options.file, *options.extents, options.backing):
            yield from _given_names(each)
