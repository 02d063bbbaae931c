"""One `create` for every format."""

from __future__ import annotations

import os

from fdstash.formats import registry
from fdstash.formats.options import check_names

__all__ = ["create"]


def create(
    path: str | os.PathLike[str],
    format: str,
    size: int,
    **options: object,
) -> None:
    """Makes an image of `size` bytes that reads as zeros; the format takes `options`.

    An existing image is replaced, unless it is in use. ``create_driver(format).options``
    lists what there is; None stands for an option that is not given. Raises
    `OptionError`, `UnsupportedFormatError`, `FormatError`, `ImageIOError`, `LockError`.
    """
    maker = registry.create_driver(format)
    check_names(options, maker.options, f"{format} create")
    given = {name: value for name, value in options.items() if value is not None}
    maker.create(path, size, **given)
