"""What a monitor's nodes are after each command that it took: which names, and on which files.

Whether a command is taken is the monitor's to say; what it means then is said here. A command that
must not have been taken fails an assertion.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.support.file_pool import EXTENTS, FilePool, PooledFile

__all__ = ["FileModel", "ImageModel", "Named", "NodeModel", "beside"]

#: Descriptors by name.
Named = Mapping[str, PooledFile]
Options = Mapping[str, Any]


def beside(filename: str, text: str) -> str:
    """What a header's text means in the file of that name."""
    return os.path.normpath(os.path.join(os.path.dirname(filename), text))


def _cache(options: Options) -> str | None:
    if "cache" not in options:
        return None
    return "none" if options["cache"]["direct"] else "writeback"


def _mode(options: Options) -> str:
    return "r" if options.get("read-only") else "r+"


@dataclass
class FileModel:
    """A file that was added by itself."""

    filename: str
    file: PooledFile
    cache: str


@dataclass
class ImageModel:
    """`parts`: the file, and what each extent is on.

    `children`: names of `files`, in their order; None for one that the monitor chooses.
    """

    driver: str
    filename: str
    parts: list[PooledFile]
    children: list[str | None]
    mode: str
    cache: str

    @property
    def files(self) -> list[PooledFile]:
        """Each file once."""
        return list(dict.fromkeys(self.parts))

    @property
    def data(self) -> list[PooledFile]:
        """The files with what the guest reads."""
        return self.parts[1:] if self.driver == "vmdk" else self.parts

    def name_of(self, index: int) -> str:
        """What the image calls a file of its own."""
        return beside(self.filename, EXTENTS[index - 1]) if index else self.filename


def _distinct(
    opened: Sequence[tuple[PooledFile, str | None]],
) -> list[tuple[PooledFile, str | None]]:
    """Each file once, with the name that it has first."""
    found: dict[PooledFile, str | None] = {}
    for file, name in opened:
        found.setdefault(file, name)
    return list(found.items())


@dataclass
class _Wish:
    """What one command wants of one image."""

    path: str | None = None
    cache: str | None = None
    mode: str | None = None
    options: Options | None = None


