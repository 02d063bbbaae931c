"""What a `blockdev-reopen` asks of one image, and what it cannot ask of it and of others."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from fdstash.monitor.descriptors import identities
from fdstash.monitor.errors import QmpError
from fdstash.monitor.nodes import FileNode, ImageNode, Node
from fdstash.monitor.options import Caching, FileOptions, ImageOptions, check_name, names_in
from fdstash.stash import FDStash

__all__ = [
    "ImageChange",
    "Pair",
    "check_apart",
    "check_same_files",
    "check_unchangeable",
    "is_based",
    "names_for_parts",
    "new_names",
    "own_nodes",
]

#: A node, and the options that a command has for it.
Pair = tuple[Node, FileOptions | ImageOptions]


@dataclass
class ImageChange:
    """What is asked of one image, and which node asked for it."""

    image: ImageNode
    cache: Caching | None = None
    mode: str | None = None
    filename: str | None = None
    backing: str | Literal[False] | None = None
    options: ImageOptions | None = None
    said: dict[str, str] = field(default_factory=dict)

    def want(self, what: str, value: Any, node: str) -> None:
        """Raises `QmpError` where another node's options want it otherwise."""
        if value is None:
            return
        before = getattr(self, what)
        if before is not None and before != value:
            one, other = sorted((self.said[what], node))
            raise QmpError(
                f"Nodes '{one}' and '{other}' belong to one image, and their options for its {what}"
                " differ"
            )
        setattr(self, what, value)
        self.said[what] = node

    @property
    def path(self) -> str | None:
        """Where it is to be opened, where that is another file name than it has."""
        return None if self.filename == self.image.filename else self.filename

    @property
    def has_new_parts(self) -> bool:
        """Whether the image is then another graph, with nodes of its own."""
        detached = self.backing is False and is_based(self.image)
        return self.path is not None or bool(self.backing) or detached

    @property
    def names_other_files(self) -> bool:
        """Whether it says which files it is to be on, so that what it has kept is not enough."""
        return self.path is not None or (self.options is not None and bool(self.options.extents))

    @property
    def foreign(self) -> list[str]:
        """File nodes that are to take the place of its parts."""
        if self.options is None:
            return []
        own = own_nodes(self.image)
        given = (self.options.file, *self.options.extents)
        return [each for each in given if isinstance(each, str) and each not in own]


def is_based(image: ImageNode) -> bool:
    """Whether its children include an image below."""
    return any(child.role == "backing" for child in image.children)


def own_nodes(image: ImageNode) -> set[str]:
    """The nodes of an image's files."""
    return {child.name for child in image.children if child.role != "backing"}


def new_names(pairs: Sequence[Pair]) -> list[str]:
    """Names that options give to parts of images. Raises `QmpError` for one that none can have."""
    names = [
        name
        for node, options in pairs
        if isinstance(node, ImageNode) and isinstance(options, ImageOptions)
        for name in names_for_parts(node, options)
    ]
    for name in names:
        check_name(name)
    return names


def names_for_parts(image: ImageNode, options: ImageOptions) -> list[str]:
    """Names that options give to what an image consists of, but for those that stay."""
    own = {(child.role, child.name) for child in image.children}
    return [
        name
        for role, part in options.new_parts()
        for name in names_in(part)
        if (role, name) not in own
    ]


def check_apart(
    changes: Collection[ImageChange], files: Sequence[Node], referred: Sequence[Node]
) -> None:
    """Raises `QmpError` where what an image is put on is itself put elsewhere, or taken twice.

    `files`: nodes of files that change by themselves; `referred`: what options refer to.
    """
    moved: set[str] = set()
    for change in changes:
        image = change.image
        if change.path is not None:
            moved.add(image.name)
            if image.parents:
                raise QmpError(
                    f"Node '{image.name}' is in use: '{min(image.parents)}' is based on the file"
                    " that it is open on"
                )
        elif change.foreign:
            raise QmpError(
                f"Node '{change.foreign[0]}' cannot take the place of a part of '{image.name}'"
                " whose filename stays"
            )
    names = [node.name for node in referred]
    for node in files:
        if node.name in names:
            raise QmpError(f"Node '{node.name}' cannot be reopened while an image is put on it")
    for node in referred:
        if node.name in moved or (isinstance(node, FileNode) and names.count(node.name) > 1):
            raise QmpError(f"Node '{node.name}' is used twice: give one reopen after the other")


def check_unchangeable(image: ImageNode, options: ImageOptions) -> None:
    """Raises `QmpError` for another place of a part, and for other options of the format."""
    roles = {child.name: child.role for child in image.children}
    for number, each in enumerate((options.file, *options.extents)):
        role = "file" if number == 0 else f"extents.{number - 1}"
        if isinstance(each, str) and roles.get(each, role) != role:
            raise QmpError(f"Node '{each}' is '{roles[each]}' of '{image.name}', not '{role}'")
    for name, value in options.format_options.items():
        default = 0 if name == "offset" else None
        if value != image.format_options.get(name, default):
            raise QmpError(f"Cannot change the option '{name}'")


def check_same_files(image: ImageNode, stash: FDStash) -> None:
    """Raises `QmpError` where `stash` has another file for one that is to stay."""
    for file in image.image.files:
        if not identities(stash, file.name) <= {(file.device, file.inode)}:
            raise QmpError(f"'{file.name}' is open, and another file is given in its place")
