"""Runs a fuzzer under atheris. The tests run the seeds without it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

CORPORA = Path(__file__).parent / "corpus"


def run(one_input: Callable[[bytes], None], name: str) -> None:
    """Fuzz as the command line says. What is found goes to a folder given there, if any."""
    import atheris  # type: ignore[import-untyped] # noqa: PLC0415 - only here is it needed

    seeds = ",".join(map(str, sorted((CORPORA / name).iterdir())))
    atheris.instrument_all()
    atheris.Setup([*sys.argv, f"-seed_inputs={seeds}"], one_input)
    atheris.Fuzz()
