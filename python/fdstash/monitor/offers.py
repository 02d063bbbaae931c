"""What images are opened with: descriptors that were passed in, and files added by themselves."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

import fdstash
from fdstash.formats.vmdk import descriptor
from fdstash.monitor.descriptors import (
    FdSets,
    Identity,
    close_all,
    copy_all,
    fdset_number,
    identities,
    identity,
    mode_of,
    offer,
)
from fdstash.monitor.errors import QmpError, told
from fdstash.monitor.nodes import FileNode, ImageNode, Node, NodeTable
from fdstash.monitor.options import Caching, FileOptions, ImageOptions, Reference
from fdstash.monitor.policy import Policy
from fdstash.names import StashNames, join_name
from fdstash.stash import FDStash

__all__ = ["Offers", "in_modes", "names_that_serve_at"]

_NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS)
_T = TypeVar("_T")


def in_modes(modes: Sequence[str], open_in: Callable[[str], _T]) -> _T:
    """What `open_in` returns for the first mode in which the file can be written, or the last."""
    for mode in modes[:-1]:
        try:
            return open_in(mode)
        except OSError as error:
            if error.errno not in _NOT_WRITABLE:
                raise
    return open_in(modes[-1])


class Offers:
    """Any thread."""

    def __init__(self, table: NodeTable, sets: FdSets, policy: Policy) -> None:
        self._table = table
        self._sets = sets
        self._policy = policy

    def referred(self, options: ImageOptions, own: Collection[str] = ()) -> list[Node]:
        """The nodes that options name. `own`: those that are the image's anyway."""
        names = [each for each in (options.file, *options.extents) if isinstance(each, str)]
        found: list[Node] = []
        for name in names:
            if name in own:
                continue
            found.append(self._file_node(name))
        if isinstance(options.backing, str):
            below = self._table.get(options.backing)
            if not isinstance(below, ImageNode):
                raise QmpError(f"Node '{options.backing}' is no image that was added by itself")
            found.append(below)
        return found

    def offered(self, *passed: FDStash | None) -> AbstractContextManager[FDStash | None]:
        """All that was passed in, until the end of the block."""
        stash = offer(self._sets, *passed)
        return nullcontext() if stash is None else stash

    def name_of(self, reference: Reference) -> tuple[str, bool]:
        """The file name that a reference stands for, and whether to lock it."""
        if isinstance(reference, FileOptions):
            self.check_set(reference.filename)
            return reference.filename, reference.locking
        node = self._file_node(reference)
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

        def hold_in(mode: str) -> tuple[str, FDStash]:
            with fdstash.open(
                options.filename,
                mode,
                format="raw",
                cache=cache,
                stash=stash,
                resolver=self._policy.resolver(options.filename),
                lock=False,
            ) as image:
                found = FDStash()
                image.extract_fds(found)
                return mode, found

        try:
            return in_modes(modes, hold_in)
        except fdstash.Error as error:
            raise told(error, f"Could not open '{options.filename}'") from error

    def hold_again(
        self, node: FileNode, options: FileOptions, stash: FDStash | None
    ) -> tuple[str, FDStash]:
        """The same for a file that is held already, which serves under its own name."""
        with FDStash() as known:
            if stash is not None:
                copy_all(stash, known)
            key = StashNames(known).key(options.filename, options.filename)
            if options.filename == node.filename and key in (None, node.filename):
                copy_all(node.held, known)
            return self.hold(options, known)

    def offer_children(
        self,
        options: ImageOptions,
        filename: str,
        stash: FDStash,
        *,
        writable: bool,
        own: Collection[str] = (),
    ) -> None:
        """Put what the references of an image stand for where the image looks for it.

        `filename`: of its file; `own`: nodes that are the image's already, and stay what they are.
        Raises `QmpError` where one file is given twice.
        """
        if isinstance(options.file, str) and options.file not in own:
            self._offer_file(self._file_node(options.file), stash)
        if not options.extents:
            return
        texts, taken = self._extent_names(filename, stash)
        if len(options.extents) > len(texts):
            raise QmpError(
                f"'{filename}' names {len(texts)} extents, and {len(options.extents)} are given"
            )
        for number, (text, reference) in enumerate(zip(texts, options.extents, strict=False)):
            if isinstance(reference, str) and reference in own:
                continue
            name = join_name(text, filename)
            self._offer_extent(name, reference, stash, writable=writable)
            found = identities(stash, name)
            if found & taken:
                raise QmpError(f"'extents.{number}' is a file that the image has already")
            taken |= found

    def _file_node(self, name: str) -> FileNode:
        node = self._table.get(name)
        if not isinstance(node, FileNode):
            raise QmpError(f"Node '{name}' is no file that was added by itself")
        return node

    @staticmethod
    def _offer_file(node: FileNode, stash: FDStash) -> None:
        """Its own file serves under its name; of what else has that name, other modes of it."""
        with FDStash() as held:
            copy_all(node.held, held)
            copy_all(stash, held, [node.filename])
            while node.filename in stash:
                close_all([stash.take(node.filename)])
            copy_all(held, stash)

    def _offer_extent(
        self, name: str, reference: Reference, stash: FDStash, *, writable: bool
    ) -> None:
        """Whatever else has this name, the file that was given serves it."""
        if isinstance(reference, str):
            node = self._file_node(reference)
            fds = node.held.dup_all(node.filename)
        else:
            wanted = reference
            if reference.read_only is None and not writable:
                wanted = reference._replace(read_only=True)
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

    def _extent_names(self, filename: str, stash: FDStash) -> tuple[Sequence[str], set[Identity]]:
        """What a VMDK's descriptor file names, each file once; and which file it is itself."""
        try:
            text, own = self._read_header(filename, stash)
            lines = descriptor.parse(text, filename).extents
        except fdstash.Error as error:
            raise told(error, f"Could not open '{filename}'") from error
        names = dict.fromkeys(line.name for line in lines if line.name is not None)
        return list(names), {own}

    def _read_header(self, filename: str, stash: FDStash) -> tuple[bytes, Identity]:
        """What was passed may be of one mode alone, and of a file that cannot be opened again."""
        refused: OSError | None = None
        for mode, cache in (("r", "writeback"), ("r+", "writeback"), ("r", "none"), ("r+", "none")):
            try:
                with fdstash.open(
                    filename,
                    mode,
                    format="raw",
                    cache=cache,
                    stash=stash,
                    resolver=self._policy.resolver(filename),
                    lock=False,
                ) as image:
                    (file,) = image.files
                    text = image.pread(min(image.size, descriptor.MAX_BYTES), 0)
                    return text, (file.device, file.inode)
            except OSError as error:
                refused = refused or error
                if refused.errno not in _NOT_WRITABLE:
                    break
        assert refused is not None  # noqa: S101 - else it has returned
        raise refused

    def keep(self, node: ImageNode, stash: FDStash) -> None:
        """What of `stash` leads to the image's files is kept for reopens, under their names.

        It is moved, not copied: that needs no descriptor, so that it does not fail after a change.
        """
        files = {(file.device, file.inode): file.name for file in node.image.files}
        kept = FDStash()
        known: set[tuple[str, int]] = set()
        for name in _names_of(files.values(), stash):
            lock = "lock:" if name.startswith("lock:") else ""
            while name in stash:
                fd = stash.take(name)
                file = files.get(identity(fd))
                each = f"{lock}{file}", mode_of(fd)
                if file is None or each in known:
                    close_all([fd])
                else:
                    known.add(each)
                    kept.add(each[0], fd)
        before, node.kept = node.kept, kept
        before.close()


def _names_of(files: Collection[str], stash: FDStash) -> list[str]:
    """The names in `stash` that may mean one of these files."""
    lasts = {file.rpartition("/")[2] for file in files}
    return [
        name
        for name in stash.names()
        if (plain := name.removeprefix("lock:")) in files
        or plain in lasts
        or any(file.endswith(f"/{plain}") for file in files)
    ]


def names_that_serve_at(path: str, node: ImageNode, passed: FDStash) -> list[str]:
    """Names of what an image has kept, as far as they mean the same where it is opened at `path`.

    One without a folder meant a file beside the image, and there may be another beside `path`.
    What was passed now serves first, also under a shorter name.
    """
    names = node.kept.names()
    if _folder(path) != _folder(node.filename):
        names = [name for name in names if name.removeprefix("lock:").startswith("/")]
    said = passed.names()
    return [
        name
        for name in names
        if all(
            identities(passed, each) == identities(node.kept, name)
            for each in said
            if name.endswith(f"/{each}")
        )
    ]


def _folder(path: str) -> str:
    return os.path.normpath(os.path.dirname(path) or ".")
