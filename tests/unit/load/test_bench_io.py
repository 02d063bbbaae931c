"""`fdstash bench io`: fio's words, fio's JSON, and an image that is written only where asked."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hdrh.histogram import HdrHistogram
from hdrh.log import HistogramLogReader

import fdstash
from fdstash.bench.io import PATTERNS
from fdstash.bench.latency import HIGHEST
from fdstash.queue import ENGINES
from tests.support.command import command, fdstash_json
from tests.support.disks import make_raw
from tests.support.need import need_program

SIZE = 1 << 20
SHORT = ("--io-size", "1M", "--size", "1M")


def job_of(found: dict[str, Any]) -> dict[str, Any]:
    (job,) = found["jobs"]
    assert found["fdstash"]["failed_requests"] == found["fdstash"]["wrong_blocks"] == 0
    return dict(job)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("rw", PATTERNS)
def test_each_pattern(rw: str, engine: str) -> None:
    words = ["--stride", "64k"] if rw == "strided" else []
    job = job_of(
        fdstash_json(
            "bench",
            "io",
            "--rw",
            rw,
            "--engine",
            engine,
            "--verify",
            "--numjobs",
            "2",
            *words,
            *SHORT,
        )
    )
    requests = {kind: job[kind]["total_ios"] for kind in ("read", "write")}
    assert sum(requests.values()) == SIZE // 4096
    assert (requests["read"] > 0) == (rw not in ("write", "randwrite"))
    assert (requests["write"] > 0) == (rw in ("write", "randwrite", "rw", "randrw"))


@pytest.mark.parametrize("rw", ["randread", "read"])
def test_a_given_image_is_not_written_to(tmp_path: Path, rw: str) -> None:
    path = make_raw(tmp_path, SIZE)
    path.chmod(0o400)
    before = path.read_bytes()
    fdstash_json("bench", "io", "--rw", rw, "--io-size", "1M", "-f", "raw", path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("subformat", ["twoGbMaxExtentFlat", "monolithicSparse"])
def test_reopens_meanwhile(tmp_path: Path, subformat: str) -> None:
    path = tmp_path / "disk.vmdk"
    fdstash.create(path, "vmdk", SIZE, subformat=subformat)
    words = ("--reopen", "none,writeback,unsafe", "--every", "0.002", "--runtime", "1")
    found = fdstash_json("bench", "io", "--rw", "randrw", "--verify", *words, path)
    job_of(found)
    ours = found["fdstash"]
    assert ours["reopens"] == len(ours["reopen_ns"]) > 5
    assert ours["failed_reopens"] == 0
    assert min(ours["in_flight"], ours["placebo"]) > 0
    assert min(ours["in_flight_p999_ns"], ours["placebo_p999_ns"]) > 0
    assert fdstash.check(path).clean


def test_wrong_blocks_are_an_exit_code(tmp_path: Path) -> None:
    path = make_raw(tmp_path, SIZE)
    found = fdstash_json("bench", "io", "--verify", "-f", "raw", "--io-size", "1M", path, code=1)
    assert found["fdstash"]["wrong_blocks"] == SIZE // 4096
    shown = command("bench", "io", "--verify", "-f", "raw", "--io-size", "1M", path)
    assert "did not hold what was written" in shown.output


def test_a_reopen_that_fails_is_an_exit_code(tmp_path: Path) -> None:
    path = make_raw(tmp_path, SIZE)
    (tmp_path / "link").symlink_to(path)
    shown = command(
        "bench", "io", "-f", "raw", "--runtime", "0.2", "--reopen", "no-such-mode", path
    )
    assert shown.exit_code == 1
    assert "cache is one of" in shown.output


@pytest.mark.parametrize(
    "words",
    [
        ("--bs", "0"),
        ("--bs", "1000", "--verify"),
        ("--iodepth", "0"),
        ("--iodepth", "5000"),
        ("--rw", "strided"),
        ("--stride", "8k"),
        ("--rwmixread", "101"),
        ("--runtime", "-1"),
        ("--size", "1k"),
    ],
)
def test_options_that_cannot_be(words: tuple[str, ...]) -> None:
    shown = command("bench", "io", "--io-size", "64k", "--size", "64k", *words)
    assert shown.exit_code in (1, 2)
    assert shown.output.startswith("fdstash: ")


def test_a_table_for_people() -> None:
    shown = command("bench", "io", "--rw", "randrw", "--verify", *SHORT)
    assert shown.exit_code == 0, shown.output
    for word in ("IOPS", "p99.9", "read", "write", "wrong blocks: 0"):
        assert word in shown.output


def test_latency_as_a_log(tmp_path: Path) -> None:
    log = tmp_path / "latency.hlog"
    found = fdstash_json("bench", "io", "--rw", "randrw", "--hdr", log, *SHORT)
    reader = HistogramLogReader(str(log), HdrHistogram(1, HIGHEST, 3))
    for kind in ("read", "write"):
        read = reader.get_next_interval_histogram()
        told = job_of(found)[kind]
        assert read.get_total_count() == told["total_ios"]
        wanted = told["clat_ns"]["percentile"]["99.000000"]
        assert read.get_value_at_percentile(99) == pytest.approx(wanted, rel=1e-3)
    reader.close()


def keys(found: Any, at: str = "") -> set[str]:
    """Every path to a value, but for what depends on the values themselves."""
    if not isinstance(found, dict):
        return {at}
    return {key for name, value in found.items() for key in keys(value, f"{at}/{name}")}


def test_fio_has_every_field_that_we_have(tmp_path: Path) -> None:
    path = make_raw(tmp_path, SIZE)
    words = ["--name=x", f"--filename={path}", "--rw=randrw", "--bs=4k", "--ioengine=psync"]
    done = subprocess.run(
        [need_program("fio", "fio"), *words, "--output-format=json", "--group_reporting"],
        capture_output=True,
        text=True,
        check=True,
    )
    fio = json.loads(done.stdout)
    ours = fdstash_json("bench", "io", "--rw", "randrw", "--io-size", "1M", "-f", "raw", path)
    wanted = keys(fio["jobs"][0])
    ignored = ("/job options", "/iodepth_level")
    found = {key for key in keys(ours["jobs"][0]) if not key.startswith(ignored)}
    assert found - wanted == set()
    # fio has global options where a job file does.
    assert set(ours) - {"fdstash"} <= {*fio, "global options"}


def test_flushes_are_counted_as_fio_counts_them() -> None:
    words = ("--rw", "randwrite", "--fsync", "16")
    found = fdstash_json("bench", "io", *words, *SHORT)
    job = job_of(found)
    assert job["write"]["total_ios"] == SIZE // 4096
    assert job["sync"]["total_ios"] == job["sync"]["lat_ns"]["N"] == SIZE // 4096 // 16 - 1
    assert "flush" in command("bench", "io", *words, *SHORT).output


def test_a_picture(tmp_path: Path) -> None:
    picture = tmp_path / "latency.svg"
    words = ("--runtime", "0.3", "--size", "1M", "--reopen", "none,writeback")
    found = fdstash_json("bench", "io", *words, "--plot", picture)
    assert found["fdstash"]["reopens"] > 0
    text = picture.read_text()
    assert "<svg" in text
    # A line of its own for each reopen.
    assert text.count("stroke: #808080") >= found["fdstash"]["reopens"]


def test_a_picture_of_no_known_kind(tmp_path: Path) -> None:
    shown = command("bench", "io", *SHORT, "--plot", tmp_path / "latency.nothing")
    assert shown.exit_code == 1
    assert "nothing" in shown.output
