"""`fdstash create`: a new image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

import fdstash
from fdstash.cli.options import flag, split_options
from fdstash.cli.options import size as size_type
from fdstash.cli.sizes import format_size, parse_size
from fdstash.formats import registry
from fdstash.formats.options import CreateOption

__all__ = ["create", "option_values"]


@click.command()
@click.option(
    "-f", "--format", "image_format", metavar="FMT", default="raw", show_default=True,
    help="Of the new image.",
)  # fmt: skip
@click.option(
    "-o",
    "given",
    metavar="NAME=VALUE,...",
    multiple=True,
    help="What the format is to do; '-o help' lists what there is.",
)
@click.option("-q", "--quiet", is_flag=True, help="Say nothing.")
@click.argument("filename", required=False)
@click.argument("size", type=size_type, required=False)
def create(
    *,
    image_format: str,
    given: tuple[str, ...],
    quiet: bool,
    filename: str | None,
    size: int | None,
) -> None:
    """Make the image FILENAME of SIZE bytes, which reads as zeros.

    SIZE may have a suffix: k, M, G, T, P or E. An image of that name is replaced.
    """
    known = registry.create_driver(image_format).options
    pairs = [pair for text in given for pair in split_options(text)]
    if any(name in ("help", "?") and value is None for name, value in pairs):
        click.echo("\n".join(_help(image_format, known)))
        return
    options = _values(pairs, known)
    if filename is None:
        raise click.UsageError("the name of the new image is missing")
    size = options.pop("size", None) if size is None else size
    if size is None:
        raise click.UsageError(f"the size of {filename} is missing")
    options.pop("size", None)
    fdstash.create(filename, image_format, size, **options)
    if not quiet:
        with fdstash.open(filename, "r", format=image_format, lock=False) as image:
            size = image.size
        words = [f"format {image_format}", f"{format_size(size)} ({size} bytes)"]
        words += [f"{name} {value}" for name, value in options.items()]
        click.echo(f"Formatting {filename!r}: {', '.join(words)}")


def option_values(given: tuple[str, ...], image_format: str) -> dict[str, Any]:
    """What ``-o`` says for an image of that format. Raises `click.UsageError`."""
    known = registry.create_driver(image_format).options
    return _values([pair for text in given for pair in split_options(text)], known)


def _values(
    pairs: list[tuple[str, str | None]], known: Mapping[str, CreateOption]
) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, value in pairs:
        if value is None:
            raise click.UsageError(f"-o {name}: a value is missing, as in {name or 'name'}=...")
        values[name] = value
        if name in known and known[name].kind == "flag":
            values[name] = flag(name, value)
        if name == "size" or (name in known and known[name].kind == "size"):
            try:
                values[name] = parse_size(value)
            except ValueError as error:
                raise click.UsageError(f"-o {name}: {error}") from error
    return values


def _help(image_format: str, known: Mapping[str, CreateOption]) -> list[str]:
    entries = {"size": CreateOption("size", "of the disk, where SIZE is not given"), **known}
    names = {name: f"{name}=<{option.kind}>" for name, option in entries.items()}
    width = max(map(len, names.values()))
    lines = [f"Options of {image_format}:"]
    for name, option in entries.items():
        choices = f" ({', '.join(option.choices)})" if option.choices else ""
        lines.append(f"  {names[name]:<{width}}  {option.help}{choices}")
    return lines
