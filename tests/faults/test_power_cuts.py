"""The power goes at any moment: of what no barrier covers, any part may have reached the disk."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fdstash.formats import registry
from tests.support import tier
from tests.support.power_cut import Disk, random_choice
from tests.support.steps import model_after, steps
from tests.support.stopped import KINDS, check_after, content
from tests.support.toy_format import Toy
from tests.support.write_log import MARKS, Kind, parse, recording_environment

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

ROOT = Path(__file__).parents[2]
STEPS = 60
CUTS = 2000
#: Cuts of the power in one run of the load.
PER_RUN = 20
_CUT: dict[str, int] = {}


@pytest.fixture(autouse=True)
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry._DRIVERS, "toy", Toy)


class Run:
    """A load that ran to its end, with the log of what it did to its files."""

    def __init__(self, kind: str, folder: Path, seed: int) -> None:
        work = folder / "work"
        work.mkdir()
        self.path = KINDS[kind](work)
        (work / MARKS).touch()
        self.start = content(self.path)
        self.disk = Disk(work)
        self.seed = seed
        log = folder / "log"
        subprocess.run(
            [
                *(sys.executable, "-m", "tests.support.steps"),
                *(str(self.path), str(seed), str(STEPS), str(work / MARKS)),
            ],
            env=recording_environment(work, log),
            stdout=subprocess.DEVNULL,
            cwd=ROOT,
            check=True,
        )
        self.records = list(parse(log))

    def cut(self, count: int, target: Path) -> int:
        """Cut the power `count` times; how often something was not durable by then."""
        pick = random.Random(self.seed)
        at = set(pick.sample(range(len(self.records)), count))
        every = list(steps(self.seed, STEPS, len(self.start)))
        done = pending = 0
        for number, record in enumerate(self.records):
            if record.name == MARKS:
                done += record.kind == Kind.WRITE
            else:
                self.disk.add(record)
            if number in at:
                pending += self.disk.pending > 0
                self.disk.leave(target, lambda n: random_choice(pick, n))
                model = model_after(self.start, every[:done], every[done : done + 1])
                check_after(target / self.path.name, model)
                shutil.rmtree(target)
        return pending


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_flushed_survives_a_power_cut(kind: str, tmp_path: Path) -> None:
    runs = max(1, tier.count(CUTS) // len(KINDS) // PER_RUN)
    pending = 0
    for seed in range(runs + tier.FULL):
        folder = tmp_path / str(seed)
        folder.mkdir()
        pending += Run(kind, folder, seed).cut(PER_RUN, tmp_path / "left")
        shutil.rmtree(folder)
    assert pending > PER_RUN // 4, "hardly a cut came while anything was under way"
    _CUT[kind] = (runs + tier.FULL) * PER_RUN
    tier.evidence("power_cuts", {"cuts": sum(_CUT.values()), "by kind": dict(_CUT)})
