"""`fdstash bench reopen --against`: both daemons get the same, and nothing of it stays behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fdstash.bench.against import Match, MatchSettings
from fdstash.bench.daemons import OURS, Daemon, DaemonError
from fdstash.bench.nbd_load import NbdLoad
from tests.support.command import command, heeding_interrupts, program
from tests.support.need import need_program

PEER = "qemu-storage-daemon"
SMALL = ("--against", PEER, "--runtime", "0.3", "--rounds", "1", "--size", "4M")


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where all temporary files are made; sockets have short paths only."""
    need_program("fio", "fio")
    need_program(PEER, "qemu-system-common")
    with tempfile.TemporaryDirectory(prefix="ag-", dir="/dev/shm") as name:
        monkeypatch.setenv("TMPDIR", name)
        monkeypatch.setattr(tempfile, "tempdir", name)
        yield Path(name)


def test_both_reopen_a_raw_image_under_the_same_load(folder: Path) -> None:
    picture = folder / "match.svg"
    arguments = ("-f", "raw", "--every", "0.005", "--plot", picture, "--dir", folder)
    # A program of its own: matplotlib keeps the files of its fonts open.
    done = program("bench", "reopen", *SMALL, *arguments, "--output", "json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    for name in (OURS, PEER):
        side = found[name]
        assert side["refused"] is None
        assert side["reopens"] > 0
        assert 0 < side["reopen_ns"]["p50"] <= side["reopen_ns"]["max"]
        assert side["round_trip_ns"]["p50"] > 0
        for load in (side["plain"], side["reopening"]):
            assert load["iops"] > 0
            assert load["failed_requests"] == 0
            assert 0 < load["request_ns"]["p50"] <= load["longest_request_ns"]
    assert all(found["ratios"].values())
    assert b"<svg" in picture.read_bytes()
    assert list(folder.iterdir()) == [picture]


def test_a_rate_is_kept_by_both(folder: Path) -> None:
    arguments = ("-f", "raw", "--dir", folder, "--rate-iops", "500", "--output", "json")
    result = command("bench", "reopen", *SMALL, *arguments)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    for name in (OURS, PEER):
        for load in (found[name]["plain"], found[name]["reopening"]):
            assert 100 < load["iops"] < 1000


def test_what_the_peer_refuses_is_told_in_its_words(folder: Path) -> None:
    result = command("bench", "reopen", *SMALL, "--extents", "2", "--dir", folder)
    assert result.exit_code == 0, result.output
    assert "refused to reopen it: Option 'driver'" in result.stdout
    assert "requests a second" in result.stdout
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("present", "said"),
    [
        ((), "fio is not on PATH (Debian: apt-get install fio)"),
        (("fio",), f"{PEER} is not on PATH (Debian: apt-get install qemu-system-common)"),
    ],
)
def test_a_missing_program_is_told_with_its_package(
    folder: Path, monkeypatch: pytest.MonkeyPatch, present: tuple[str, ...], said: str
) -> None:
    programs = folder / "bin"
    programs.mkdir()
    for name in present:
        (programs / name).symlink_to(need_program(name, name))
    monkeypatch.setenv("PATH", str(programs))
    result = command("bench", "reopen", *SMALL)
    assert result.exit_code == 1
    assert said in result.stderr
    assert "Traceback" not in result.stderr
    assert list(folder.iterdir()) == [programs]


def test_an_image_past_the_page_cache_is_reopened_too(folder: Path) -> None:
    """Each daemon keeps one descriptor or more; those that it keeps aside do not count."""
    settings = MatchSettings(
        format="raw", made_bytes=4 << 20, folder=str(folder), cache="none", runtime=0.3, rounds=1
    )
    with Match(settings) as running:
        running.turn()
        running.turn()
        sides = running.result().sides
    assert [side.refused for side in sides.values()] == [None, None]


def test_an_image_that_is_given_is_not_written(folder: Path) -> None:
    image = folder / "disk.raw"
    image.write_bytes(b"x" * (1 << 20))
    result = command("bench", "reopen", *SMALL, "--rw", "randrw", image)
    assert result.exit_code == 1
    assert "only read" in result.stderr


@pytest.mark.parametrize("name", [OURS, PEER])
def test_a_daemon_that_dies_is_told(folder: Path, name: str) -> None:
    settings = MatchSettings(format="raw", made_bytes=4 << 20, folder=str(folder))
    with (
        Match(settings) as running,
        Daemon(name, running._image) as daemon,
        NbdLoad(daemon.nbd, settings, 5, daemon.alive) as load,
    ):
        load.wait_until_begun()
        os.kill(daemon.pid, signal.SIGKILL)
        with pytest.raises(DaemonError, match=f"{name} was killed by signal 9"):
            load.result()
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_nothing_is_left_after_a_signal(folder: Path, number: signal.Signals) -> None:
    words = ("bench", "reopen", "--against", PEER, "--size", "4M", "--dir", folder)
    running = subprocess.Popen(heeding_interrupts(*words), stderr=subprocess.PIPE)
    until = time.monotonic() + 30
    while not list(folder.glob("fdstash-fio-*/started")):
        assert time.monotonic() < until
        time.sleep(0.01)
    running.send_signal(number)
    _, said = running.communicate(timeout=30)
    assert running.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143}[number]
    assert b"Traceback" not in said
    assert list(folder.iterdir()) == []
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            assert os.fsencode(folder) not in process.read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue
