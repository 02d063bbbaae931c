"""`fdstash check`: whether an image's metadata are what they should be."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import click

import fdstash
from fdstash.cli.options import force_share_option, format_option, output_option

__all__ = ["check"]

_CORRUPT, _LEAKS, _NOT_SUPPORTED = 2, 3, 63


@click.command()
@format_option
@output_option
@click.option(
    "-r",
    "--repair",
    type=click.Choice(["leaks", "all"]),
    help="Take back lost space; with 'all' also make copies of metadata agree.",
)
@click.option("-q", "--quiet", is_flag=True, help="Say nothing, but for the exit code.")
@force_share_option
@click.argument("filename")
@click.pass_context
def check(
    ctx: click.Context,
    *,
    image_format: str | None,
    output: str,
    repair: str | None,
    quiet: bool,
    force_share: bool,
    filename: str,
) -> None:
    """Look whether the metadata of the image FILENAME are what they should be.

    Exits with 0 if so, 1 if it could not be looked at, 2 for corruption, 3 for lost
    space and nothing else, 63 for a format that has nothing to check.
    """
    try:
        report = fdstash.check(
            filename, repair=repair or False, format=image_format, lock=not force_share
        )
    except fdstash.UnsupportedFormatError as error:
        click.echo(f"fdstash: {error}", err=True)
        ctx.exit(_NOT_SUPPORTED)
    if output == "json":
        click.echo(json.dumps(_record(report), indent=4))
    elif not quiet:
        click.echo("\n".join(_lines(report)))
    if report.check_errors:
        ctx.exit(1)
    if report.corruptions:
        ctx.exit(_CORRUPT)
    if report.leaks:
        ctx.exit(_LEAKS)


def _record(report: fdstash.CheckReport) -> dict[str, Any]:
    """With `qemu-img check`'s keys, and `findings`."""
    record = asdict(report)
    record["findings"] = [
        each._asdict() | {"severity": each.severity.value} for each in report.findings
    ]
    record["image-end-offset"] = record.pop("image_end")
    return {name.replace("_", "-"): value for name, value in record.items()}


def _lines(report: fdstash.CheckReport) -> Iterator[str]:
    for each in report.findings:
        place = "" if each.offset is None else f", byte {each.offset}"
        done = " (repaired)" if each.fixed else ""
        yield f"{each.severity.name}: {each.file}{place}: {each.message}{done}"
    if report.corruptions_fixed or report.leaks_fixed:
        yield (
            f"{report.corruptions_fixed} corruptions and {report.leaks_fixed} leaked clusters "
            "were repaired."
        )
    if report.clean:
        yield "No errors were found on the image."
    else:
        yield (
            f"{report.corruptions} corruptions, {report.leaks} leaked clusters, "
            f"{report.check_errors} errors of the check itself."
        )
    if report.total_clusters:
        total, held = report.total_clusters, report.allocated_clusters
        yield (
            f"{held}/{total} = {held / total:.2%} allocated, "
            f"{report.fragmented_clusters / max(1, held):.2%} fragmented, "
            f"{report.compressed_clusters / max(1, held):.2%} compressed clusters"
        )
    yield f"Image end offset: {report.image_end}"
