"""`fdstash bench reopen`: nothing is lost, and where something is, it says so."""

from __future__ import annotations

import hashlib
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

import fdstash
from fdstash.bench.subject import default_folder
from tests.support.command import command, fdstash_json
from tests.support.need import need_root

FIGURES = {
    "reopens",
    "reopen_ns",
    "requests",
    "failed_requests",
    "wrong_blocks",
    "lost_images",
    "leaked_descriptors",
    "longest_request_ns",
    "in_flight_p999_ns",
    "placebo_p999_ns",
    "refused_on_purpose",
    "made_on_purpose",
}
NOTHING_WRONG = {
    "failed_reopens": 0,
    "failed_requests": 0,
    "wrong_blocks": 0,
    "lost_images": 0,
    "leaked_descriptors": 0,
}


def nothing_wrong(found: Mapping[str, Any]) -> bool:
    return {key: found[key] for key in NOTHING_WRONG} == NOTHING_WRONG


class Snapshot:
    """All that is to stay the same of the files in a folder."""

    def __init__(self, folder: Path) -> None:
        self.files = {}
        for path in sorted(folder.iterdir()):
            status = path.stat()
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            kept = (status.st_ino, status.st_mode, status.st_nlink, status.st_size, digest)
            self.files[path.name] = (*kept, status.st_blocks)
        self.times = {
            path.name: (path.stat().st_mtime_ns, path.stat().st_ctime_ns)
            for path in folder.iterdir()
        }


@pytest.fixture
def folder() -> Iterator[Path]:
    """Where images are made, whose every block is written: not on a slow disk."""
    with tempfile.TemporaryDirectory(prefix="fdstash-test-", dir=default_folder()) as name:
        yield Path(name)


@pytest.fixture
def vmdk(tmp_path: Path) -> Path:
    """Six extents: full ones, holes, one that must not be written, in a folder of their own."""
    folder = tmp_path / "precious"
    folder.mkdir()
    path = folder / "disk.vmdk"
    fdstash.create(path, "vmdk", 6 << 20, subformat="twoGbMaxExtentFlat", extent_size=1 << 20)
    with fdstash.open(path, "r+") as image:
        rng = random.Random(1)
        image.pwrite(rng.randbytes((3 << 20) + 777), 0)
        image.pwrite(rng.randbytes(1 << 20), 5 << 20)
    text = path.read_text()
    path.write_text(text.replace('RW 2048 FLAT "disk-f002', 'RDONLY 2048 FLAT "disk-f002'))
    return path


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    folder = tmp_path / "precious"
    folder.mkdir()
    path = folder / "disk.raw"
    path.write_bytes(random.Random(2).randbytes((2 << 20) + 100))
    return path


@pytest.mark.threads
@pytest.mark.parametrize("depth", ["1", "8"])
def test_a_run_loses_nothing_and_the_naive_way_does(folder: Path, depth: str) -> None:
    words = ("--reopens", "50", "--extents", "8", "--iodepth", depth, "--dir", folder)
    found = fdstash_json("bench", "reopen", *words)
    assert found.keys() >= FIGURES
    assert nothing_wrong(found), found["messages"]
    assert found["clean"] is True
    assert found["reopens"] == 50
    assert 0 < found["reopen_ns"]["p50"] <= found["reopen_ns"]["p99"] <= found["reopen_ns"]["max"]
    assert found["requests"] > 1000
    assert found["longest_request_ns"] > 0
    assert found["made_on_purpose"] == found["refused_on_purpose"] >= 11
    assert list(folder.iterdir()) == []

    naive = found["naive"]
    assert naive.keys() >= FIGURES
    assert naive["lost_images"] >= 7
    assert naive["failed_requests"] > 0
    assert naive["leaked_descriptors"] == 0


def test_failures_on_purpose_are_real_ones(folder: Path) -> None:
    found = fdstash_json(
        "bench", "reopen", "--reopens", "5", "--extents", "4", "--no-naive", "--dir", folder
    )
    refusals = found["refusals"]
    permission = [label for label in refusals if label.startswith("permission taken away")]
    assert len(permission) == 1
    errnos = {label: entry["errno"] for label, entry in refusals.items()}
    assert errnos == {
        "an extent moved away": ["ENOENT"],
        "another file in an extent's place": ["ESTALE"],
        "a directory in an extent's place": ["EISDIR"],
        "a smaller image at the new path": ["EINVAL"],
        "no image at the new path": ["ENOENT"],
        "a directory at the new path": ["EISDIR"],
        "descriptor limit reached half-way": ["EMFILE"],
        "descriptor limit below what is open": ["EMFILE"],
        "another file's descriptor in the stash": ["ESTALE"],
        "the prepare callable raises": ["ECANCELED"],
        permission[0]: ["EACCES"],
    }
    assert found["naive"] is None


