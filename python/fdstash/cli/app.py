"""The commands, and how what goes wrong is told and turned into an exit code."""

from __future__ import annotations

import errno
import resource
import sys
from collections.abc import Sequence
from typing import Any

import click

import fdstash
from fdstash.cli.bench_io import bench_io
from fdstash.cli.bench_reopen import bench_reopen
from fdstash.cli.check import check
from fdstash.cli.convert import convert
from fdstash.cli.create import create
from fdstash.cli.doctor import doctor
from fdstash.cli.info import info
from fdstash.cli.map import map_command
from fdstash.cli.serve import serve

__all__ = ["app"]


class _Failure(click.ClickException):
    """What a command could not do: exit code 1."""

    exit_code = 1

    def show(self, file: Any = None) -> None:
        click.echo(f"fdstash: {self.format_message()}", file=file, err=True)


class _Commands(click.Group):
    """Errors of the library are told in one line, and wrong usage exits with 2."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (fdstash.Error, OSError) as error:
            if getattr(error, "errno", None) == errno.EPIPE:
                raise  # whoever read our output has gone away
            raise _Failure(_describe(error)) from error

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        if not standalone_mode:
            return super().main(args, prog_name, complete_var, standalone_mode, **extra)
        try:
            code = super().main(args, prog_name, complete_var, standalone_mode=False, **extra)
        except click.exceptions.NoArgsIsHelpError as error:
            click.echo(error.format_message(), err=True)
            code = 2
        except click.UsageError as error:
            click.echo(f"fdstash: {error.format_message()}", err=True)
            if error.ctx is not None:
                click.echo(f"Try '{error.ctx.command_path} --help'.", err=True)
            code = 2
        except click.ClickException as error:
            error.show()
            code = error.exit_code
        except click.Abort:
            click.echo("fdstash: interrupted", err=True)
            code = 130
        sys.exit(code if isinstance(code, int) else 0)


def _describe(error: BaseException) -> str:
    if isinstance(error, fdstash.FormatError) and error.file is None:
        return error.message
    if isinstance(error, fdstash.ReopenError) or not isinstance(error, OSError):
        return str(error)
    text = error.strerror or str(error)
    if isinstance(error, fdstash.LockError) and error.errno in (errno.EAGAIN, errno.EACCES):
        text += "; -U (--force-share) looks at it all the same"
    if isinstance(error.filename, bytes):
        return f"{error.filename!r}: {text}"
    return f"{error.filename}: {text}" if error.filename is not None else text


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="fdstash COMMAND --help tells more of each.",
)
@click.version_option(fdstash.__version__, "-V", "--version", prog_name="fdstash")
@click.pass_context
def app(ctx: click.Context) -> None:
    """Open disk images, and reopen them under load without losing them."""
    ctx.obj = resource.getrlimit(resource.RLIMIT_NOFILE)
    fdstash.raise_nofile()


@app.group()
def bench() -> None:
    """Measure."""


for command in (info, map_command, create, check, convert, serve, doctor):
    app.add_command(command)
for command in (bench_io, bench_reopen):
    bench.add_command(command)
