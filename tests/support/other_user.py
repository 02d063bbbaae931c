"""What another user than root may do with files; for tests that run as root."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from tests.support.need import need_root

__all__ = ["let_in", "without_permissions"]

_NOBODY = 65534


def let_in(folder: Path) -> None:
    """Another user gets into this folder, and sees what is there."""
    need_root("another user id")
    for each in (folder, *folder.parents[:-1]):
        mode = each.stat().st_mode
        if mode & 0o005 != 0o005:
            each.chmod(mode | 0o055)


@contextlib.contextmanager
def without_permissions() -> Iterator[None]:
    """Files of root alone cannot be opened, nor opened again."""
    need_root("another user id")
    os.setegid(_NOBODY)
    os.seteuid(_NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