def test_permission_is_also_taken_away_from_who_is_not_root(folder: Path) -> None:
    need_root("becoming somebody else")
    folder.chmod(0o777)
    code = (
        "import os, sys\n"
        "from fdstash.bench.reopen import Settings, run\n"
        "os.setgid(65534); os.setuid(65534)\n"
        f"found = run(Settings(reopens=20, extents=4, naive=False, folder={str(folder)!r}))\n"
        "label = 'permission taken away from an extent'\n"
        "assert found.figures.refusals[label].errnos == {'EACCES'}, found\n"
        "assert found.clean, found\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr


def test_a_table_shows_both_ways(folder: Path) -> None:
    result = command("bench", "reopen", "--reopens", "10", "--extents", "3", "--dir", folder)
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    for words in ("latency p99", "images lost", "descriptors leaked", "close, then open", "lost"):
        assert words in result.stdout
    assert "\x1b" not in result.stdout


def test_an_image_that_is_given_is_only_read(vmdk: Path) -> None:
    before = Snapshot(vmdk.parent)
    found = fdstash_json("bench", "reopen", "--reopens", "40", vmdk)
    after = Snapshot(vmdk.parent)
    assert after.files == before.files
    assert after.times == before.times
    assert nothing_wrong(found), found["messages"]
    assert found["image"]["writes"] is False
    assert not any("read-write" in kind for kind in found["kinds"])
    assert found["naive"]["lost_images"] > 0


def test_a_given_image_that_is_written_keeps_every_byte(vmdk: Path) -> None:
    before = Snapshot(vmdk.parent)
    found = fdstash_json("bench", "reopen", "--write", "--reopens", "60", vmdk)
    after = Snapshot(vmdk.parent)
    assert after.files == before.files
    assert after.times != before.times  # it was written
    assert nothing_wrong(found), found["messages"]
    assert found["image"]["writes"] is True
    assert any("read-write" in kind for kind in found["kinds"])


def test_a_raw_image_is_written_only_when_its_format_is_named(raw: Path) -> None:
    before = Snapshot(raw.parent)
    refused = command("bench", "reopen", "--write", "--reopens", "5", raw)
    assert refused.exit_code == 1
    assert "raw" in refused.stderr
    found = fdstash_json("bench", "reopen", "--write", "-f", "raw", "--reopens", "40", raw)
    assert nothing_wrong(found), found["messages"]
    assert Snapshot(raw.parent).files == before.files


@pytest.mark.parametrize("format_options", [(), ("--write",)])
def test_a_given_image_survives_kill_at_any_moment(
    vmdk: Path, format_options: tuple[str, ...]
) -> None:
    before = Snapshot(vmdk.parent)
    arguments = ["bench", "reopen", "--reopens", "100000", *format_options, "-p", vmdk]
    rng = random.Random(4)
    for _ in range(3):
        with subprocess.Popen(
            [sys.executable, "-m", "fdstash.cli.main", *arguments],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        ) as running:
            assert running.stderr is not None
            while b"/" not in running.stderr.read(1):  # the progress bar: it is under way
                pass
            time.sleep(rng.uniform(0.05, 0.4))
            running.send_signal(signal.SIGKILL)
        assert Snapshot(vmdk.parent).files == before.files


def test_an_image_in_use_is_left_alone(vmdk: Path) -> None:
    with fdstash.open(vmdk, "r+"):
        result = command("bench", "reopen", vmdk)
    assert result.exit_code == 1
    assert "in use" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("--write",), 2),
        (("--bs", "0"), 1),
        (("--numjobs", "0"), 1),
        (("--iodepth", "0"), 1),
        (("--fsync", "-1"), 1),
        (("--kinds", "cache=x"), 2),
        (("--kinds", "nonsense=1"), 1),
        (("--kinds", "backing=1"), 1),
        (("--kinds", "cache=0"), 1),
        (("--rw", "randrw", "/no/such/image"), 2),
        (("--cache", "none at all"), 2),
        (("/no/such/image",), 1),
    ],
)
def test_what_cannot_be_is_told(arguments: tuple[str, ...], code: int) -> None:
    result = command("bench", "reopen", *arguments)
    assert result.exit_code == code
    assert result.stderr.startswith("fdstash: ")
    assert "Traceback" not in result.output


