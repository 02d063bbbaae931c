"""`fdstash convert`: a copy of an image in another format or layout."""

from __future__ import annotations

import click

import fdstash
from fdstash.cli.create import option_values
from fdstash.cli.options import force_share_option, format_option
from fdstash.cli.progress import progress_bar

__all__ = ["convert"]

_MEBIBYTE = 1 << 20


@click.command()
@format_option
@click.option(
    "-O", "--target-format", metavar="FMT", default="raw", show_default=True, help="Of the copy."
)
@click.option(
    "-o",
    "given",
    metavar="NAME=VALUE,...",
    multiple=True,
    help="What the copy's format is to do; 'fdstash create -f FMT -o help' lists what there is.",
)
@click.option("-p", "--progress", is_flag=True, help="Show progress, not only on a terminal.")
@force_share_option
@click.argument("filename")
@click.argument("target")
def convert(
    *,
    image_format: str | None,
    target_format: str,
    given: tuple[str, ...],
    progress: bool,
    force_share: bool,
    filename: str,
    target: str,
) -> None:
    """Copy the image FILENAME to TARGET, which is replaced.

    What reads as zeros takes no space in the copy, and images that FILENAME is based on
    become part of it.
    """
    options = option_values(given, target_format)
    with (
        fdstash.open(filename, format=image_format, lock=not force_share) as image,
        progress_bar({"copy": "MiB copied"}, forced=progress, every=1) as report,
    ):

        def told(done: int, total: int) -> None:
            if report is not None:
                whole = done // _MEBIBYTE if done < total else -(-total // _MEBIBYTE)
                report("copy", whole, -(-total // _MEBIBYTE))

        fdstash.convert(image, target, target_format, progress=told, **options)
