"""`blockdev-reopen`: several nodes at once, all or none.

Options of an image and options of any of its files are one change of the whole image. Files that
were added by themselves get new descriptors first, which costs nothing if the rest fails.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import fdstash
from fdstash.cache import cache_mode
from fdstash.monitor.descriptors import copy_all
from fdstash.monitor.errors import QmpError, told
from fdstash.monitor.image_change import (
    ImageChange,
    Pair,
    check_apart,
    check_same_files,
    check_unchangeable,
    is_based,
    names_for_parts,
    new_names,
    own_nodes,
)
from fdstash.monitor.nodes import (
    BackingNode,
    FileNode,
    Held,
    ImageNode,
    Node,
    NodeGoneError,
    NodeTable,
)
from fdstash.monitor.offers import names_that_serve_at
from fdstash.monitor.opener import Opener
from fdstash.monitor.options import Caching, FileOptions, ImageOptions
from fdstash.monitor.policy import Policy
from fdstash.stash import FDStash

__all__ = ["Reopener"]


class _Involved(NamedTuple):
    """The nodes that a command is about."""

    referred: list[Node]  #: those that options name
    all: set[Node]  #: these, those that are reopened, and the images that they belong to


class Reopener:
    """Any thread."""

    def __init__(
        self, table: NodeTable, opener: Opener, policy: Policy, timeout: float | None
    ) -> None:
        self._table = table
        self._opener = opener
        self._policy = policy
        self._timeout = timeout

    def reopen(
        self, given: Sequence[FileOptions | ImageOptions], passed: FDStash | None
    ) -> list[ImageNode]:
        """See the command. Returns the images that were reopened."""
        while True:
            pairs = [(self._node(options), options) for options in given]
            nodes = self._involved(pairs).all
            try:
                with Held(*nodes):
                    # Another client may have changed what belongs to what until they were held.
                    involved = self._involved(pairs)
                    if involved.all <= nodes:
                        return self._reopen_held(pairs, involved.referred, passed)
            except NodeGoneError:  # the next look tells of a node that is really gone
                continue

    def _reopen_held(
        self, pairs: list[Pair], referred: list[Node], passed: FDStash | None
    ) -> list[ImageNode]:
        with (
            self._table.reserve(new_names(pairs)),
            self._opener.offers.offered(passed) as stash,
        ):
            changes: dict[str, ImageChange] = {}
            files: list[tuple[FileNode, FileOptions]] = []
            # Files first: what they say of the path decides about the rest of their image.
            for node, options in sorted(pairs, key=lambda pair: isinstance(pair[0], ImageNode)):
                owner = node.owner()
                if owner is not None:
                    change = changes.get(owner.name)
                    if change is None:
                        change = changes[owner.name] = ImageChange(owner)
                    self._collect(change, node, options, stash)
                elif isinstance(node, FileNode) and isinstance(options, FileOptions):
                    files.append((node, options))
            check_apart(changes.values(), [node for node, _ in files], referred)
            ready: list[tuple[FileNode, FileOptions, str, FDStash]] = []
            try:
                for node, options in files:
                    ready.append((node, options, *self._hold(node, options, stash)))
                self._carry_out(list(changes.values()), stash)
            except BaseException:
                for _, _, _, fresh in ready:
                    fresh.close()
                raise
            for node, options, mode, fresh in ready:
                node.held.close()
                node.held, node.mode, node.options = fresh, mode, options
                node.filename = options.filename
        return [change.image for change in changes.values()]

    def set_host_cache(self, node: ImageNode, *, use: bool) -> None:
        """See `block_set_hostcache`."""
        with Held(node):
            before = cache_mode(node.image.cache)
            if before.ignores_flush and not use:
                raise QmpError(
                    f"Node '{node.name}' leaves flushes out, which needs the host's page cache:"
                    " reopen it with cache.no-flush=false first"
                )
            wanted = Caching(direct=not use, no_flush=before.ignores_flush)
            self._carry_out([ImageChange(node, cache=wanted)], None)

    # -- what is asked for

    def _involved(self, pairs: list[Pair]) -> _Involved:
        referred: list[Node] = []
        every: set[Node] = set()
        for node, options in pairs:
            every.add(node)
            owner = node.owner()
            if owner is not None:
                every.add(owner)
            if isinstance(node, ImageNode) and isinstance(options, ImageOptions):
                referred += self._opener.offers.referred(options, own_nodes(node))
        every.update(referred)
        return _Involved(referred, every)

    def _node(self, options: FileOptions | ImageOptions) -> Node:
        if options.node_name is None:
            raise QmpError("node-name not specified")
        node = self._table.find(options.node_name)
        if node is None:
            raise QmpError(f"Failed to find node with node-name='{options.node_name}'")
        if isinstance(node, BackingNode):
            raise QmpError(
                f"Node '{node.name}' is reopened with '{node.image.name}', which is based on it"
            )
        same_kind = isinstance(options, ImageOptions) == isinstance(node, ImageNode)
        if not same_kind or (isinstance(node, ImageNode) and node.driver != options.driver):
            raise QmpError("Cannot change the option 'driver'")
        return node

    def _collect(
        self,
        change: ImageChange,
        node: Node,
        options: FileOptions | ImageOptions,
        stash: FDStash | None,
    ) -> None:
        if isinstance(options, FileOptions):
            self._collect_file(change, node, options)
            return
        image = change.image
        check_unchangeable(image, options)
        cache = options.cache
        if isinstance(options.file, FileOptions):
            cache = cache or options.file.cache
            self._collect_path(change, node, options.file.filename)
        elif options.file != image.children[0].name:
            filename, _ = self._opener.offers.name_of(options.file)
            self._collect_path(change, node, filename)
        for other in self._opener.offers.referred(options, own_nodes(image)):
            if isinstance(other, FileNode):
                other.check_unused()
        change.want("cache", cache or Caching(), node.name)
        change.want("mode", "r" if options.read_only else "r+", node.name)
        if options.backing is False and is_based(image) and image.parents:
            raise QmpError(
                f"Node '{node.name}' is in use: '{min(image.parents)}' is based on it, and so on"
                " what it is itself based on"
            )
        # Another path is opened with what its header names, unless it is named here again.
        if options.backing is not None and (
            change.path is not None or options.backing != image.backing
        ):
            change.want("backing", self._opener.backing_path(options, stash), node.name)
        change.options = options
        names = names_for_parts(image, options)
        if names and not change.has_new_parts:
            raise QmpError(
                f"Cannot change the option 'node-name': '{names[0]}' is given to a part of"
                f" '{node.name}' that stays"
            )

    def _collect_file(self, change: ImageChange, node: Node, options: FileOptions) -> None:
        """Options of one of an image's files."""
        change.want("cache", options.cache or Caching(), node.name)
        if options.read_only and change.image.image.mode == "r+" and change.mode != "r":
            raise QmpError(
                f"Read-only block node '{node.name}' cannot support read-write users: reopen"
                f" '{change.image.name}' read-only"
            )
        children = change.image.children
        if node.name == children[0].name:
            self._collect_path(change, node, options.filename)
            return
        index = next(i for i, each in enumerate(children) if each.name == node.name)
        if options.filename != change.image.image.files[index].name:
            raise QmpError(
                f"Cannot change the option 'filename' of '{node.name}' alone: give 'extents' of"
                f" '{change.image.name}'"
            )

    def _collect_path(self, change: ImageChange, node: Node, filename: str) -> None:
        self._opener.offers.check_set(filename)
        change.want("filename", filename, node.name)

    # -- and how it is done

    def _hold(
        self, node: FileNode, options: FileOptions, stash: FDStash | None
    ) -> tuple[str, FDStash]:
        if node.exports:
            raise QmpError(f"Node '{node.name}' is exported as a file: export an image on it")
        node.close_direct()
        return self._opener.offers.hold_again(node, options, stash)

    def _carry_out(self, changes: Sequence[ImageChange], stash: FDStash | None) -> None:
        if not changes:
            return
        offers: list[FDStash] = []
        try:
            wanted = [(each.image.image, self._options(each, stash, offers)) for each in changes]
            try:
                fdstash.reopen_all(wanted, timeout=self._timeout)
            except (fdstash.Error, OSError) as error:
                names = ", ".join(f"'{each.image.name}'" for each in changes)
                raise told(error, f"Could not reopen {names}") from error
            for change, (_, options) in zip(changes, wanted, strict=True):
                self._settle(change, options["stash"])
        finally:
            for offered in offers:
                offered.close()

    def _options(
        self, change: ImageChange, stash: FDStash | None, offers: list[FDStash]
    ) -> dict[str, Any]:
        node = change.image
        if change.mode == "r" and node.writers:
            raise QmpError(
                f"Read-only block node '{node.name}' cannot support read-write users: export"
                f" '{min(node.writers)}' lets its clients write"
            )
        durable = cache_mode(node.image.cache).durable
        cache = None if change.cache is None else change.cache.mode(durable=durable)
        path = change.path
        offered: FDStash | None = None
        spare: FDStash | None = None
        if stash is None and not change.names_other_files:
            spare = node.kept or None
        else:
            offered = FDStash()
            offers.append(offered)
            self._offer(change, stash, offered)
        resolver = None  # the same graph resolves no name
        if path is not None or change.backing is not None:
            resolver = self._policy.resolver(path or node.filename)
        return {
            "mode": change.mode,
            "cache": cache,
            "path": path,
            "backing": change.backing,
            "stash": offered,
            "spare": spare,
            "resolver": resolver,
        }

    def _offer(self, change: ImageChange, stash: FDStash | None, offered: FDStash) -> None:
        """Put what the image may be opened with into `offered`."""
        node = change.image
        if change.path is None:  # it stays on its files, whatever else has their names by now
            copy_all(node.kept, offered)
        if stash is not None:
            copy_all(stash, offered)
        if change.path is not None:
            copy_all(node.kept, offered, names_that_serve_at(change.path, node, offered))
        if change.options is not None:
            self._opener.offers.offer_children(
                change.options,
                change.path or node.filename,
                offered,
                writable=(change.mode or node.image.mode) == "r+",
                own=self._staying(change),
            )
        if change.path is None and change.names_other_files:
            check_same_files(node, offered)

    def _staying(self, change: ImageChange) -> set[str]:
        """The nodes of an image's files that are what they are when it is reopened.

        Elsewhere, the descriptor file that is there names other extents than those that were
        added by themselves.
        """
        own = own_nodes(change.image)
        if change.path is not None:
            first = change.image.children[0].name
            own -= {n for n in own if n != first and isinstance(self._table.find(n), FileNode)}
        return own

    def _settle(self, change: ImageChange, offered: FDStash | None) -> None:
        node = change.image
        if change.has_new_parts:
            if change.path is not None:
                node.filename = change.path
            self._renew_children(change)
        if offered is not None:
            self._opener.offers.keep(node, offered)

    def _renew_children(self, change: ImageChange) -> None:
        """Another graph may have more or fewer files; each keeps its name."""
        node = change.image
        names = self._names_that_stay(node)
        parts = self._table.parts_of(node)
        self._table.replace(parts, self._opener.children(node, change.options, names))
        self._opener.release(node, {child.name for child in node.children})
        if change.options is not None:
            self._opener.adopt(node, change.options)
        self._hold_again(node)

    def _hold_again(self, node: ImageNode) -> None:
        """Files that were added by themselves and stay the image's hold what it is open on now."""
        stale = []
        for child, file in zip(node.children, node.image.files, strict=False):
            part = self._table.find(child.name)
            if not isinstance(part, FileNode):
                continue
            # An extent may be held by another name than that which the header has for it.
            renamed = child.role == "file" and part.filename != file.name
            if renamed or not part.is_same(file.device, file.inode):
                stale.append((part, file))
        if not stale:
            return  # what is handed out makes the next reopen slower
        with FDStash() as found:
            node.image.extract_fds(found)
            for part, file in stale:
                held = FDStash()
                copy_all(found, held, [file.name])
                part.held.close()
                part.held, part.filename, part.user = held, file.name, node
                caching = Caching.of(cache_mode(node.image.cache))
                part.mode = file.mode
                part.options = part.options._replace(filename=file.name, cache=caching)

    def _names_that_stay(self, node: ImageNode) -> dict[str, str]:
        """By role; not those of extents that were added by themselves and are others now."""
        names = {child.role: child.name for child in node.children}
        for child, file in zip(node.children[1:], node.image.files[1:], strict=False):
            extent = self._table.find(child.name)
            if isinstance(extent, FileNode) and not extent.is_same(file.device, file.inode):
                del names[child.role]
        return names
