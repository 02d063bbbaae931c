"""Chains that come back to themselves, have no end, or ask for too much."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

import fdstash
from fdstash import FormatError, graph
from fdstash.graph import MAX_DEPTH, MAX_SEGMENTS
from tests.support.bounded import opened
from tests.support.effort import seconds_here
from tests.support.grain_files import descriptor, hosted
from tests.support.kernel import open_descriptors

pytestmark = [pytest.mark.usefixtures("no_descriptor_leaks")]

CID = 0xA
LINKS = {"plain": None, "symlink": os.symlink, "hard link": os.link}


def write(path: Path, hint: str | None, *lines: str) -> None:
    """All have one CID, so that it does not tell them apart."""
    parent = {"hint": hint, "parent_cid": CID} if hint is not None else {}
    path.write_text(descriptor(*(lines or ("RW 8 ZERO",)), cid=CID, **parent))  # type: ignore[arg-type]


def refusal(path: Path, mode: str = "r") -> FormatError:
    before = open_descriptors()
    start = time.process_time()
    with pytest.raises(FormatError) as caught:
        fdstash.open(path, mode)
    assert time.process_time() - start < seconds_here(5)
    assert open_descriptors() == before
    return caught.value


@pytest.mark.parametrize("by", LINKS)
@pytest.mark.parametrize("length", [1, 2, 3, 10])
def test_a_chain_that_comes_back_to_itself_is_refused(tmp_path: Path, length: int, by: str) -> None:
    for number in range(length):
        write(tmp_path / f"{number}.vmdk", f"{number + 1}.vmdk")
    link = LINKS[by]
    if link is None:
        write(tmp_path / f"{length - 1}.vmdk", "0.vmdk")
    elif by == "symlink":
        (tmp_path / f"{length}.vmdk").symlink_to("0.vmdk")
    else:
        link(tmp_path / "0.vmdk", tmp_path / f"{length}.vmdk")
    error = refusal(tmp_path / "0.vmdk")
    assert error.field == "backing file"
    assert "comes back" in str(error)


def test_a_cycle_below_the_image_is_refused(tmp_path: Path) -> None:
    for name, hint in (("top", "a.vmdk"), ("a", "b.vmdk"), ("b", "a.vmdk")):
        write(tmp_path / f"{name}.vmdk", hint)
    error = refusal(tmp_path / "top.vmdk")
    assert error.file == str(tmp_path / "b.vmdk")


@pytest.mark.parametrize("mode", ["r", "r+"])
@pytest.mark.parametrize("hint", ["extent.bin", "link.bin"])
def test_a_parent_that_is_an_extent_of_the_child_is_refused(
    tmp_path: Path, hint: str, mode: str
) -> None:
    text = descriptor('RW 80 SPARSE "extent.bin"', cid=CID)
    (tmp_path / "extent.bin").write_bytes(hosted(10, {}, text=text))
    (tmp_path / "link.bin").symlink_to("extent.bin")
    write(tmp_path / "disk.vmdk", hint, 'RW 80 SPARSE "extent.bin"')
    assert refusal(tmp_path / "disk.vmdk", mode).field == "backing file"


@pytest.mark.parametrize("mode", ["r", "r+"])
@pytest.mark.parametrize("name", ["child.bin", "child.vmdk"])
def test_a_parent_with_a_file_of_the_child_as_its_extent_is_refused(
    tmp_path: Path, name: str, mode: str
) -> None:
    """Else a write to the child would change what it reads from the parent."""
    (tmp_path / "child.bin").write_bytes(bytes(8192))
    write(tmp_path / "child.vmdk", "parent.vmdk", 'RW 8 FLAT "child.bin" 0', "RW 8 ZERO")
    with (tmp_path / "child.vmdk").open("a") as text:
        text.write("# as long as a sector\n" * 30)
    write(tmp_path / "parent.vmdk", None, f'RDONLY 1 FLAT "{name}" 0')
    error = refusal(tmp_path / "child.vmdk", mode)
    assert error.field == "backing file"
    assert str(tmp_path / name) in str(error)


def test_two_images_of_a_chain_with_one_extent_are_refused(tmp_path: Path) -> None:
    (tmp_path / "shared.bin").write_bytes(bytes(4096))
    line = 'RDONLY 8 FLAT "shared.bin" 0'
    write(tmp_path / "a.vmdk", "b.vmdk")
    write(tmp_path / "b.vmdk", "c.vmdk", line)
    write(tmp_path / "c.vmdk", None, line)
    assert refusal(tmp_path / "a.vmdk").file == str(tmp_path / "c.vmdk")


@pytest.mark.parametrize("length", [MAX_DEPTH - 1, MAX_DEPTH])
def test_as_many_images_as_are_allowed_are_opened(tmp_path: Path, length: int) -> None:
    for number in range(length):
        last = number == length - 1
        write(tmp_path / f"{number}.vmdk", None if last else f"{number + 1}.vmdk")
    (tmp_path / "data").write_bytes(b"at the bottom".ljust(4096))
    write(tmp_path / f"{length - 1}.vmdk", None, 'RW 8 FLAT "data" 0')
    for number in range(length - 1):
        (tmp_path / f"{number}.bin").write_bytes(hosted(1, {}))
        line = f'RW 8 SPARSE "{number}.bin"'
        write(tmp_path / f"{number}.vmdk", f"{number + 1}.vmdk", line)
    fdstash.raise_nofile(4096)
    start = time.process_time()
    with fdstash.open(tmp_path / "0.vmdk", "r+", lock=False) as image:
        assert time.process_time() - start < seconds_here(5)
        assert len(image.files) == 2 * length
        assert image.pread(13, 0) == b"at the bottom"
        assert [extent.depth for extent in image.extents()] == [length - 1]
        image.reopen(mode="r", cache="none")
        assert image.pread(13, 0) == b"at the bottom"
        backing, depth = image.backing, 0
        while backing is not None:
            backing, depth = backing.backing, depth + 1
        assert depth == length - 1


def test_one_image_more_is_refused(tmp_path: Path) -> None:
    for number in range(MAX_DEPTH + 1):
        write(tmp_path / f"{number}.vmdk", None if number == MAX_DEPTH else f"{number + 1}.vmdk")
    assert f"more than {MAX_DEPTH} images" in str(refusal(tmp_path / "0.vmdk"))
    with fdstash.open(tmp_path / "1.vmdk", lock=False) as image:
        assert image.pread(4096, 0) == bytes(4096)


@pytest.mark.slow
def test_a_chain_of_images_that_are_each_as_large_as_can_be_is_refused(tmp_path: Path) -> None:
    lines = ["RDONLY 1 ZERO"] * 65_535
    for number in range(10):
        write(tmp_path / f"{number}.vmdk", f"{number + 1}.vmdk", *lines)
    error = refusal(tmp_path / "0.vmdk")
    assert f"more than {MAX_SEGMENTS}" in str(error)
    assert error.file == str(tmp_path / "4.vmdk")


@pytest.mark.parametrize("most", [5, 6])
def test_the_tables_of_a_chain_are_counted_together(
    tmp_path: Path, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        text = descriptor(
            f'RW 64 SPARSE "{number}.vmdk"',
            cid=CID,
            **{"hint": f"{number + 1}.vmdk", "parent_cid": CID} if number < 2 else {},  # type: ignore[arg-type]
        )
        (tmp_path / f"{number}.vmdk").write_bytes(hosted(8, {}, text=text))
    monkeypatch.setattr(graph, "MAX_TABLES", most)
    if most == 6:
        with fdstash.open(tmp_path / "0.vmdk", "r+") as image:
            assert image.pread(4096, 0) == bytes(4096)
    else:
        assert "6 tables" in str(refusal(tmp_path / "0.vmdk", "r+"))


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["r", "r+"])
def test_a_cycle_is_refused_within_a_second_and_64_mib(tmp_path: Path, mode: str) -> None:
    (tmp_path / "a.bin").write_bytes(bytes(4096))
    write(tmp_path / "disk.vmdk", "b.vmdk", 'RW 8 FLAT "a.bin" 0')
    write(tmp_path / "b.vmdk", "disk.vmdk")
    assert opened(tmp_path / "disk.vmdk", mode)["field"] == "backing file"
