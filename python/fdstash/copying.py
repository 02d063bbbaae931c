"""A copy of an image in another format, or laid out in another way."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator

from fdstash.backing import Backing
from fdstash.errors import ImageIOError
from fdstash.formats import registry
from fdstash.formats.options import check_names
from fdstash.image import Image, open  # noqa: A004 - as in the package

__all__ = ["convert"]

#: What is read at once, bytes.
_CHUNK = 1 << 20
#: What is left out where it is all zeros, bytes: a grain of a VMDK.
_UNIT = 65536

#: `progress(done, total)`, both bytes of the disk.
Progress = Callable[[int, int], object]


def convert(
    source: str | os.PathLike[str] | Image | Backing,
    path: str | os.PathLike[str],
    format: str,
    *,
    progress: Progress | None = None,
    **options: object,
) -> None:
    """Make an image at `path` that reads as `source`, which is a path or an open image.

    `options` are those of `create`. What reads as zeros takes no space, images below
    the source become part of the copy, and a streamOptimized VMDK is written as a
    stream. An image at `path` is replaced, unless it is in use; where a copy fails
    half-way, it is gone. `progress` is called after each 1 MiB of the disk, and at its end,
    with the bytes that are done and their number. Raises what `open`, `create` and requests raise.
    """
    if not isinstance(source, (Image, Backing)):
        with open(source) as image:
            convert(image, path, format, progress=progress, **options)
        return
    target = os.fspath(path)
    _refuse_itself(source, target)
    maker = registry.create_driver(format)
    check_names(options, maker.options, f"{format} create")
    given = {name: value for name, value in options.items() if value is not None}
    content = _content(source, progress)
    if maker.in_one_pass is not None and maker.in_one_pass(given):
        maker.create(target, source.size, content=content, **given)
        return
    maker.create(target, source.size, **given)
    try:
        # Its CID is as new as the copy.
        with open(target, "r+", format=format, mark=False) as copy:
            for offset, data in content:
                copy.pwrite(data, offset)
            copy.flush()
    except BaseException:
        os.unlink(target)
        raise


def _refuse_itself(source: Image | Backing, target: str) -> None:
    try:
        there = os.stat(target)
    except FileNotFoundError:
        return
    if any((file.device, file.inode) == (there.st_dev, there.st_ino) for file in source.files):
        raise ImageIOError(
            errno.EINVAL, "an image cannot be copied over one of its own files", target
        )


def _content(source: Image | Backing, progress: Progress | None) -> Iterator[tuple[int, bytes]]:
    """(offset, bytes) of what is not zeros, in order, in whole units but for the last."""
    size = source.size
    done = told = 0
    for extent in source.extents():
        if extent.kind in ("zero", "hole"):
            continue
        end = min(size, -(-(extent.offset + extent.length) // _UNIT) * _UNIT)
        done = max(done, extent.offset // _UNIT * _UNIT)
        while done < end:
            data = source.pread(min(_CHUNK, end - done), done)
            for at in range(0, len(data), _UNIT):
                part = data[at : at + _UNIT]
                if part.count(0) != len(part):
                    yield done + at, part
            done += len(data)
            if progress is not None and done < size and done >= told + _CHUNK:
                progress(done, size)
                told = done
    if progress is not None:
        progress(size, size)
