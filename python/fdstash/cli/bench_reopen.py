"""`fdstash bench reopen`: reopen an image under a verified load, and count what goes wrong."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import click

from fdstash.bench.daemons import PEERS
from fdstash.bench.reopen import Settings, run
from fdstash.bench.schedule import KINDS
from fdstash.bench.words import PATTERNS
from fdstash.cli.bench_against import against as run_against
from fdstash.cli.bench_against import was_said
from fdstash.cli.found import write_files
from fdstash.cli.options import format_option, load_options, load_words, output_option
from fdstash.cli.progress import progress_bar

__all__ = ["bench_reopen"]

_DEFAULTS = Settings()
_TITLES = {"fdstash": "reopen", "naive": "close-then-open"}


@click.command("reopen", short_help="Reopen an image under load, and count what goes wrong.")
@format_option
@output_option
@load_options(_DEFAULTS)
@click.option("--write", is_flag=True, help="Also write to IMAGE: the bytes that it holds.")
@click.option("--aligned", is_flag=True, help="Leave out blocks that are not whole sectors.")
@click.option("--reopens", type=int, default=_DEFAULTS.reopens, show_default=True, help="How many.")
@click.option(
    "--kinds", metavar="KIND=N,KIND=N...",
    help="How often which reopens are made; default, as far as IMAGE bears them: "
    + ",".join(f"{kind}={each}" for kind, each in KINDS.items()),
)  # fmt: skip
@click.option("--no-failures", is_flag=True, help="Make no reopen fail on purpose.")
@click.option(
    "--extents", type=int, default=_DEFAULTS.extents, show_default=True,
    help="Of the image that is made.",
)  # fmt: skip
@click.option("--no-naive", is_flag=True, help="Leave close-then-open out.")
@click.option(
    "--against", type=click.Choice(PEERS),
    help="Serve the image over NBD instead, by fdstash serve and by this daemon in turn.",
)  # fmt: skip
@click.option("--rounds", type=int, default=3, help="How often in turn, of --against; default 3.")
@click.option(
    "--peer-aio", type=click.Choice(["threads", "io_uring"]), default="threads",
    help="How the daemon of --against does its I/O; default threads.",
)  # fmt: skip
@click.pass_context
def bench_reopen(
    context: click.Context,
    /,
    *,
    output: str,
    no_failures: bool,
    no_naive: bool,
    kinds: str | None,
    hdr: str | None,
    plot_file: str | None,
    progress: bool,
    **words: Any,
) -> None:
    """Reopen an image under a verified load, with failures made on purpose.

    Without IMAGE a VMDK of many extents is made, and removed at the end. IMAGE is
    only read, unless --write is given; then blocks are written with the bytes that
    they hold, and none of its files ever has other bytes than before. --rw is randrw
    where nothing else is said. It ends after --reopens, or after --runtime if that is
    sooner. The same is then done by closing and opening, for comparison; --hdr and
    --plot are of the reopens.

    With --against both daemons get the same load, by fio's NBD client, once without
    reopens and once with as many as --runtime has room for, of the cache mode, by the
    same QMP client. The image is then a VMDK of --extents, or raw with -f raw, and has no
    holes; IMAGE is only read. Defaults are --rw randrw, --iodepth 16, --numjobs 1,
    --runtime 5 (of each load), --every 0.01, --size 256M, and no limit of --reopens or of
    --rate-iops. It wants fio and the daemon on PATH.

    The exit code is 1 when a request failed, a byte was wrong, an image was lost, a
    descriptor leaked, or a reopen did not do what it had to.
    """
    if words["against"] is not None:
        run_given = {**words, "kinds": kinds, "hdr": hdr, "no_failures": no_failures}
        run_given["no_naive"] = no_naive
        with _ended_by_sigterm():
            run_against(context, run_given, output=output, plot_file=plot_file, progress=progress)
        return
    for name in ("against", "rounds", "peer_aio"):
        if was_said(context, name):
            raise click.UsageError(f"--{name.replace('_', '-')} is for --against")
        del words[name]
    settings = Settings(
        kinds=_parsed(kinds) if kinds is not None else None,
        failures=not no_failures,
        naive=not no_naive,
        **load_words(words),
    )
    if settings.write and settings.image is None:
        raise click.UsageError("--write is for an IMAGE; the one that is made is written anyway")
    if _writes_unasked(words["rw"], settings):
        raise click.UsageError("--rw writes to IMAGE only with --write")
    with _ended_by_sigterm(), progress_bar(_TITLES, forced=progress) as report:
        result = run(settings, report)
    write_files(
        result.figures.found,
        hdr=hdr,
        plot_file=plot_file,
        title=f"{result.image['format']}, {settings.rw}, {result.figures.reopens} reopens",
        started=result.started,
        reopened_ns=result.figures.reopened_ns,
    )
    if output == "json":
        click.echo(json.dumps(result.as_json(), indent=4))
    else:
        from fdstash.bench.report import show  # noqa: PLC0415 - rich is slow to import

        show(result)
    if not result.clean:
        sys.exit(1)


def _writes_unasked(rw: str | None, settings: Settings) -> bool:
    """An IMAGE is to be written to, and it was not said that it may be."""
    given = rw is not None and settings.image is not None and not settings.write
    return given and PATTERNS[settings.rw][1] != 100


def _parsed(kinds: str) -> tuple[tuple[str, int], ...]:
    parts = [part.partition("=") for part in kinds.split(",")]
    try:
        return tuple((kind, int(each) if equals else 1) for kind, equals, each in parts)
    except ValueError as error:
        raise click.UsageError(f"--kinds: {error}") from error


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
