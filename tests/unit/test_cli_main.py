"""How the command line starts, fails and ends."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import fdstash
from tests.support.command import command, heeding_interrupts, program


@pytest.mark.parametrize("absent", ["click", "rich"])
def test_missing_extras_are_named_with_the_cure(absent: str) -> None:
    code = (
        "import importlib.util as u, sys\n"
        "find = u.find_spec\n"
        f"u.find_spec = lambda name, *a: None if name == {absent!r} else find(name, *a)\n"
        "from fdstash.cli.main import main\n"
        "main()\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stdout) == (2, "")
    assert absent in result.stderr
    assert "pip install 'fdstash[cli]'" in result.stderr
    assert "Traceback" not in result.stderr


def test_the_version_is_told() -> None:
    result = program("--version")
    assert result.returncode == 0
    assert result.stdout == f"fdstash, version {fdstash.__version__}\n"


@pytest.mark.parametrize("arguments", [(), ("bench",)])
def test_no_command_shows_help_and_is_wrong_usage(arguments: tuple[str, ...]) -> None:
    result = command(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("Usage: ")


@pytest.mark.parametrize(
    "arguments", [("bogus",), ("info",), ("info", "--bogus", "x"), ("map", "a", "b")]
)
def test_wrong_usage_is_told_in_our_name(arguments: tuple[str, ...]) -> None:
    result = command(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("fdstash: ")
    assert "--help" in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [(), ("info",), ("map",), ("create",), ("doctor",), ("bench",), ("bench", "reopen")],
)
def test_every_command_explains_itself(arguments: tuple[str, ...]) -> None:
    result = command(*arguments, "--help")
    assert result.exit_code == 0
    assert result.stdout.startswith("Usage: ")
    assert command(*arguments, "-h").stdout == result.stdout


def test_the_limit_on_descriptors_is_raised_for_images_of_many_files(tmp_path: Path) -> None:
    path = tmp_path / "disk.vmdk"
    options = {"subformat": "twoGbMaxExtentFlat", "extent_size": 4096}
    fdstash.create(path, "vmdk", 100 * 4096, **options)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    result = program(
        "info", path, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
    )
    assert result.returncode == 0, result.stderr


def test_a_reader_that_goes_away_is_no_error_of_ours(tmp_path: Path) -> None:
    path = tmp_path / "disk.vmdk"
    options = {"subformat": "twoGbMaxExtentFlat", "extent_size": 4096}
    fdstash.create(path, "vmdk", 2000 * 4096, **options)
    reading, writing = os.pipe()
    os.close(reading)
    try:
        result = subprocess.run(
            [sys.executable, "-m", "fdstash.cli.main", "map", "--output", "json", path],
            stdout=writing,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    finally:
        os.close(writing)
    assert "Traceback" not in result.stderr
    assert "fdstash:" not in result.stderr


def test_an_interrupt_ends_a_run_and_removes_what_it_made(tmp_path: Path) -> None:
    with subprocess.Popen(
        heeding_interrupts("bench", "reopen", "--dir", tmp_path, "--reopens", "100000", "-p"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as running:
        assert running.stderr is not None
        while "/" not in running.stderr.read(1):  # the progress bar: it is under way
            pass
        assert len(list(tmp_path.iterdir())) == 1
        running.send_signal(signal.SIGINT)
        _, told = running.communicate(timeout=60)
    assert running.returncode == 130
    assert "fdstash: interrupted" in told
    assert "Traceback" not in told
    assert list(tmp_path.iterdir()) == []
