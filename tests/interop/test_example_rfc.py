"""The RFC's own form of a reopen keeps an image of many extents, whatever fails the new open."""

from __future__ import annotations

import importlib.util
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType

import pytest

import fdstash
from fdstash import Image
from tests.support.kernel import open_descriptors
from tests.support.seen import assert_as_kernel_says, locked_bytes

EXAMPLE = Path(__file__).parents[2] / "examples" / "rfc_reopen.py"
EXTENTS = 120
EXTENT = 1 << 16
SIZE = EXTENTS * EXTENT


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("rfc_reopen", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """An image of many extents, each of which says which one it is."""
    made = tmp_path / "disk.vmdk"
    fdstash.create(made, "vmdk", SIZE, subformat="twoGbMaxExtentFlat", extent_size=EXTENT)
    with fdstash.open(made, "r+") as image:
        for number in range(EXTENTS):
            image.pwrite(mark(number), number * EXTENT)
    return made


def mark(number: int) -> bytes:
    return f"extent {number:04}".encode()


def assert_whole(image: Image) -> None:
    assert len(image.files) == EXTENTS + 1
    for number in range(EXTENTS):
        assert image.pread(11, number * EXTENT) == mark(number)
    assert_as_kernel_says(image)


def extent(path: Path, number: int) -> Path:
    return path.with_name(f"disk-f{number:03}.vmdk")


def no_such_image(path: Path, held: ExitStack) -> Path:
    return path.with_name("none.vmdk")


def an_extent_is_gone(path: Path, held: ExitStack) -> Path:
    extent(path, EXTENTS).unlink()
    return path


def everything_is_gone(path: Path, held: ExitStack) -> Path:
    shutil.rmtree(path.parent)
    return path


def an_extent_is_a_fifo(path: Path, held: ExitStack) -> Path:
    extent(path, 7).unlink()
    os.mkfifo(extent(path, 7))
    return path


def an_extent_is_too_short(path: Path, held: ExitStack) -> Path:
    other = path.parent / "copy"
    shutil.copytree(path.parent, other)
    os.truncate(extent(other / path.name, 50), EXTENT - 1)
    return other / path.name


def the_new_image_is_in_use(path: Path, held: ExitStack) -> Path:
    other = path.parent / "copy"
    shutil.copytree(path.parent, other)
    held.enter_context(fdstash.open(extent(other / path.name, 99), format="raw"))
    return other / path.name


FAILURES = [
    no_such_image,
    an_extent_is_gone,
    everything_is_gone,
    an_extent_is_a_fifo,
    an_extent_is_too_short,
    the_new_image_is_in_use,
]


@pytest.mark.timeout(60)
@pytest.mark.parametrize("fail", FAILURES)
@pytest.mark.parametrize("before", [("r+", "writeback"), ("r", "none")])
def test_an_image_whose_new_open_fails_goes_on_from_its_old_descriptors(
    example: ModuleType,
    path: Path,
    capsys: pytest.CaptureFixture[str],
    fail: Callable[[Path, ExitStack], Path],
    before: tuple[str, str],
) -> None:
    mode, cache = before
    image = fdstash.open(path, mode, cache=cache)
    descriptors = len(open_descriptors())
    identities = [(file.device, file.inode) for file in image.files]
    with ExitStack() as held:
        again = example.reopen(image, str(fail(path, held)), "r+", "directsync")
    assert image.closed
    assert "going on with the old descriptors" in capsys.readouterr().out
    assert (again.mode, again.cache, again.name) == (mode, cache, str(path))
    assert [(file.device, file.inode) for file in again.files] == identities
    assert len(open_descriptors()) == descriptors
    assert_whole(again)
    if mode == "r+":
        again.pwrite(b"goes on", SIZE - 100)
    again.reopen(mode="r", cache="writeback")
    again.reopen(mode="r+")
    again.pwrite(b"and on", 12)
    assert again.pread(6, 12) == b"and on"
    again.close()


def test_an_image_whose_new_open_meets_the_limit_on_descriptors_goes_on(
    example: ModuleType, path: Path, tmp_path: Path
) -> None:
    # The old image is closed by then, so the new one has to be the larger.
    larger = tmp_path / "larger.vmdk"
    fdstash.create(larger, "vmdk", 2 * SIZE, subformat="twoGbMaxExtentFlat", extent_size=EXTENT)
    image = fdstash.open(path, "r+")
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    # The image, the stash beside it, and little more.
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(open_descriptors()) + EXTENTS + 20, limits[1]))
    try:
        again = example.reopen(image, str(larger), "r+", "writeback")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert again.name == str(path)
    assert_whole(again)
    again.close()
    assert locked_bytes(path) == []


def test_an_image_whose_new_open_succeeds_is_the_new_one(
    example: ModuleType, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = fdstash.open(path, "r+")
    descriptors = len(open_descriptors())
    again = example.reopen(image, str(path), "r", "none")
    assert capsys.readouterr().out == ""
    assert (image.closed, again.mode, again.cache) == (True, "r", "none")
    assert len(open_descriptors()) == descriptors
    assert_whole(again)
    again.close()


def test_the_example_runs_as_it_stands() -> None:
    done = subprocess.run(
        [sys.executable, EXAMPLE], check=True, capture_output=True, text=True, timeout=60
    )
    lines = done.stdout.splitlines()
    assert "No such file or directory" in lines[0]
    assert lines[1] == "going on with the old descriptors"
    assert lines[2].endswith("vmdk r+ cache=writeback> b'still here'")
    assert lines[3].endswith("vmdk r cache=none> b'still here'")
    assert len(lines) == 4
