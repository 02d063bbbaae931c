"""How an image is reopened: fdstash's way. `naive` has the other one."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from time import perf_counter_ns
from typing import Any, NamedTuple, Protocol

import fdstash
from fdstash.bench.subject import Subject
from fdstash.cache import cache_mode
from fdstash.hostfile import FileInfo

__all__ = ["ReopenTarget", "State", "Target", "fresh_stash", "mismatch"]


class State(NamedTuple):
    """How the image is open."""

    path: str
    mode: str
    cache: str

    def after(self, options: Mapping[str, Any]) -> State:
        """How it is to be open after a reopen with those options."""
        wanted = {name: options.get(name) for name in self._fields}
        return self._replace(**{name: value for name, value in wanted.items() if value})


class Target(Protocol):
    """An image, and a way to reopen it."""

    state: State
    closes: bool  #: it is away while it is reopened

    @property
    def image(self) -> fdstash.Image:
        """The image of the moment, or the last that there was."""

    def reopen(self, options: Mapping[str, Any]) -> int:
        """As `Image.reopen` with those options; nanoseconds. Raises what that raises."""

    def files(self) -> tuple[FileInfo, ...]:
        """What the kernel says of the image's files; empty when the image is lost."""

    def recover(self, state: State) -> None:
        """After a loss, once what caused it is undone: back to `state`."""

    def close(self) -> None:
        """The end."""


class ReopenTarget:
    """An image that is reopened by `Image.reopen`."""

    closes = False

    def __init__(self, subject: Subject, cache: str) -> None:
        mode = "r+" if subject.writable else "r"
        self.state = State(subject.path, mode, cache)
        self.image: fdstash.Image = subject.open(self.state.path, mode, cache)

    def reopen(self, options: Mapping[str, Any]) -> int:
        """The call itself is what is timed."""
        start = perf_counter_ns()
        self.image.reopen(**options)
        took = perf_counter_ns() - start
        self.state = self.state.after(options)
        return took

    def files(self) -> tuple[FileInfo, ...]:
        """From the image, which can always tell."""
        return self.image.files

    def recover(self, state: State) -> None:
        """Nothing is to be lost here; but if it is, this brings the next figures back."""
        self.image.reopen(**state._asdict())
        self.state = state

    def close(self) -> None:
        """Close the image."""
        self.image.close()


def mismatch(files: tuple[FileInfo, ...], expected: tuple[FileInfo, ...], state: State) -> str:
    """In what `files` are not the `expected` ones, open as `state` says; empty if in nothing."""
    if len(files) != len(expected):
        return f"{len(files)} files are open instead of {len(expected)}"
    direct = cache_mode(state.cache).direct
    for file, known in zip(files, expected, strict=True):
        mode = state.mode if known.mode == "r+" else "r"
        if (file.device, file.inode) != (known.device, known.inode):
            return f"{file.name} is another file now"
        if file.mode != mode or file.direct != direct:
            wanted = f"mode {mode}, O_DIRECT {'on' if direct else 'off'}"
            return f"{file.name} has mode {file.mode}, O_DIRECT {file.direct}, and not {wanted}"
    return ""


def fresh_stash(
    files: Sequence[FileInfo], expected: Sequence[FileInfo], mode: str, cache: str
) -> fdstash.FDStash:
    """Descriptors for every file, opened by path: what another process might have sent."""
    stash = fdstash.FDStash()
    direct = os.O_DIRECT if cache_mode(cache).direct else 0
    try:
        for file, known in zip(files, expected, strict=True):
            if file.path is not None:
                access = os.O_RDWR if mode == known.mode == "r+" else os.O_RDONLY
                _add(stash, file.name, os.open(file.path, access | direct | os.O_CLOEXEC))
    except BaseException:
        stash.close()
        raise
    return stash


def _add(stash: fdstash.FDStash, name: str, fd: int) -> None:
    try:
        stash.add(name, fd)
    except BaseException:
        os.close(fd)
        raise
