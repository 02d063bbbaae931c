"""An open image that a fault matrix works on, with the load that runs on it meanwhile."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from fdstash import FDStash
from fdstash.hostfile import FileInfo
from tests.support.diskset import DiskSet, disagreements, wrong_bytes
from tests.support.kernel import getfl
from tests.support.load import Load, Worker

__all__ = ["Kind", "State", "Subject"]


@dataclass(frozen=True)
class Kind:
    """What a reopen changes, from what to what, and by which routes it must do so."""

    name: str
    routes: frozenset[str]
    mode: tuple[str, str] = ("r+", "r+")
    cache: tuple[str, str] = ("writeback", "writeback")
    backing: str | None = None
    """``link``: to a hard link to the parent."""
    path: str | None = None
    """``own``; ``link``: to hard links; ``copy``: to a copy that `prepare` brings up to date."""
    stash: bool = False
    shared: bool = False
    """The descriptors were handed out before, by `extract_fds`."""
    fresh: bool = False
    """Each time on an image that was just opened."""
    prepare: bool = False
    timeout: float | None = None


class State(NamedTuple):
    """What must be as before after a failure."""

    mode: str
    cache: str
    files: tuple[FileInfo, ...]


class Subject:
    """One image. While the load is paused, everything here may be called."""

    def __init__(self, disks: DiskSet, seed: int) -> None:
        self.disks = disks
        self.live = "own"
        self.outsiders: list[tuple[int, int]] = []
        self._stash: FDStash | None = None
        self._copier = Worker("the copy")
        self.image = disks.open("r+")
        self.model = bytearray(disks.guest_bytes())
        self.load = Load(self.image, self.model, seed=seed, writing=False)

    # ------------------------------------------------------------------ its life

    def open_again(self, mode: str, cache: str) -> None:
        self.image.close()
        if self.disks.grows:
            self.live = "own"
            self.disks.reset()
            self.model[:] = self.disks.guest_bytes()
        self.image = self.load.image = self.disks.open(mode, cache)

    def start_over(self) -> None:
        """A new image, whatever became of the old one; the host's bytes are the right ones."""
        with contextlib.suppress(Exception):
            self.image.close()
        self.live = "own"
        self.image = self.load.image = self.disks.open("r+")
        self.model[:] = self.disks.guest_bytes()
        self.load.failures.clear()

    def close(self) -> None:
        self.load.close()
        self.image.close()
        self._copier.close()
        if self._stash is not None:
            self._stash.close()
        for fd, _ in self.outsiders:
            os.close(fd)

    def stash(self) -> FDStash:
        """What others hold of each file; the same one every time."""
        if self._stash is None:
            self._stash = self.disks.stash()
            self._watch(self._stash)
        return self._stash

    def _watch(self, stash: FDStash) -> None:
        for name in stash.names():
            self.outsiders += [(fd, getfl(fd)) for fd in stash.dup_all(name)]

    @contextlib.contextmanager
    def handed_out(self) -> Iterator[None]:
        """Others hold the image's descriptions from here on."""
        count = len(self.outsiders)
        with FDStash() as stash:
            self.image.extract_fds(stash)
            self._watch(stash)
        yield
        for fd, _ in self.outsiders[count:]:
            os.close(fd)
        del self.outsiders[count:]

    # ------------------------------------------------------------------ reopens

    def options(self, kind: Kind) -> dict[str, Any]:
        """The options of `Image.reopen` for the change."""
        options: dict[str, Any] = {}
        if kind.mode[0] != kind.mode[1]:
            options["mode"] = kind.mode[1]
        if kind.cache[0] != kind.cache[1]:
            options["cache"] = kind.cache[1]
        if kind.stash:
            options["stash"] = self.stash()
        if kind.prepare:
            image = self.image
            options["prepare"] = lambda: image.pread(4096, 0)
        if kind.path is not None:
            self._change_path(options, kind.path)
        if kind.backing is not None:
            options["backing"] = self.disks.parent(kind.backing)
        return options

    def _change_path(self, options: dict[str, Any], home: str) -> None:
        options["path"] = self.disks.path(home)
        if "copy" in (home, self.live):
            live = self.live
            # On a thread of its own, where no call of it fails.
            options["prepare"] = lambda: self._copier.call(lambda: self.disks.copy(live, home))

    def reopened(self, kind: Kind) -> None:
        """The change was made."""
        if kind.path is not None:
            self.live = kind.path

    def restore(self, kind: Kind) -> None:
        """To the state from which the change starts."""
        options: dict[str, Any] = {"mode": kind.mode[0], "cache": kind.cache[0]}
        if self.live != "own":
            self._change_path(options, "own")
        if options != {"mode": self.image.mode, "cache": self.image.cache}:
            self.image.reopen(**options)
            self.live = "own"

    def touch(self) -> None:
        """Make every extent dirty, with the bytes that it has."""
        if self.image.mode == "r":
            return
        for extent in self.image.extents():
            offset = extent.offset + extent.length // 2
            self.image.pwrite(self.model[offset : offset + 100], offset)

    # ------------------------------------------------------------------ what it is

    def state(self) -> State:
        files = self.image.files
        if self.disks.grows:
            files = tuple(file._replace(size=0) for file in files)
        return State(self.image.mode, self.image.cache, files)

    def lock_trouble(self, mode: str, *, of_the_system: bool = False) -> Iterator[str]:
        return self.disks.lock_trouble(mode, self.live, of_the_system=of_the_system)

    def trouble(self) -> Iterator[str]:
        """What no reopen may ever do, whether it succeeds or fails."""
        yield from self.load.failures
        yield from disagreements(self.image, self.disks, self.live)
        yield from wrong_bytes(self.image, self.model, self.disks, self.live)
        for fd, flags in self.outsiders:
            if getfl(fd) != flags:
                yield f"a description that others hold went from {flags:o} to {getfl(fd):o}"
