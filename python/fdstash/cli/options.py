"""Options that several commands have."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import click

from fdstash.bench.words import PATTERNS, Words
from fdstash.cache import CACHE_MODES
from fdstash.cli.sizes import parse_size
from fdstash.queue import ENGINES

__all__ = [
    "flag",
    "force_share_option",
    "format_option",
    "load_options",
    "load_words",
    "output_option",
    "size",
    "split_options",
]

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


def load_options(defaults: Words) -> Callable[[_Command], _Command]:
    """The words of fio that make a load, and what is done with what was found; see `load_words`."""
    options = [
        click.option("--rw", type=click.Choice(list(PATTERNS)), help="What is done."),
        click.option(
            "--bs", type=size, default=defaults.block_bytes, show_default=True, help="Block size."
        ),
        click.option(
            "--iodepth", type=int, default=defaults.depth, show_default=True,
            help="Requests at once, of each job.",
        ),
        click.option(
            "--numjobs", type=int, default=defaults.jobs, show_default=True,
            help="Threads, each with blocks of its own.",
        ),
        click.option("--runtime", type=float, help="Seconds."),
        click.option("--size", "image_size", type=size, help="Bytes of the image that are used."),
        click.option(
            "--cache", type=click.Choice(list(CACHE_MODES)), default=defaults.cache,
            show_default=True, help="Cache mode to begin with.",
        ),
        click.option(
            "--engine", type=click.Choice(list(ENGINES)), default=defaults.engine,
            show_default=True, help="What moves bytes.",
        ),
        click.option(
            "--rwmixread", type=int, default=defaults.read_percent, show_default=True,
            help="Percentage of reads, of rw and randrw.",
        ),
        click.option("--stride", type=size, help="Bytes from block to block, of --rw strided."),
        click.option(
            "--rate-iops", type=float, default=defaults.rate, show_default=True,
            help="Requests a second, latency counts from when due; 0: as many as can be.",
        ),
        click.option(
            "--fsync", type=int, default=defaults.fsync, show_default=True,
            help="Flush after so many writes of a job; 0: never.",
        ),
        click.option(
            "--verify/--no-verify", default=defaults.verify, show_default=True,
            help="Look at what is read.",
        ),
        click.option(
            "--randseed", "--seed", "randseed", type=int, default=defaults.seed,
            show_default=True, help="Of all choices.",
        ),
        click.option(
            "--every", type=float, default=defaults.every, show_default=True,
            help="Seconds between two reopens, on average.",
        ),
        click.option("--hdr", metavar="FILE", help="Write the latencies as a log of HdrHistogram."),
        click.option("--plot", "plot_file", metavar="FILE", help="Draw latency over time."),
        click.option(
            "--dir", "folder", metavar="DIR", help="Where to make an image; default: in memory."
        ),
        click.option(
            "-p", "--progress", is_flag=True, help="Show progress, not only on a terminal."
        ),
        click.argument("image", required=False),
    ]  # fmt: skip

    def decorate(command: _Command) -> _Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


#: What differs in name between the command line and `Words`.
_WORDS = {
    "image_format": "format",
    "bs": "block_bytes",
    "iodepth": "depth",
    "numjobs": "jobs",
    "image_size": "size",
    "rwmixread": "read_percent",
    "rate_iops": "rate",
    "randseed": "seed",
}


def load_words(given: Mapping[str, Any]) -> dict[str, Any]:
    """Options as `load_options` and `format_option` give them, as fields of `Words`."""
    words = {_WORDS.get(name, name): value for name, value in given.items()}
    if words["rw"] is None:
        del words["rw"]
    return words


def split_options(text: str) -> list[tuple[str, str | None]]:
    """``a=b,c``: pairs of a name and a value or None; two commas stand for one in a value."""
    parts = re.split(r"(?<!,),(?!,)", text)
    pairs: list[tuple[str, str | None]] = []
    for part in parts:
        name, equals, value = part.partition("=")
        pairs.append((name, value.replace(",,", ",") if equals else None))
    return pairs
