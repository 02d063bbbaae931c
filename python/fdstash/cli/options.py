"""Options that several commands have."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeVar

import click

from fdstash.cli.sizes import parse_size

__all__ = ["flag", "force_share_option", "format_option", "output_option", "size", "split_options"]

_Command = TypeVar("_Command", bound=Callable[..., Any])


def size(value: str | int) -> int:
    """A size as a parameter's type."""
    if isinstance(value, int):
        return value
    try:
        return parse_size(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


def flag(name: str, value: str) -> bool:
    """What ``-o name=value`` turns on or off, in the words that ``qemu-img`` takes."""
    words = {"on": True, "yes": True, "true": True, "y": True}
    words |= {"off": False, "no": False, "false": False, "n": False}
    if value.lower() not in words:
        raise click.UsageError(f"-o {name}: {value!r} is neither on nor off")
    return words[value.lower()]


def format_option(command: _Command) -> _Command:
    """``-f``: the image's format."""
    return click.option(
        "-f", "--format", "image_format", metavar="FMT", help="Of the image; default: look."
    )(command)


def output_option(command: _Command) -> _Command:
    """``--output``: for people or for programs."""
    return click.option(
        "--output",
        type=click.Choice(["human", "json"]),
        default="human",
        show_default=True,
        help="For people or for programs.",
    )(command)


def force_share_option(command: _Command) -> _Command:
    """``-U``: open without locks."""
    return click.option(
        "-U",
        "--force-share",
        is_flag=True,
        help="Look at an image although another program writes to it.",
    )(command)


def split_options(text: str) -> list[tuple[str, str | None]]:
    """``a=b,c``: pairs of a name and a value or None; two commas stand for one in a value."""
    parts = re.split(r"(?<!,),(?!,)", text)
    pairs: list[tuple[str, str | None]] = []
    for part in parts:
        name, equals, value = part.partition("=")
        pairs.append((name, value.replace(",,", ",") if equals else None))
    return pairs
