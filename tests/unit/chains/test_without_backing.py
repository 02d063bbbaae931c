"""`backing=False`: an image without those that it is based on."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

import fdstash
from fdstash import ClosedError, FDStash, Image, ReopenError
from tests.support.chains import CONTENT, GRAIN, SIZE, Chain, over
from tests.support.disks import make_raw, noise
from tests.support.refusals import Snapshot, refused
from tests.support.seen import check_served, image_descriptors, locked_bytes

pytestmark = pytest.mark.usefixtures("no_descriptor_leaks")

#: What the top of the chain has by itself.
ALONE = over(b"", CONTENT[1])


def check_alone(image: Image, chain: Chain, model: bytearray | None = None) -> None:
    assert image.backing is None
    assert [file.name for file in image.files] == [str(path) for path in chain.files()[:2]]
    check_served(image, bytearray(ALONE) if model is None else model)


@pytest.mark.parametrize("mode", ["r", "r+"])
@pytest.mark.parametrize("cache", ["writeback", "none"])
def test_an_image_is_opened_without_images_that_are_not_there(
    chain: Chain, mode: str, cache: str
) -> None:
    for path in chain.files()[2:]:
        path.unlink()
    with fdstash.open(chain.top, mode, cache=cache, backing=False) as image:
        assert image.format_info["parent"] == "vm-000001.vmdk"
        check_alone(image, chain)


def test_neither_a_lock_nor_a_descriptor_of_images_below_is_taken(chain: Chain) -> None:
    with fdstash.open(chain.top, "r+", backing=False), fdstash.open(chain.paths[1], "r+"):
        pass
    with fdstash.open(chain.top, "r+") as image:
        assert locked_bytes(chain.base)
        image.reopen(backing=False)
        assert locked_bytes(chain.base) == []
        assert image_descriptors(*chain.files()[2:]) == []


def test_what_only_images_below_have_is_a_hole_of_this_one(chain: Chain) -> None:
    with fdstash.open(chain.top, backing=False) as image:
        found = [(each.offset // GRAIN, each.kind, each.depth) for each in image.extents()]
    kinds = {0: "hole", 2: "data", 3: "hole", 20: "data", 21: "hole"}
    assert found == [(grain, kind, 0) for grain, kind in kinds.items()]


@pytest.mark.parametrize("mode", ["r", "r+"])
def test_an_open_image_is_left_by_those_below(chain: Chain, mode: str) -> None:
    headers = [path.read_bytes()[:2048] for path in chain.files()[:2]]
    with fdstash.open(chain.top, mode, mark=False) as image:
        own = [file.inode for file in image.files[:2]]
        old = image.backing
        assert old is not None
        for path in chain.files()[:2]:
            path.rename(path.with_suffix(".old"))
        report = image.reopen(backing=False)
        assert [Path(name) for name in report.routes] == chain.files()[:2]
        assert [file.inode for file in image.files] == own
        with pytest.raises(ClosedError):
            old.pread(1, 0)
        for path in chain.files()[:2]:
            path.with_suffix(".old").rename(path)
        assert [path.read_bytes()[:2048] for path in chain.files()[:2]] == headers
        check_alone(image, chain)


def test_what_was_written_over_images_below_stays(chain: Chain) -> None:
    """A grain that a write has made holds what was below around it."""
    with fdstash.open(chain.top, "r+") as image:
        image.pwrite(b"written", 5 * GRAIN + 9)
        image.reopen(backing=False)
        grain = bytearray(chain.guest[5 * GRAIN : 6 * GRAIN])
        grain[9:16] = b"written"
        assert image.pread(GRAIN, 5 * GRAIN) == grain
        assert image.pread(GRAIN, 4 * GRAIN) == bytes(GRAIN)


def test_reopens_that_say_nothing_of_it_keep_it(
    tmp_path: Path, chain: Chain, stash: FDStash
) -> None:
    model = bytearray(ALONE)
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in chain.files()[:2]:
        stash.give(str(path), os.open(path, os.O_RDWR))
    with fdstash.open(chain.top, "r+", backing=False) as image:
        later: list[dict[str, Any]] = [
            {"mode": "r"},
            {"mode": "r+", "cache": "none"},
            {"stash": stash, "cache": "writeback"},
            {"path": chain.top},
            {"path": str(chain.top)},
            {},
        ]
        for options in later:
            image.reopen(**options)
            check_alone(image, chain, model)
        for path in chain.files()[:2]:
            shutil.copyfile(path, copy / path.name)
        image.reopen(path=copy / chain.top.name)  # beside which there is no parent
        assert (image.backing, len(image.files)) == (None, 2)
        image.reopen(mode="r")
        image.reopen(path=chain.top, mode="r+")
        check_alone(image, chain, model)


def test_it_may_be_said_with_another_path(tmp_path: Path, chain: Chain) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in chain.files()[:2]:
        shutil.copyfile(path, copy / path.name)
    with fdstash.open(chain.top, "r+") as image:
        assert refused(image, path=copy / chain.top.name).errno == errno.ENOENT
        image.reopen(path=copy / chain.top.name, backing=False)
        assert (image.backing, len(image.files)) == (None, 2)
        check_served(image, bytearray(ALONE))


@pytest.mark.parametrize("reopened", [False, True])
def test_such_an_image_gets_one_that_is_named(chain: Chain, *, reopened: bool) -> None:
    with fdstash.open(chain.top, backing=None if reopened else False) as image:
        if reopened:
            image.reopen(backing=False)
        error = refused(image, backing=chain.base)
        assert "parentCID" in str(error)
        image.reopen(backing=chain.paths[1], mode="r+")
        assert image.backing is not None
        assert image.backing.name == str(chain.paths[1])
        check_served(image, bytearray(chain.guest))
        image.reopen(path=chain.top, mode="r")  # which keeps that one
        assert len(image.files) == 6


def test_said_again_it_changes_no_file(chain: Chain) -> None:
    with fdstash.open(chain.top, "r+", backing=False) as image:
        slots = [file.fd for file in image.files]
        report = image.reopen(backing=False, cache="none")
        assert set(report.routes.values()) == {"setfl"}
        assert [file.fd for file in image.files] == slots


# -- images that are based on none


def test_an_image_based_on_none_takes_it_as_said(tmp_path: Path, chain: Chain) -> None:
    raw = make_raw(tmp_path, SIZE)
    for path, format_, guest in ((raw, "raw", noise(SIZE, 1)), (chain.base, None, chain.guests[0])):
        model = bytearray(guest)
        for backing in (None, False):
            with fdstash.open(path, "r+", format=format_, backing=backing) as image:
                for options in ({"backing": False}, {"mode": "r"}, {"mode": "r+"}):
                    image.reopen(**options)
                    assert image.backing is None
                    check_served(image, model)


def test_it_is_kept_for_a_path_whose_header_names_one(chain: Chain) -> None:
    with fdstash.open(chain.base) as image:
        image.reopen(path=chain.top)
        assert len(image.files) == 6
    for said in ("open", "reopen"):
        with fdstash.open(chain.base, backing=False if said == "open" else None) as image:
            if said == "reopen":
                image.reopen(backing=False)
            image.reopen(path=chain.top)
            check_alone(image, chain)


@pytest.mark.parametrize("wrong", [True, 0, 7])
def test_only_false_means_none(chain: Chain, wrong: Any) -> None:
    with pytest.raises(TypeError):
        fdstash.open(chain.top, backing=wrong)
    with fdstash.open(chain.top, "r+") as image:
        with pytest.raises(TypeError):
            image.reopen(backing=wrong)
        check_served(image, bytearray(chain.guest))


# -- reopens that fail


@pytest.mark.parametrize("before", [None, False])
@pytest.mark.parametrize("fails", ["acquire", "prepare", "commit"])
def test_a_reopen_that_fails_leaves_what_is_below_as_it_was(
    chain: Chain, stash: FDStash, before: Any, fails: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with fdstash.open(chain.top, "r+", backing=before) as image:
        options: dict[str, Any] = {"backing": False if before is None else chain.paths[1]}
        if fails == "acquire":
            own = chain.files()[1]
            other = shutil.copyfile(own, own.with_suffix(".copy"))
            stash.give(str(own), os.open(other, os.O_RDWR))
            options["stash"] = stash
        elif fails == "prepare":
            options["prepare"] = fail
        else:
            monkeypatch.setattr("fdstash.path_change.PathChange.settle", fail)
        error = refused(image, **options)
        assert error.phase == fails
        monkeypatch.undo()
        assert (image.backing is None) is (before is False)
        check_served(image, bytearray(chain.guest if before is None else ALONE))


def test_several_images_lose_what_is_below_or_none_does(chain: Chain, tmp_path: Path) -> None:
    raw = make_raw(tmp_path, SIZE)
    with (
        fdstash.open(chain.top, "r+") as image,
        fdstash.open(raw, "r+", format="raw") as other,
        Snapshot(image) as before,
    ):
        with pytest.raises(ReopenError):
            fdstash.reopen_all([(image, {"backing": False}), (other, {"path": tmp_path / "no"})])
        before.assert_same()
        fdstash.reopen_all([(image, {"backing": False}), (other, {"cache": "none"})])
        assert (image.backing, other.cache) == (None, "none")


# -- zeros that are written meanwhile


@pytest.mark.parametrize("zeroed_grain", [False, True])
@pytest.mark.parametrize("unmap", [False, True])
def test_zeros_stay_zeros_when_the_image_gets_what_it_is_based_on(
    tmp_path: Path, *, zeroed_grain: bool, unmap: bool
) -> None:
    """Else a copy of the top of a chain, made before what is below, would lose its zeros."""
    grain, size = 64 << 10, 1 << 20
    base, top = tmp_path / "base.vmdk", tmp_path / "top.vmdk"
    fdstash.create(base, "vmdk", size, subformat="monolithicSparse")
    with fdstash.open(base, "r+") as image:
        image.pwrite(b"\xaa" * size, 0)
    fdstash.create(
        top,
        "vmdk",
        size,
        subformat="monolithicSparse",
        backing_file="base.vmdk",
        zeroed_grain=zeroed_grain,
    )
    model = bytearray(b"\xaa" * size)
    with fdstash.open(top, "r+", backing=False) as image:
        image.pwrite(b"data" * (grain // 2), 2 * grain)
        image.zero(grain, 3 * grain, unmap=unmap)  # of data
        image.zero(2 * grain, 6 * grain, unmap=unmap)  # of what would be below
        image.zero(100, 9 * grain + 5, unmap=unmap)
        image.trim(grain, 2 * grain)
        model[9 * grain : 10 * grain] = bytes(grain)  # as it was read around the write
        model[3 * grain : 4 * grain] = bytes(grain)
        model[6 * grain : 8 * grain] = bytes(2 * grain)
        image.reopen(backing=base)
        found = bytearray(image.pread(size, 0))
        model[2 * grain : 3 * grain] = found[2 * grain : 3 * grain]  # trimmed
        assert found == model
        assert b"\xaa" not in found[2 * grain : 4 * grain]
