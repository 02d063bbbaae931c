"""`fdstash info`: what an image is."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import click

import fdstash
from fdstash.cli.options import force_share_option, format_option, output_option
from fdstash.cli.sizes import format_size

__all__ = ["info"]


@click.command()
@format_option
@output_option
@force_share_option
@click.option("--backing-chain", is_flag=True, help="Also every image that it is based on.")
@click.argument("filename")
def info(
    *, image_format: str | None, output: str, force_share: bool, backing_chain: bool, filename: str
) -> None:
    """Show what the image FILENAME is, and which files it consists of."""
    with fdstash.open(filename, "r", format=image_format, lock=not force_share) as image:
        chain: list[_Shown] = list(_chain(image)) if backing_chain else [image]
        found = [_describe(each) for each in chain]
    if output == "json":
        click.echo(json.dumps(found if backing_chain else found[0], indent=4))
    else:
        click.echo("\n\n".join("\n".join(_lines(each)) for each in found))


_Shown = fdstash.Image | fdstash.Backing


def _chain(image: fdstash.Image) -> Iterator[_Shown]:
    each: _Shown | None = image
    while each is not None:
        yield each
        each = each.backing


def _describe(image: _Shown) -> dict[str, Any]:
    """With `qemu-img`'s keys, and `files`."""
    files = [
        {
            "filename": file.name,
            "size": file.size,
            "actual-size": file.allocated,
        }
        for file in _own_files(image)
    ]
    found: dict[str, Any] = {
        "virtual-size": image.size,
        "filename": image.name,
        "format": image.format,
        "actual-size": sum(file["actual-size"] for file in files),
        "dirty-flag": False,
        "files": files,
    }
    below = image.backing
    if below is not None:
        found["full-backing-filename"] = below.name
        found["backing-filename"] = below.hint
        found["backing-filename-format"] = below.format
    special = image.format_info
    if special:
        found["format-specific"] = {"type": image.format, "data": dict(special)}
    return found


def _own_files(image: _Shown) -> Sequence[fdstash.FileInfo]:
    """Without those of the images below, which an open image holds as well."""
    if isinstance(image, fdstash.Backing):
        return image.files
    below = image.backing
    names: set[str] = set()
    while below is not None:
        names.update(file.name for file in below.files)
        below = below.backing
    return [file for file in image.files if file.name not in names]


def _lines(found: Mapping[str, Any]) -> Iterator[str]:
    yield f"image: {found['filename']}"
    yield f"file format: {found['format']}"
    size = found["virtual-size"]
    yield f"virtual size: {format_size(size)} ({size} bytes)"
    yield f"disk size: {format_size(found['actual-size'])}"
    if "backing-filename" in found:
        yield f"backing file: {found['full-backing-filename']}"
    if "format-specific" in found:
        yield "Format specific information:"
        yield from _nested(found["format-specific"]["data"], 1)
    yield "Files:"
    for file in found["files"]:
        used = format_size(file["actual-size"])
        yield f"    {file['filename']}: {format_size(file['size'])}, {used} on the host"


def _nested(value: Any, depth: int) -> Iterator[str]:
    """A name and a value a line, indented as deep as it lies."""
    indent = "    " * depth
    if isinstance(value, Mapping):
        entries = [(str(name).replace("-", " "), each) for name, each in value.items()]
    else:
        entries = [(f"[{number}]", each) for number, each in enumerate(value)]
    for name, each in entries:
        if isinstance(each, Mapping) or (isinstance(each, Sequence) and not isinstance(each, str)):
            yield f"{indent}{name}:"
            yield from _nested(each, depth + 1)
        else:
            yield f"{indent}{name}: {each}"
