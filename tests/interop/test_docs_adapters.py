"""The examples of docs/adapters.md run as they stand, and print what the page says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.guest_disks import import_flat, make_ext4, partitioned
from tests.support.need import need_package

PAGE = Path(__file__).parents[2] / "docs" / "adapters.md"
EXAMPLE = re.compile(r"<!-- (\w+) -->\n```python\n(.*?)```\n\n```text\n(.*?)```\n", re.DOTALL)
EXAMPLES = {name: (code, output) for name, code, output in EXAMPLE.findall(PAGE.read_text())}
#: What each needs beside fdstash: module, package.
PEERS = {
    "qiling": [("qiling", "qiling")],
    "amitools": [("amitools", "amitools")],
    "disk_file": [],
    "tsk": [("pytsk3", "pytsk3")],
    "dissect": [("dissect.volume", "dissect.volume"), ("dissect.extfs", "dissect.extfs")],
}


def test_every_example_of_the_page_is_run() -> None:
    assert EXAMPLES.keys() == PEERS.keys()
    assert PAGE.read_text().count("```python") == len(EXAMPLES)


@pytest.mark.parametrize("name", PEERS)
def test_an_example_prints_what_the_page_says(name: str, tmp_path: Path) -> None:
    for module, package in PEERS[name]:
        need_package(module, package)
    code, output = EXAMPLES[name]
    if "linux.vmdk" in code:
        system = make_ext4(tmp_path, {"hello.txt": b"hello\n"})
        import_flat(tmp_path / "linux.vmdk", partitioned(system))
    ran = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONWARNINGS": "error"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == output
