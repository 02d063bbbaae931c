"""What files a client may have opened by their paths."""

from __future__ import annotations

import os

from fdstash.names import Beneath, Confined

__all__ = ["Policy"]

_HINT = "pass its descriptor, or start the daemon with --allow-folder"


class Policy:
    """What the command line has named, and what lies beneath the folders that it allows.

    The kernel decides what lies beneath (`Confined`). Descriptors that were passed in are always
    allowed, and looked for first.
    """

    def __init__(self, folders: tuple[str, ...] = ()) -> None:
        self._confined = Confined(*map(os.path.abspath, folders), hint=_HINT)
        self._named: set[str] = set()

    def name(self, path: str) -> None:
        """Allow this path, and what its header names beneath its own folder."""
        self._named.add(os.path.abspath(path))

    def resolver(self, path: str) -> Beneath:
        """The resolver to open `path` with."""
        return Beneath() if os.path.abspath(path) in self._named else self._confined
