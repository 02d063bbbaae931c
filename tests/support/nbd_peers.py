"""Programs that speak NBD: clients, and servers to compare with."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support.need import missing, need_program, plain_environment

__all__ = ["Allocation", "allocation", "fio", "libnbd", "run", "their_server", "uri"]

#: Length and bits of runs, neighbours merged.
Allocation = list[tuple[int, int]]


def uri(where: str | Path, name: str = "") -> str:
    return f"nbd+unix:///{name}?socket={where}"


def run(program: str, package: str, *arguments: str | Path, timeout: float = 120) -> str:
    """What it printed; fails where it does."""
    done = subprocess.run(
        [need_program(program, package), *map(str, arguments)],
        env=plain_environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout,
    )
    assert done.returncode == 0, f"{program} {arguments}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


def allocation(where: str | Path, name: str = "") -> Allocation:
    """Of base:allocation, as nbdinfo sees it."""
    text = run("nbdinfo", "libnbd-bin", "--map=base:allocation", "--json", uri(where, name))
    merged: Allocation = []
    for run_ in json.loads(text):
        if merged and merged[-1][1] == run_["type"]:
            merged[-1] = (merged[-1][0] + run_["length"], run_["type"])
        else:
            merged.append((run_["length"], run_["type"]))
    return merged


def libnbd(script: str, *arguments: str | Path) -> str:
    """Runs a script for libnbd's binding, which only the system's Python has."""
    python = Path("/usr/bin/python3")
    if not python.exists():
        missing("/usr/bin/python3 is needed (Debian: python3, python3-libnbd)")
    return run(str(python), "python3-libnbd", "-c", script, *arguments)


def fio(where: str | Path, *options: str, name: str = "", timeout: float = 120) -> Any:
    """The job's part of what fio's nbd engine reports."""
    text = run(
        "fio",
        "fio",
        "--name=job",
        "--ioengine=nbd",
        f"--uri={uri(where, name)}",
        "--output-format=json",
        "--verify_state_save=0",  # else a file in the working directory
        *options,
        timeout=timeout,
    )
    job = json.loads(text[text.index("{") :])["jobs"][0]
    assert job["error"] == 0, text
    return job


@contextmanager
def their_server(image: Path, format: str, where: Path) -> Iterator[None]:
    """qemu-nbd serves the image, read-only, at `where`."""
    program = need_program("qemu-nbd", "qemu-utils")
    command = [program, "-r", "-t", "-f", format, "-k", str(where), str(image)]
    server = subprocess.Popen(command, env=plain_environment())
    try:
        limit = time.monotonic() + 20
        while not where.exists():
            assert server.poll() is None
            assert time.monotonic() < limit
            time.sleep(0.01)
        yield
    finally:
        server.terminate()
        server.wait(20)
