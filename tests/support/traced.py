"""What system calls a program makes between two marks, by strace."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.support.need import missing, need_program, plain_environment

__all__ = ["traced_between_marks"]

_ROOT = Path(__file__).parents[2]


def traced_between_marks(
    log: Path, program: str, arguments: Sequence[str], only: Sequence[str] = ()
) -> list[str]:
    """The calls between the program's first and second access of ``/mark``, as strace writes them.

    `program` is Python's text. `only`: the calls to look at, all if empty.
    """
    command = [need_program("strace", "strace"), "-qq", "-f", "-o", str(log)]
    if only:
        command += ["-e", "trace=" + ",".join([*only, "access", "faccessat", "faccessat2"])]
    done = subprocess.run(
        [*command, sys.executable, "-c", program, *arguments],
        cwd=_ROOT,
        env=plain_environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    if "PTRACE" in done.stderr:
        missing(f"strace may not trace: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    _, between, _ = re.split(r'^.*"/mark".*\n', log.read_text(), flags=re.MULTILINE)
    return [re.sub(r"^\d+ +", "", line) for line in between.splitlines()]
