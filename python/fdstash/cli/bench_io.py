"""`fdstash bench io`: how fast an image is read and written."""

from __future__ import annotations

import json
import sys
from typing import Any

import click

from fdstash.bench.io import IoSettings, run
from fdstash.cli.found import write_files
from fdstash.cli.options import format_option, load_options, load_words, output_option, size
from fdstash.cli.progress import progress_bar

__all__ = ["bench_io"]

_TITLES = {"fill": "fill", "load": "measure"}


@click.command("io", short_help="Read and write an image at full speed, and show how long it took.")
@format_option
@output_option
@load_options(IoSettings())
@click.option("--io-size", type=size, help="Stop after that many bytes.")
@click.option(
    "--reopen", metavar="MODE,MODE...", help="Reopen meanwhile, in these cache modes in turn."
)
def bench_io(
    *,
    output: str,
    io_size: int | None,
    reopen: str | None,
    hdr: str | None,
    plot_file: str | None,
    progress: bool,
    **words: Any,
) -> None:
    """Read and write an image at full speed, in fio's words.

    Without IMAGE a raw one of --size (1G) is made, filled, and removed at the end. --rw is randread
    where nothing else is said; all but read, randread and strided WRITE TO IMAGE, which --verify
    then fills first with blocks that tell their place and generation. Without --runtime and
    --io-size it takes 10 seconds. `--output json` is fio's JSON. The exit code is 1 when a request
    or a reopen failed, or a block was wrong.
    """
    settings = IoSettings(
        io_bytes=io_size,
        reopens=tuple(reopen.split(",")) if reopen else (),
        **load_words(words),
    )
    with progress_bar(_TITLES, forced=progress) as report:
        result = run(settings, report)
    what = f"{result.image['format']}, {settings.rw}, {settings.block_bytes} bytes"
    write_files(
        result.found,
        hdr=hdr,
        plot_file=plot_file,
        title=f"{what}, depth {settings.depth}, {settings.engine}",
        started=result.started,
        reopened_ns=result.reopened_ns,
    )
    if output == "json":
        from fdstash.bench.fio_json import as_fio  # noqa: PLC0415 - only for that

        click.echo(json.dumps(as_fio(result), indent=4))
    else:
        from fdstash.bench.io_report import show  # noqa: PLC0415 - rich is slow to import

        show(result)
    if not result.clean:
        sys.exit(1)
