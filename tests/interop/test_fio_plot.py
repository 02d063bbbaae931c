"""fio-plot draws what `fdstash bench io` prints, as if fio had."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.command import fdstash_json


@pytest.mark.parametrize("kind", ["-l", "-H"])
def test_fio_plot_draws_it(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "runs"
    folder.mkdir()
    found = fdstash_json("bench", "io", "--io-size", "1M", "--size", "1M")
    (folder / "randread-32-1.json").write_text(json.dumps(found))
    picture = tmp_path / "picture.png"
    words = ["-T", "t", "--source", "s", "-r", "randread", "-n", "1", "-d", "32"]
    tool = Path(sys.executable).with_name("fio-plot")
    done = subprocess.run(
        [tool, "-i", folder, kind, *words, "-o", picture],
        capture_output=True,
        text=True,
        check=False,
        env={"HOME": str(tmp_path), "MPLCONFIGDIR": str(tmp_path), "PATH": "/usr/bin:/bin"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert picture.read_bytes().startswith(b"\x89PNG")
