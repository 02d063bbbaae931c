"""Every seed and every former finding of a fuzzer, without the fuzzer."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

FUZZERS = sorted(path.stem for path in Path(__file__).parent.glob("fuzz_*.py"))
CASES = [
    (name, seed)
    for name in FUZZERS
    for seed in sorted((Path(__file__).parent / "corpus" / name.removeprefix("fuzz_")).iterdir())
]


@pytest.mark.parametrize(("name", "seed"), CASES, ids=lambda value: getattr(value, "name", value))
def test_a_seed_is_read_or_refused(name: str, seed: Path) -> None:
    importlib.import_module(f"tests.fuzz.{name}").one_input(seed.read_bytes())


def test_every_fuzzer_has_seeds() -> None:
    assert {name for name, _seed in CASES} == set(FUZZERS)
