"""`fdstash info --backing-chain` and `fdstash map` over a chain, beside QEMU's."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

import fdstash
from tests.support.chains import SIZE, Chain, make_chain
from tests.support.command import command, fdstash_json
from tests.support.qemu_tools import create_with_qemu, qemu_img

MIB = 1 << 20


def by_qemu(*words: Any) -> Any:
    ran = qemu_img(*words, "--output", "json")
    assert ran.status == 0, ran
    return json.loads(ran.output)


@pytest.fixture(params=["VMFSSPARSE", "SPARSE", "SESPARSE"])
def laid_out(tmp_path: Path, request: pytest.FixtureRequest) -> Chain:
    return make_chain(tmp_path, kind=request.param)


@pytest.fixture(params=range(3))
def mixed(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """The top of a chain that QEMU and this package made by turns, and wrote to."""
    dice = random.Random(request.param)
    kinds = ["monolithicFlat", "twoGbMaxExtentSparse", "monolithicSparse", "twoGbMaxExtentSparse"]
    for number, kind in enumerate(kinds):
        path = tmp_path / f"{number}.vmdk"
        below: dict[str, Any] = {"backing_file": f"{number - 1}.vmdk"} if number else {}
        if number % 2:
            zeroed = "on" if number == 3 else "off"
            words = {"subformat": kind, "zeroed_grain": zeroed}
            if number:
                words |= {
                    "backing_file": str(tmp_path / f"{number - 1}.vmdk"),
                    "backing_fmt": "vmdk",
                }
            create_with_qemu(path, "vmdk", 4 * MIB, **words)
        else:
            fdstash.create(path, "vmdk", 4 * MIB, subformat=kind, **below)
        with fdstash.open(path, "r+", resolver=fdstash.anywhere) as image:
            for _ in range(10):
                offset = dice.randrange(64) << 16
                n = min(dice.randrange(1, 5) << 16, image.size - offset)
                if dice.random() < 0.7:
                    image.pwrite(dice.randbytes(n), offset)
                else:
                    image.zero(n, offset, unmap=dice.random() < 0.5)
    return path


def without_host_holes(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """QEMU does not look whether a grain is a hole of its file; this package does."""
    merged: list[dict[str, Any]] = []
    for entry in entries:
        each = {key: entry[key] for key in entry if key != "filename"}
        each["zero"] &= not each["data"]
        last = merged[-1] if merged else None
        if last is not None and _goes_on(last, each):
            last["length"] += each["length"]
        else:
            merged.append(each)
    return merged


def _goes_on(last: dict[str, Any], entry: dict[str, Any]) -> bool:
    same = all(last[key] == entry[key] for key in ("depth", "present", "zero", "data"))
    end = last["offset"] + last["length"] if "offset" in last else None
    return same and entry.get("offset") == end


def same_map(path: Path) -> list[dict[str, Any]]:
    found = without_host_holes(fdstash_json("map", path))
    assert found == without_host_holes(by_qemu("map", "-f", "vmdk", path))
    return found


def test_a_chain_as_vmware_lays_it_out_is_mapped_as_qemu_does(laid_out: Chain) -> None:
    found = same_map(laid_out.top)
    assert {entry["depth"] for entry in found} == {0, 1, 2}
    assert sum(entry["length"] for entry in found) == SIZE


def test_a_chain_of_both_is_mapped_as_qemu_does(mixed: Path) -> None:
    assert len({entry["depth"] for entry in same_map(mixed)}) > 2


def test_the_map_says_which_file(chain: Chain) -> None:
    files = chain.files()
    for entry in fdstash_json("map", chain.top):
        assert entry["filename"] == str(files[2 * entry["depth"] + 1])


def check_chain(path: Path) -> list[dict[str, Any]]:
    """What QEMU says of each image this package says too, and more."""
    ours, theirs = (
        fdstash_json("info", "--backing-chain", path),
        by_qemu("info", "--backing-chain", path),
    )
    assert len(ours) == len(theirs)
    for mine, its in zip(ours, theirs, strict=True):
        mine_special, its_special = mine.pop("format-specific"), its.pop("format-specific")
        for key in ("cid", "parent-cid", "create-type"):
            assert mine_special["data"][key] == its_special["data"][key]
        its.pop("cluster-size", None)
        assert {key: mine[key] for key in its} == its
    return list(ours)


def test_a_chain_as_vmware_lays_it_out_is_described_as_qemu_does(laid_out: Chain) -> None:
    found = check_chain(laid_out.top)
    assert [Path(each["filename"]) for each in found] == list(reversed(laid_out.paths))
    assert [len(each["files"]) for each in found] == [2, 2, 2]


def test_a_chain_of_both_is_described_as_qemu_does(mixed: Path) -> None:
    assert len(check_chain(mixed)) == 4


def test_people_get_a_paragraph_an_image(chain: Chain) -> None:
    said = command("info", "--backing-chain", chain.top).stdout
    paragraphs = said.split("\n\n")
    assert [each.splitlines()[0] for each in paragraphs] == [
        f"image: {path}" for path in reversed(chain.paths)
    ]
    assert command("info", chain.top).stdout.startswith(paragraphs[0])


def test_a_broken_chain_is_one_line_that_names_the_file(chain: Chain) -> None:
    chain.base.unlink()
    for name in ("info", "map"):
        found = command(name, chain.top)
        assert found.exit_code != 0
        assert str(chain.base) in found.stderr
        assert "Traceback" not in found.stderr


def test_qemu_reads_what_was_written_over_the_chain(tmp_path: Path, mixed: Path) -> None:
    with fdstash.open(mixed, resolver=fdstash.anywhere) as image:
        (tmp_path / "raw").write_bytes(image.pread(image.size, 0))
    ran = qemu_img("compare", "-f", "vmdk", "-F", "raw", mixed, tmp_path / "raw")
    assert ran.status == 0, ran
    assert qemu_img("check", mixed).status == 0
