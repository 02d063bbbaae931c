"""Runs a fuzzer under atheris. The tests run the seeds without it."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from pathlib import Path
from types import FunctionType

CORPORA = Path(__file__).parent / "corpus"
#: Packages whose branches guide the fuzzer: ours, and the parsers that ours call.
_FUZZED = {"fdstash", "json"}


def _module(function: FunctionType) -> str:
    return function.__module__ or ""


def run(one_input: Callable[[bytes], None], name: str) -> None:
    """Fuzz as the command line says. What is found goes to a folder given there, if any."""
    import atheris  # type: ignore[import-untyped] # noqa: PLC0415 - only here is it needed

    seeds = ",".join(map(str, sorted((CORPORA / name).iterdir())))
    # Not all of Python: that takes half a minute, and leads a fuzzer into the library's code.
    for function in gc.get_objects():
        if isinstance(function, FunctionType) and _module(function).split(".")[0] in _FUZZED:
            atheris.instrument_func(function)
    atheris.Setup([*sys.argv, f"-seed_inputs={seeds}"], one_input)
    atheris.Fuzz()
