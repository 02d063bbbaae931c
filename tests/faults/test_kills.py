"""A program that writes to a sparse image is killed, and what it flushed is there."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import sys
import time
from itertools import islice, takewhile
from pathlib import Path

import pytest

from fdstash.formats import registry
from tests.support import tier
from tests.support.steps import model_after, steps
from tests.support.stopped import KINDS, check_after, content
from tests.support.toy_format import Toy

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

ROOT = Path(__file__).parents[2]
#: More than any machine makes before it is killed.
STEPS = 1_000_000
KILLS = 1000
_KILLED: dict[str, int] = {}


def _kill(path: Path, seed: int) -> int:
    """Run the load, kill it; the number of steps up to the last flush that it told of."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.support.steps", str(path), str(seed), str(STEPS)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    ) as program:
        assert program.stdout is not None
        told = program.stdout.readline()  # it is at work by now
        time.sleep(random.Random(seed).random() * 0.15)
        program.send_signal(signal.SIGKILL)
        told = (told + program.stdout.read()).rpartition("\n")[0]
        assert program.wait() == -signal.SIGKILL, "the load ended before it was killed"
    return int(told.split()[-1])


@pytest.mark.parametrize("kind", [name for name in KINDS if name != "toy"])
def test_what_was_flushed_survives_a_kill(kind: str, tmp_path: Path) -> None:
    kills = max(3, tier.count(KILLS) // 5)
    flushes = 0
    for seed in range(kills):
        folder = tmp_path / str(seed)
        folder.mkdir()
        path = KINDS[kind](folder)
        start = content(path)
        done = _kill(path, seed)
        every = steps(seed, STEPS, len(start))
        made = list(islice(every, done))
        begun = list(takewhile(lambda step: step.kind != "flush", every))
        flushes += sum(step.kind == "flush" for step in made)
        check_after(path, model_after(start, made, begun))
        shutil.rmtree(folder)
    assert flushes > kills
    _KILLED[kind] = kills
    tier.evidence("kills", {"kills": sum(_KILLED.values()), "by kind": dict(_KILLED)})


@pytest.fixture(autouse=True)
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry._DRIVERS, "toy", Toy)
