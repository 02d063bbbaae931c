"""`fdstash doctor`: what it says is what a program finds."""

from __future__ import annotations

import os
import platform
import resource
from pathlib import Path

import pytest

import fdstash
from fdstash import host
from tests.support.command import command, fdstash_json


def test_all_that_was_looked_at_is_told(tmp_path: Path) -> None:
    found = fdstash_json("doctor", tmp_path)
    assert found.keys() == {
        "path",
        "versions",
        "python",
        "io_uring",
        "descriptors",
        "/proc/self/fd",
        "O_DIRECT",
        "image locks",
        "openat2",
    }
    assert found["versions"]["kernel"] == platform.release()
    assert found["versions"]["fdstash"] == fdstash.__version__
    assert found["python"]["version"] == platform.python_version()
    assert {entry["state"] for name, entry in found.items() if name != "path"} <= {"ok", "note"}


def test_what_it_says_of_o_direct_is_what_images_get(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(b"\1" * 65536)
    found = fdstash_json("doctor", path)["O_DIRECT"]
    if not found["usable"]:
        pytest.skip("no O_DIRECT here")
    with fdstash.open(path, "r", format="raw", cache="none") as image:
        assert found["offset-alignment"] == image.limits.offset_alignment
        assert found["memory-alignment"] == image.limits.memory_alignment


def test_the_files_that_the_limit_allows_are_counted(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    found = fdstash_json("doctor", tmp_path)["descriptors"]
    assert (found["soft"], found["hard"]) == (soft, hard)
    files = found["files-in-a-reopen"]
    assert 3 * files + 1 <= soft - found["in-use"] < 3 * (files + 1) + 1
    files = found["files-in-a-change-of-path"]
    assert 4 * files <= soft - found["in-use"] < 4 * (files + 1)


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    assert command("doctor", tmp_path).exit_code == 0
    assert list(tmp_path.iterdir()) == []


def test_people_get_a_table(tmp_path: Path) -> None:
    result = command("doctor", tmp_path)
    for word in ("io_uring", "O_DIRECT", "image locks", "descriptors", "/proc/self/fd", "kernel"):
        assert word in result.stdout


def test_a_folder_without_files_of_ours_is_told_and_the_rest_is_shown() -> None:
    found = fdstash_json("doctor", "/proc")
    assert found["folder"]["state"] == "note"
    assert found["/proc/self/fd"]["usable"] is True
    assert "O_DIRECT" not in found


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    result = command("doctor", tmp_path / "none" / "disk")
    assert result.exit_code == 1
    assert result.stderr.startswith("fdstash: ")
    assert "No such file" in result.stderr


def test_a_kernel_that_tells_no_alignment_says_none() -> None:
    reading, writing = os.pipe()
    try:
        assert host.direct_alignment(reading) in (None, (0, 0))
        assert host.direct_alignment(1 << 20) is None
    finally:
        os.close(reading)
        os.close(writing)


def test_io_uring_is_one_of_three() -> None:
    state, error, *_ = host.uring()
    assert state in ("usable", "refused", "not built")
    assert (error != 0) == (state == "refused")
