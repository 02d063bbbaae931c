"""`fdstash bench reopen`: reopen an image under a verified load, and count what goes wrong."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import click

from fdstash.bench.reopen import Settings, run
from fdstash.cache import CACHE_MODES
from fdstash.cli.options import format_option, output_option, size
from fdstash.cli.progress import progress_bar

__all__ = ["bench_reopen"]

_DEFAULTS = Settings()
_TITLES = {"fdstash": "reopen", "naive": "close-then-open"}


@click.command("reopen", short_help="Reopen an image under load, and count what goes wrong.")
@format_option
@output_option
@click.option("--write", is_flag=True, help="Also write to IMAGE: the bytes that it holds.")
@click.option("--reopens", type=int, default=_DEFAULTS.reopens, show_default=True, help="How many.")
@click.option(
    "--threads", type=int, default=_DEFAULTS.threads, show_default=True, help="Of the load."
)
@click.option(
    "--bs", type=size, default=_DEFAULTS.block_bytes, show_default=True, help="Block size."
)
@click.option(
    "--extents", type=int, default=_DEFAULTS.extents, show_default=True,
    help="Of the image that is made.",
)  # fmt: skip
@click.option(
    "--cache", type=click.Choice(list(CACHE_MODES)), default=_DEFAULTS.cache, show_default=True,
    help="The cache mode to begin with.",
)  # fmt: skip
@click.option("--seed", type=int, default=_DEFAULTS.seed, show_default=True, help="Of all choices.")
@click.option("--no-naive", is_flag=True, help="Leave close-then-open out.")
@click.option("--dir", "folder", metavar="DIR", help="Where to make an image; default: in memory.")
@click.option("-p", "--progress", is_flag=True, help="Show progress, not only on a terminal.")
@click.argument("image", required=False)
def bench_reopen(
    *,
    image_format: str | None,
    output: str,
    write: bool,
    reopens: int,
    threads: int,
    bs: int,
    extents: int,
    cache: str,
    seed: int,
    no_naive: bool,
    folder: str | None,
    progress: bool,
    image: str | None,
) -> None:
    """Reopen an image under a verified load, with failures made on purpose.

    Without IMAGE a VMDK of many extents is made, and removed at the end. IMAGE is
    only read, unless --write is given; then blocks are written with the bytes that
    they hold, and none of its files ever has other bytes than before. The same is
    then done by closing and opening, for comparison.

    The exit code is 1 when a request failed, a byte was wrong, an image was lost, a
    descriptor leaked, or a reopen did not do what it had to.
    """
    if write and image is None:
        raise click.UsageError("--write is for an IMAGE; the one that is made is written anyway")
    settings = Settings(
        image=image,
        format=image_format,
        write=write,
        reopens=reopens,
        threads=threads,
        block_bytes=bs,
        extents=extents,
        cache=cache,
        seed=seed,
        naive=not no_naive,
        folder=folder,
    )
    with _ended_by_sigterm(), progress_bar(_TITLES, forced=progress) as report:
        result = run(settings, report)
    if output == "json":
        click.echo(json.dumps(result.as_json(), indent=4))
    else:
        from fdstash.bench.report import show  # noqa: PLC0415 - rich is slow to import

        show(result)
    if not result.clean:
        sys.exit(1)


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """SIGTERM ends the run as an exception does, so that everything is put right."""

    def end(*_: object) -> NoReturn:
        sys.exit(128 + signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
