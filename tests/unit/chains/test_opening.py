"""A chain of parents is opened as VMware lays it out, under the rules for names."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import fdstash
from fdstash import Beneath, FormatError, RefusedError, anywhere
from tests.support.chains import (
    CONTENT,
    GRAIN,
    SIZE,
    Chain,
    make_base,
    make_chain,
    make_child,
    over,
)
from tests.support.disks import noise
from tests.support.images import read_all
from tests.support.kernel import open_descriptors

pytestmark = pytest.mark.usefixtures("no_descriptor_leaks")


def fails(path: Path, kind: type[Exception], mode: str = "r", **options: object) -> Exception:
    """The open must fail with this, and leave nothing open."""
    before = open_descriptors()
    with pytest.raises(kind) as caught:
        fdstash.open(path, mode, **options)  # type: ignore[arg-type]
    assert open_descriptors() == before
    return caught.value


@pytest.mark.parametrize("mode", ["r", "r+"])
@pytest.mark.parametrize("kind", ["VMFSSPARSE", "SPARSE", "SESPARSE"])
def test_snapshots_over_a_flat_base_are_read_through(tmp_path: Path, kind: str, mode: str) -> None:
    chain = make_chain(tmp_path, kind=kind)
    if (kind, mode) == ("SESPARSE", "r+"):
        fails(chain.top, FormatError, mode)
        return
    for path, guest in zip(chain.paths, chain.guests, strict=True):
        with fdstash.open(path, mode) as image:
            assert read_all(image) == guest
    with fdstash.open(chain.top, mode) as image:
        assert [Path(file.name) for file in image.files] == chain.files()
        own = [mode, mode] + ["r"] * 4
        assert [file.mode for file in image.files] == own
        assert {extent.depth for extent in image.extents()} == {0, 1, 2}


@pytest.mark.parametrize("cache", ["writeback", "none", "directsync"])
def test_writes_go_to_the_opened_image_alone(chain: Chain, cache: str) -> None:
    below = {path: path.read_bytes() for path in chain.files()[2:]}
    model = bytearray(chain.guest)
    with fdstash.open(chain.top, "r+", cache=cache) as image:
        for number, offset in enumerate((0, 5000, GRAIN * 9 - 3, GRAIN * 20, SIZE - 700)):
            data = noise(700, number)
            image.pwrite(data, offset)
            model[offset : offset + 700] = data
        image.zero(3 * GRAIN + 100, GRAIN - 50)
        model[GRAIN - 50 : 4 * GRAIN + 50] = bytes(3 * GRAIN + 100)
        assert read_all(image) == model
    with fdstash.open(chain.top) as image:
        assert read_all(image) == model
    assert {path: path.read_bytes() for path in below} == below


@pytest.mark.parametrize(
    ("names", "hint"),
    [
        (("base/vm.vmdk", "snap.vmdk"), "base/vm.vmdk"),
        (("a/b/c/vm.vmdk", "snap.vmdk"), "a/b/../b/c/vm.vmdk"),
        (("vm.vmdk", "snap.vmdk"), "./vm.vmdk"),
    ],
)
def test_a_parent_beneath_the_folder_is_allowed(
    tmp_path: Path, names: tuple[str, ...], hint: str
) -> None:
    chain = make_chain(tmp_path, names=names, hints={1: hint})
    with fdstash.open(chain.top, "r+") as image:
        assert read_all(image) == chain.guest


def outside(tmp_path: Path, hint: str | None = None) -> Chain:
    names = ("base/vm.vmdk", "vm/snap.vmdk")
    return make_chain(tmp_path, names=names, hints={1: hint} if hint else None)


@pytest.mark.parametrize("mode", ["r", "r+"])
@pytest.mark.parametrize("absolute", [False, True])
def test_a_parent_elsewhere_is_refused_by_name_and_how_to_allow_it(
    tmp_path: Path, absolute: bool, mode: str
) -> None:
    chain = outside(tmp_path, str(tmp_path / "base/vm.vmdk") if absolute else None)
    hint = str(chain.base) if absolute else "../base/vm.vmdk"
    error = fails(chain.top, RefusedError, mode)
    assert isinstance(error, RefusedError)
    assert error.filename == hint
    assert repr(str(chain.top)) in str(error)
    assert "resolver=" in str(error)


def test_a_link_to_a_parent_elsewhere_is_refused(tmp_path: Path) -> None:
    chain = outside(tmp_path, "link.vmdk")
    (tmp_path / "vm/link.vmdk").symlink_to("../base/vm.vmdk")
    fails(chain.top, RefusedError)


@pytest.mark.parametrize("absolute", [False, True])
def test_a_resolver_allows_a_parent_elsewhere(tmp_path: Path, absolute: bool) -> None:
    chain = outside(tmp_path, str(tmp_path / "base/vm.vmdk") if absolute else None)
    asked: list[tuple[str, str]] = []

    def resolver(text: str, referrer: str) -> str | None:
        asked.append((text, referrer))
        return anywhere(text, referrer)

    def beside(text: str, referrer: str) -> str | None:
        return None if "/" in text else anywhere(text, referrer)

    for allowed in (Beneath(tmp_path), anywhere, resolver):
        with fdstash.open(chain.top, "r+", resolver=allowed) as image:
            assert read_all(image) == chain.guest
    # The extents of each, and the parent, each with the file that names it.
    assert asked == [
        ("snap-delta.vmdk", str(chain.top)),
        (str(chain.base) if absolute else "../base/vm.vmdk", str(chain.top)),
        ("vm-flat.vmdk", str(tmp_path / "base/vm.vmdk")),
    ]
    error = fails(chain.top, RefusedError, resolver=beside)
    assert "the resolver does not allow it" in str(error)


def test_a_parent_may_name_only_what_is_beneath_its_own_folder(tmp_path: Path) -> None:
    """The folder of the child says nothing for the files that the parent names."""
    chain = make_chain(tmp_path, names=("base/vm.vmdk", "snap.vmdk"))
    os.rename(tmp_path / "base/vm-flat.vmdk", tmp_path / "vm-flat.vmdk")
    chain.base.write_text(chain.base.read_text().replace("vm-flat", "../vm-flat"))
    fails(chain.top, RefusedError)
    with fdstash.open(chain.top, resolver=Beneath(tmp_path)) as image:
        assert read_all(image) == chain.guest


@pytest.mark.parametrize("text", ["", 'parentFileNameHint=""\n'], ids=["missing", "empty"])
def test_an_image_that_does_not_say_where_its_parent_is_is_refused(chain: Chain, text: str) -> None:
    found = chain.top.read_text().replace('parentFileNameHint="vm-000001.vmdk"\n', text)
    chain.top.write_text(found)
    error = fails(chain.top, FormatError)
    assert isinstance(error, FormatError)
    assert (error.file, error.field) == (str(chain.top), "parentFileNameHint")


def test_a_parent_that_is_missing_is_named(chain: Chain) -> None:
    chain.base.unlink()
    error = fails(chain.top, FileNotFoundError)
    assert isinstance(error, OSError)
    assert error.filename == str(chain.base)


def test_an_extent_of_a_parent_that_is_missing_is_named(chain: Chain) -> None:
    chain.files()[3].unlink()
    error = fails(chain.top, FileNotFoundError)
    assert isinstance(error, OSError)
    assert error.filename == str(chain.files()[3])


@pytest.mark.parametrize("mode", ["r", "r+"])
@pytest.mark.parametrize("number", [0, 1])
def test_a_parent_that_was_written_to_is_refused(chain: Chain, number: int, mode: str) -> None:
    with fdstash.open(chain.paths[number], "r+") as parent:
        parent.pwrite(b"x", 0)
    error = fails(chain.top, FormatError, mode)
    assert isinstance(error, FormatError)
    assert (error.file, error.field) == (str(chain.paths[number + 1]), "parentCID")
    assert f"{0xB0 + number:08x}" in str(error)


def test_a_write_without_a_mark_is_none_that_a_child_sees(chain: Chain) -> None:
    with fdstash.open(chain.base, "r+", mark=False) as parent:
        parent.pwrite(parent.pread(10, 0), 0)
    with fdstash.open(chain.top) as image:
        assert read_all(image) == chain.guest


@pytest.mark.parametrize("kind", ["raw", "qcow2", "extent", "folder", "empty"])
def test_a_parent_that_is_no_vmdk_is_refused(tmp_path: Path, chain: Chain, kind: str) -> None:
    other = tmp_path / "other"
    if kind == "folder":
        other.mkdir()
    elif kind == "extent":
        os.link(tmp_path / "vm-000001-delta.vmdk", other)
    else:
        other.write_bytes({"raw": noise(SIZE), "qcow2": b"QFI\xfb\0\0\0\3", "empty": b""}[kind])
    chain.top.write_text(chain.top.read_text().replace('="vm-000001.vmdk"', '="other"'))
    error = fails(chain.top, FormatError)
    assert str(other) in str(error)


@pytest.mark.parametrize("sectors", [8 * 5 + 3, 8 * 30, 8 * 33, 8 * 100 + 1])
def test_a_parent_of_another_size_reads_as_zeros_beyond_its_end(
    tmp_path: Path, sectors: int
) -> None:
    base = make_base(tmp_path / "vm.vmdk", noise(sectors * 512))
    make_child(tmp_path / "snap.vmdk", "vm.vmdk", CONTENT[0], cid=1, parent_cid=0xB0)
    model = bytearray(over(base, CONTENT[0]))
    with fdstash.open(tmp_path / "snap.vmdk", "r+") as image:
        assert image.size == SIZE
        assert image.backing is not None
        assert image.backing.size == sectors * 512
        assert read_all(image) == model
        for offset in (sectors * 512 - 7, sectors * 512 + GRAIN, SIZE - 3):
            data = b"written"[: max(0, SIZE - offset)]
            if data:
                image.pwrite(data, offset)
                model[offset : offset + len(data)] = data
        assert read_all(image) == model
        assert sum(extent.length for extent in image.extents()) == SIZE
    with fdstash.open(tmp_path / "snap.vmdk") as image:
        assert read_all(image) == model
