"""The command line, run inside this process or as a program of its own."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from typing import Any

from click.testing import CliRunner, Result

from fdstash.cli.app import app

__all__ = ["command", "fdstash_json", "heeding_interrupts", "program"]


def command(*arguments: str | os.PathLike[str]) -> Result:
    """`fdstash ARGUMENTS` in this process, whose limits stay as they are."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        return CliRunner().invoke(app, [os.fspath(each) for each in arguments])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def fdstash_json(*arguments: str | os.PathLike[str], code: int = 0) -> Any:
    """What `fdstash ARGUMENTS --output json` prints; it must exit with `code`."""
    result = command(*arguments, "--output", "json")
    assert result.exit_code == code, result.output
    return json.loads(result.stdout)


def heeding_interrupts(*arguments: str | os.PathLike[str]) -> list[str]:
    """The words that run `fdstash ARGUMENTS` as a program, which SIGINT interrupts.

    A shell has its background jobs ignore SIGINT, and so the tests may be run.
    """
    words = ["env", "--default-signal=INT", sys.executable, "-m", "fdstash.cli.main"]
    return [*words, *map(os.fspath, arguments)]


def program(*arguments: str | os.PathLike[str], **options: Any) -> subprocess.CompletedProcess[str]:
    """`python -m fdstash.cli.main ARGUMENTS` as a program."""
    return subprocess.run(
        [sys.executable, "-m", "fdstash.cli.main", *map(os.fspath, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        **options,
    )
