"""What the files of an image are called, and which of them a header may name.

The name of a file is the path that would be opened: `open`'s argument as given,
and for a file that a header names, the header's text joined to the folder of the
file that names it, normalised.
"""

from __future__ import annotations

import errno
import functools
import os
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from fdstash.errors import RefusedError
from fdstash.stash import FDStash

__all__ = ["Beneath", "Confined", "Place", "Resolver", "StashNames", "anywhere", "join_name"]

#: What lets a header name a file: gets the header's text and the name of the file
#: that holds the header, and returns the path to open, or None to refuse.
Resolver = Callable[[str, str], str | os.PathLike[str] | None]


def join_name(text: str, referrer: str | None) -> str:
    """The name of the file that the header of `referrer` calls `text`."""
    if referrer is None:
        return text
    if "/" not in text and text not in _NO_NAMES:
        return _beside(referrer) + text
    return os.path.normpath(os.path.join(os.path.dirname(referrer), text))


_NO_NAMES = ("", ".", "..")


@functools.lru_cache(maxsize=16)
def _folder(referrer: str) -> str:
    return os.path.dirname(referrer) or "."


@functools.lru_cache(maxsize=16)
def _beside(referrer: str) -> str:
    """What a name in the folder of `referrer` starts with: asked for thousands of extents."""
    return os.path.normpath(os.path.join(os.path.dirname(referrer), "x"))[:-1]


class Place(NamedTuple):
    """Where a file is to be opened."""

    path: str
    folder: str  #: `path` must not lead out of it


class Beneath:
    """A resolver: files beneath the folders given.

    With none, beneath the folder of the file that names them. The kernel,
    not the text, decides what ``..`` and symbolic links mean (``openat2`` with
    RESOLVE_BENEATH).
    """

    #: What the error for a file that is refused tells to do.
    hint = "a resolver= can allow it"

    def __init__(self, *folders: str | os.PathLike[str]) -> None:
        self.folders = tuple(os.fspath(folder) or "." for folder in folders)

    def places(self, text: str, referrer: str) -> list[Place]:
        """Where to look, in order."""
        own = _folder(referrer)
        if not self.folders and not text.startswith("/"):
            return [Place(text, own)]
        path = os.path.abspath(os.path.join(own, text))
        return [
            Place(os.path.relpath(path, os.path.abspath(folder)), folder)
            for folder in self.folders or (own,)
        ]

    def __call__(self, text: str, referrer: str) -> str | None:
        """As for any resolver, by text alone; `places` is what an open uses."""
        place = self.places(text, referrer)[0]
        escapes = place.path == ".." or place.path.startswith("../")
        return None if escapes else os.path.join(place.folder, place.path)


class Confined(Beneath):
    """As `Beneath`, and the path that an image is opened by is held to it, too.

    With no folders nothing is opened by a path.
    """

    def __init__(self, *folders: str | os.PathLike[str], hint: str) -> None:
        super().__init__(*folders)
        self.hint = hint

    def places(self, text: str, referrer: str) -> list[Place]:
        """Where to look, in order."""
        return super().places(text, referrer) if self.folders else []


def anywhere(text: str, referrer: str) -> str:
    """A resolver that lets a header name any file. Only for images that you trust."""
    return join_name(text, referrer)


class StashNames:
    """Looks files up in a stash, and sees to it that no name serves two of them."""

    def __init__(self, stash: FDStash | None) -> None:
        self.stash = stash
        self._served: dict[str, str] = {}

    def key(self, name: str, text: str) -> str | None:
        """The name under which the stash holds the file, or None.

        Tries the file's name, then the text as written, then its last component.
        Raises `RefusedError` for a name that would serve two files.
        """
        if self.stash is None:
            return None
        for candidate in _candidates(name, text):
            if candidate not in self.stash:
                continue
            owner = self._served.setdefault(candidate, name)
            if owner != name:
                raise RefusedError(
                    errno.EACCES,
                    f"the stash's name {candidate!r} would serve both {owner!r} and {name!r};"
                    " give each under its own name",
                    name,
                )
            return candidate
        return None

    def lock_key(self, key: str | None, name: str, text: str) -> str | None:
        """The name of the descriptor for the locks of that file, or None."""
        if self.stash is None:
            return None
        names: Iterable[str] = [key] if key is not None else _candidates(name, text)
        return next((lock for n in names if (lock := f"lock:{n}") in self.stash), None)


def _candidates(name: str, text: str) -> Iterator[str]:
    """One by one: the first is nearly always the one."""
    if name:
        yield name
    if text and text != name:
        yield text
    last = os.path.basename(text)
    if last and last not in (name, text):
        yield last
