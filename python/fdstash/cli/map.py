"""`fdstash map`: where the bytes of an image are."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

import click

import fdstash
from fdstash.cli.options import force_share_option, format_option, output_option, size

__all__ = ["map_command"]

_COLUMNS = "{:<15} {:<15} {:<15} {}"


@click.command("map")
@format_option
@output_option
@force_share_option
@click.option("-s", "--start-offset", type=size, default=0, help="Where to begin.")
@click.option("-l", "--max-length", type=size, default=None, help="How far to go.")
@click.argument("filename")
def map_command(
    *,
    image_format: str | None,
    output: str,
    force_share: bool,
    start_offset: int,
    max_length: int | None,
    filename: str,
) -> None:
    """Show where in which file the bytes of the image FILENAME are.

    For people only what holds data is listed.
    """
    with fdstash.open(filename, "r", format=image_format, lock=not force_share) as image:
        runs = _merged(
            _entry(image.format, extent) for extent in image.extents(max_length, start_offset)
        )
        if output == "json":
            _write_json(runs)
        else:
            _write_table(runs)


def _entry(image_format: str, extent: fdstash.Extent) -> dict[str, Any]:
    """With `qemu-img`'s keys and meanings, and `filename`.

    `data` means that the format keeps bytes there, though they may be a hole of the
    host file that reads as zeros; a hole of a raw image is no data.
    """
    stored = extent.file is not None and (extent.kind != "zero" or image_format != "raw")
    entry: dict[str, Any] = {
        "start": extent.offset,
        "length": extent.length,
        "depth": extent.depth,
        "present": extent.kind != "hole",
        "zero": extent.kind in ("zero", "hole"),
        "data": stored,
    }
    if extent.file is not None:
        if extent.kind != "compressed":
            entry["offset"] = extent.file_offset
        entry["filename"] = extent.file
    return entry


def _merged(entries: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Neighbours that differ in nothing become one."""
    last: dict[str, Any] | None = None
    for entry in entries:
        if last is not None and _continues(last, entry):
            last["length"] += entry["length"]
            continue
        if last is not None:
            yield last
        last = entry
    if last is not None:
        yield last


def _continues(last: dict[str, Any], entry: dict[str, Any]) -> bool:
    changing = ("start", "length", "offset")
    if last.keys() != entry.keys():
        return False
    if any(last[key] != entry[key] for key in entry if key not in changing):
        return False
    return "offset" not in entry or bool(last["offset"] + last["length"] == entry["offset"])


def _write_json(runs: Iterable[dict[str, Any]]) -> None:
    """An entry a line, written as it is found."""
    before = "["
    for entry in runs:
        click.echo(before + json.dumps(entry), nl=False)
        before = ",\n"
    click.echo("]" if before != "[" else "[]")


def _write_table(runs: Iterable[dict[str, Any]]) -> None:
    click.echo(_COLUMNS.format("Offset", "Length", "Mapped to", "File"))
    for entry in runs:
        if entry["data"] and not entry["zero"]:
            numbers = (entry["start"], entry["length"], entry.get("offset", 0))
            click.echo(_COLUMNS.format(*(f"{n:#x}" for n in numbers), entry["filename"]))
