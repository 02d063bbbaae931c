"""`fdstash bench io`: how fast an image is read and written."""

from __future__ import annotations

import json
import sys
from typing import Any

import click

from fdstash.bench.io import PATTERNS, IoResult, IoSettings, run
from fdstash.cache import CACHE_MODES
from fdstash.cli.options import format_option, output_option, size
from fdstash.cli.progress import progress_bar
from fdstash.queue import ENGINES

__all__ = ["bench_io"]

_DEFAULTS = IoSettings()
_TITLES = {"fill": "fill", "load": "measure"}


@click.command("io", short_help="Read and write an image at full speed, and show how long it took.")
@format_option
@output_option
@click.option(
    "--rw", type=click.Choice(list(PATTERNS)), default=_DEFAULTS.rw, show_default=True,
    help="What is done. All but read, randread and strided WRITE TO IMAGE.",
)  # fmt: skip
@click.option(
    "--bs", type=size, default=_DEFAULTS.block_bytes, show_default=True, help="Block size."
)
@click.option(
    "--iodepth", type=int, default=_DEFAULTS.depth, show_default=True,
    help="Requests at once, of each job.",
)  # fmt: skip
@click.option(
    "--numjobs", type=int, default=_DEFAULTS.jobs, show_default=True,
    help="Threads, each with a part of the image of its own.",
)  # fmt: skip
@click.option("--runtime", type=float, help="Seconds; default: 10, or until --io-size.")
@click.option(
    "--size", "image_size", type=size, help="Bytes of the image; default: all, or 1G made."
)
@click.option("--io-size", type=size, help="Stop after that many bytes.")
@click.option(
    "--cache", type=click.Choice(list(CACHE_MODES)), default=_DEFAULTS.cache, show_default=True,
    help="Cache mode.",
)  # fmt: skip
@click.option(
    "--engine", type=click.Choice(list(ENGINES)), default=_DEFAULTS.engine, show_default=True,
    help="What moves bytes.",
)  # fmt: skip
@click.option(
    "--rwmixread", type=int, default=_DEFAULTS.read_percent, show_default=True,
    help="Percentage of reads, of rw and randrw.",
)  # fmt: skip
@click.option("--stride", type=size, help="Bytes from block to block, of --rw strided.")
@click.option(
    "--rate-iops", type=float, default=0, help="Requests a second; latency counts from when due."
)
@click.option(
    "--verify", is_flag=True,
    help="Blocks tell their place and generation, and are looked at when read; an image that is"
    " written to is filled first.",
)  # fmt: skip
@click.option("--randseed", type=int, default=_DEFAULTS.seed, show_default=True, help="Of choices.")
@click.option(
    "--reopen", metavar="MODE,MODE...", help="Reopen meanwhile, in these cache modes in turn."
)
@click.option(
    "--every", type=float, default=_DEFAULTS.every, show_default=True,
    help="Seconds between two reopens, on average.",
)  # fmt: skip
@click.option("--hdr", metavar="FILE", help="Write the latencies as a log of HdrHistogram.")
@click.option("--plot", "plot_file", metavar="FILE", help="Draw latency over time.")
@click.option("--dir", "folder", metavar="DIR", help="Where to make an image; default: in memory.")
@click.option("-p", "--progress", is_flag=True, help="Show progress, not only on a terminal.")
@click.argument("image", required=False)
def bench_io(
    *,
    image_format: str | None,
    output: str,
    image_size: int | None,
    io_size: int | None,
    iodepth: int,
    numjobs: int,
    rwmixread: int,
    rate_iops: float,
    randseed: int,
    reopen: str | None,
    hdr: str | None,
    plot_file: str | None,
    progress: bool,
    bs: int,
    **same: Any,
) -> None:
    """Read and write an image at full speed, in fio's words.

    Without IMAGE a raw one is made, filled, and removed at the end. `--output json` is fio's
    JSON. The exit code is 1 when a request or a reopen failed, or a block was wrong.
    """
    settings = IoSettings(
        format=image_format,
        block_bytes=bs,
        depth=iodepth,
        jobs=numjobs,
        size=image_size,
        io_bytes=io_size,
        read_percent=rwmixread,
        rate=rate_iops,
        seed=randseed,
        reopens=tuple(reopen.split(",")) if reopen else (),
        **same,
    )
    with progress_bar(_TITLES, forced=progress) as report:
        result = run(settings, report)
    if hdr is not None:
        _write_log(result, hdr)
    if plot_file is not None:
        from fdstash.bench.plot import plot  # noqa: PLC0415 - matplotlib is an extra

        plot(result, plot_file)
    if output == "json":
        from fdstash.bench.fio_json import as_fio  # noqa: PLC0415 - only for that

        click.echo(json.dumps(as_fio(result), indent=4))
    else:
        from fdstash.bench.io_report import show  # noqa: PLC0415 - rich is slow to import

        show(result)
    if not result.clean:
        sys.exit(1)


def _write_log(result: IoResult, path: str) -> None:
    from fdstash.bench.hdr import log_lines  # noqa: PLC0415 - only for that

    found = {
        name: result.latency[f"{name.upper()}_DUE"]
        for name in ("read", "write")
        if len(result.latency[f"{name.upper()}_DUE"])
    }
    lines = log_lines(found, started=result.started, seconds=result.seconds)
    with open(path, "w", encoding="ascii") as file:
        file.writelines(f"{line}\n" for line in lines)