def test_an_empty_image_is_told(tmp_path: Path) -> None:
    path = tmp_path / "empty"
    path.touch()
    result = command("bench", "reopen", path)
    assert result.exit_code == 1
    assert "empty" in result.stderr


@pytest.mark.parametrize("bs", ["512", "3000", "256k"])
def test_blocks_of_any_size_will_do(raw: Path, bs: str) -> None:
    found = fdstash_json("bench", "reopen", "--reopens", "10", "--no-naive", "--bs", bs, raw)
    assert nothing_wrong(found), found["messages"]


def test_kinds_and_failures_are_as_asked_for(folder: Path) -> None:
    found = fdstash_json(
        *("bench", "reopen", "--reopens", "30", "--extents", "2", "--no-naive", "--dir", folder),
        *("--kinds", "cache=2,stash", "--no-failures", "--every", "0.001", "--fsync", "3"),
        *("--rw", "randwrite", "--iodepth", "1", "--numjobs", "2", "--bs", "8k", "--size", "1M"),
    )
    assert nothing_wrong(found), found["messages"]
    assert set(found["kinds"]) == {"cache mode", "stash"}
    assert sum(each["reopens"] for each in found["kinds"].values()) == found["reopens"] == 30
    assert found["made_on_purpose"] == 0
    assert found["image"]["size"] == 1 << 20
    assert min(found["in_flight_requests"], found["placebo_requests"]) > 0


def test_a_chain_gets_its_backing_image_again(vmdk: Path) -> None:
    child = vmdk.parent / "child.vmdk"
    sub = "monolithicSparse"
    fdstash.create(child, "vmdk", 6 << 20, subformat=sub, backing_file=vmdk.name)
    before = Snapshot(vmdk.parent)
    arguments = ("--reopens", "20", "--kinds", "backing,cache", "--rw", "randread")
    found = fdstash_json("bench", "reopen", *arguments, child)
    assert nothing_wrong(found), found["messages"]
    assert found["kinds"]["backing image"]["reopens"] > 0
    assert "backing image" not in found["naive"]["kinds"]
    assert Snapshot(vmdk.parent).files == before.files


def test_a_small_image_has_a_smaller_one_that_is_refused(folder: Path) -> None:
    arguments = ("--reopens", "1", "--extents", "1", "--size", "64k", "--no-naive")
    found = fdstash_json("bench", "reopen", *arguments, "--dir", folder)
    assert nothing_wrong(found), found["messages"]
    assert found["refusals"]["a smaller image at the new path"]["errno"] == ["EINVAL"]


def test_the_time_ends_it_as_well(folder: Path) -> None:
    arguments = ("--reopens", "1000000", "--runtime", "0.3", "--extents", "2", "--no-naive")
    found = fdstash_json("bench", "reopen", *arguments, "--no-verify", "--dir", folder)
    assert 0 < found["reopens"] < 1000000
    assert nothing_wrong(found), found["messages"]


def test_latencies_and_a_picture_as_files(folder: Path) -> None:
    log, picture = folder / "latency.hlog", folder / "latency.svg"
    arguments = ("--reopens", "10", "--extents", "2", "--no-naive", "--no-failures", "--fsync", "9")
    found = fdstash_json(
        "bench", "reopen", *arguments, "--hdr", log, "--plot", picture, "--dir", folder
    )
    assert [tag in log.read_text() for tag in ("Tag=read,", "Tag=write,", "Tag=flush,")] == [
        True
    ] * 3
    assert picture.read_text().count("stroke: #808080") >= found["reopens"] == 10


def test_the_same_seed_makes_the_same_reopens(folder: Path) -> None:
    def kinds(seed: str) -> dict[str, int]:
        arguments = ("--reopens", "40", "--extents", "2", "--no-naive", "--dir", folder)
        found = fdstash_json("bench", "reopen", *arguments, "--seed", seed)
        return {kind: entry["reopens"] for kind, entry in found["kinds"].items()}

    assert kinds("7") == kinds("7") != kinds("8")