@dataclass
class NodeModel:
    pool: FilePool
    images: dict[str, ImageModel] = field(default_factory=dict)
    files: dict[str, FileModel] = field(default_factory=dict)

    # -- what there is

    def names(self) -> set[str]:
        """Of all nodes."""
        children = {name for image in self.images.values() for name in image.children}
        return {*self.images, *self.files, *(name for name in children if name is not None)}

    def owner(self, name: str) -> str | None:
        """The image that a node is, or is a file of."""
        if name in self.images:
            return name
        return next((at for at, each in self.images.items() if name in each.children), None)

    # -- where names lead

    def lookup(self, filename: str, *stashes: Named) -> PooledFile:
        """The file of that name: one that was passed under it, or under its last component."""
        for stash in stashes:
            for name in (filename, os.path.basename(filename)):
                if name in stash:
                    return stash[name]
        found = self.pool.at(filename)
        assert found is not None, f"{filename} leads nowhere, and was opened"
        return found

    def _free(self, name: str) -> FileModel:
        assert name in self.files, f"{name} is no file, and was taken for one"
        assert self.owner(name) is None, f"{name} is in use, and was used again"
        return self.files[name]

    def _opened(
        self, filename: str, options: Options, own: Sequence[str | None], *stashes: Named
    ) -> list[tuple[PooledFile, str | None]]:
        """The files of an image that is opened, each with its name where that is said."""
        roles: list[tuple[str, Any]] = [(filename, options["file"])]
        if options["driver"] == "vmdk":
            given = [*options.get("extents", ()), *[None] * len(EXTENTS)]
            roles += [(beside(filename, t), each) for t, each in zip(EXTENTS, given, strict=False)]
        found: list[tuple[PooledFile, str | None]] = []
        for name, part in roles:
            if isinstance(part, str):
                if part not in own:
                    found.append((self._free(part).file, part))
                elif part in self.files and part != own[0]:
                    found.append((self.files[part].file, part))
                else:
                    found.append((self.lookup(name, *stashes), part))
            elif part is None:
                found.append((self.lookup(name, *stashes), None))
            else:
                found.append((self.lookup(part["filename"], *stashes), part.get("node-name")))
        return found

    def _new_names(self, options: Options, own: Sequence[str | None]) -> Iterator[str]:
        """Names that options give to parts that have not had them."""
        parts = [options["file"], *options.get("extents", ())] if "file" in options else []
        for index, part in enumerate(parts):
            if isinstance(part, dict) and "node-name" in part:
                name = part["node-name"]
                if index >= len(own) or own[index] != name:
                    yield name

    def _check_new(self, names: Sequence[str]) -> None:
        taken = self.names()
        for name in names:
            assert name not in taken, f"{name} was there, and was given again"
            taken.add(name)

    # -- commands that were taken

    def add(self, options: Options, passed: Named) -> None:
        self._check_new([options["node-name"], *self._new_names(options, ())])
        name = options["node-name"]
        if options["driver"] == "file":
            filename = options["filename"]
            file = self.lookup(filename, passed)
            self.files[name] = FileModel(filename, file, _cache(options) or "writeback")
            return
        part = options["file"]
        filename, cache = part, _cache(options)
        if isinstance(part, str):
            filename, cache = self._free(part).filename, cache or self.files[part].cache
        else:
            filename = part["filename"]
        opened = self._opened(filename, options, (), passed)
        self.images[name] = ImageModel(
            options["driver"],
            filename,
            [file for file, _ in opened],
            [child for _, child in _distinct(opened)],
            _mode(options),
            cache or "writeback",
        )

    def reopen(self, given: Sequence[Options], passed: Named, kept: Mapping[str, Named]) -> None:
        wishes: dict[str, _Wish] = {}
        new: list[str] = []
        alone: list[Options] = []
        for options in given:
            owner = self.owner(options["node-name"])
            if owner is None:
                alone.append(options)
                continue
            new += self._new_names(options, self.images[owner].children)
            self._wish(wishes.setdefault(owner, _Wish()), self.images[owner], options)
        self._check_new(new)
        before = {name: FileModel(**vars(each)) for name, each in self.files.items()}
        for name, wish in wishes.items():
            self._carry_out(self.images[name], wish, passed, kept[name])
        for options in alone:
            name = options["node-name"]
            filename, was = options["filename"], before[name]
            held = {filename: was.file} if filename == was.filename else {}
            self.files[name] = FileModel(
                filename, self.lookup(filename, passed, held), _cache(options) or "writeback"
            )

    def _wish(self, wish: _Wish, image: ImageModel, options: Options) -> None:
        if options["driver"] == "file":
            wish.cache = _cache(options) or "writeback"
            if options["node-name"] == image.children[0] and options["filename"] != image.filename:
                wish.path = options["filename"]
            return
        wish.options, wish.mode, wish.cache = options, _mode(options), _cache(options)
        wish.cache = wish.cache or "writeback"
        part = options["file"]
        if isinstance(part, dict):
            path = part["filename"]
        elif part == image.children[0]:
            return
        else:
            path = self._free(part).filename
        if path != image.filename:
            wish.path = path

    def _carry_out(self, image: ImageModel, wish: _Wish, passed: Named, kept: Named) -> None:
        options = wish.options or {"driver": image.driver, "file": None}
        if wish.path is not None:
            same = os.path.dirname(wish.path) == os.path.dirname(image.filename)
            kept = {name: file for name, file in kept.items() if same or name.startswith("/")}
            opened = self._opened(wish.path, options, image.children, passed, kept)
        else:
            stay = {image.name_of(index): file for index, file in enumerate(image.parts)}
            opened = self._opened(image.filename, options, image.children, stay)
        before, image.children = image.children, []
        for index, (file, name) in enumerate(_distinct(opened)):
            old = before[index] if index < len(before) else None
            if index and old in self.files and self.files[old].file is not file:
                old = None  # it stays what it is, and is no longer the image's
            image.children.append(old if name is None else name)
        image.parts = [file for file, _ in opened]
        image.filename = wish.path or image.filename
        image.mode, image.cache = wish.mode or image.mode, wish.cache or image.cache
        for index, (child, file) in enumerate(zip(image.children, image.files, strict=True)):
            held = self.files.get(child or "")
            if held is not None and (held.file is not file or not index):
                held.file, held.filename = file, image.name_of(index)

    def set_host_cache(self, name: str, *, use: bool) -> None:
        owner = self.owner(name)
        assert owner is not None
        self.images[owner].cache = "writeback" if use else "none"

    def delete(self, name: str) -> None:
        if name in self.files:
            self._free(name)
            del self.files[name]
        else:
            del self.images[name]
