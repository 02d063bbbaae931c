"""`fdstash bench reopen --against`: the same load and reopens on another storage daemon."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

import click
from click.core import ParameterSource

from fdstash.bench.against import MatchSettings, match
from fdstash.cli.options import load_words
from fdstash.cli.progress import progress_bar

__all__ = ["against", "was_said"]

#: What another daemon cannot be told, or fio's NBD client cannot do.
_NOT_HERE = (
    *("aligned", "engine", "hdr", "kinds", "no_failures", "no_naive", "stride", "verify"),
    "write",
)


def against(
    context: click.Context,
    given: Mapping[str, Any],
    *,
    output: str,
    plot_file: str | None,
    progress: bool,
) -> None:
    """Run it with the options of `bench reopen` that were given, and show what was found."""
    said = {name: value for name, value in given.items() if was_said(context, name)}
    for name in _NOT_HERE:
        if name in said:
            option = next(each for each in context.command.params if each.name == name)
            raise click.UsageError(f"{option.opts[0]} is not for --against")
    if given["image"] is not None and given["rw"] is None:
        said["rw"] = "randread"  # an image that is given is only read
    words = load_words({"rw": None} | said)
    words["peer"] = words.pop("against")
    settings = MatchSettings(**words)
    with progress_bar({"turns": "turns"}, forced=progress, every=1) as report:
        result = match(settings, report)
    if plot_file is not None:
        from fdstash.bench.against_plot import plot_match  # noqa: PLC0415 - matplotlib is an extra

        what = f"{result.image['format']} of {result.image['files']} files, {settings.rw}"
        plot_match(result, plot_file, title=f"{what}, depth {settings.depth}")
    if output == "json":
        click.echo(json.dumps(result.as_json(), indent=4))
    else:
        from fdstash.bench.against_report import show  # noqa: PLC0415 - rich is slow to import

        show(result)
    if not result.clean:
        sys.exit(1)


def was_said(context: click.Context, name: str) -> bool:
    """Other defaults than those of `bench reopen` are better here."""
    return context.get_parameter_source(name) is not ParameterSource.DEFAULT
