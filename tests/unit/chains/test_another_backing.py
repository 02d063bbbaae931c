"""Another path for a chain, and another backing image for its top."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest

import fdstash
from fdstash import ClosedError, FDStash, FormatError, OptionError, RefusedError
from tests.support.chains import Chain, make_chain
from tests.support.refusals import refused
from tests.support.seen import check_served

pytestmark = pytest.mark.usefixtures("no_descriptor_leaks")


@pytest.mark.parametrize("mode", ["r", "r+"])
def test_a_chain_that_was_moved_is_found_where_it_is(tmp_path: Path, mode: str) -> None:
    chain = make_chain(tmp_path / "old", names=("base/vm.vmdk", "a.vmdk", "b.vmdk"))
    model = bytearray(chain.guest)
    with fdstash.open(chain.top, mode) as image:
        os.rename(tmp_path / "old", tmp_path / "new")
        image.reopen(path=tmp_path / "new" / "b.vmdk")
        assert [file.name for file in image.files][-1] == str(tmp_path / "new/base/vm-flat.vmdk")
        check_served(image, model)
        image.reopen(path=tmp_path / "new" / "b.vmdk", cache="none")
        check_served(image, model)


def test_a_copy_of_the_chain_takes_its_place(tmp_path: Path) -> None:
    chain = make_chain(tmp_path / "old")
    model = bytearray(chain.guest)
    with fdstash.open(chain.top, "r+") as image:
        image.pwrite(b"before", 0)
        model[:6] = b"before"
        shutil.copytree(tmp_path / "old", tmp_path / "new")

        def prepare() -> None:
            for path in chain.files()[:2]:
                shutil.copyfile(path, tmp_path / "new" / path.name)

        image.reopen(path=tmp_path / "new" / chain.top.name, prepare=prepare)
        check_served(image, model)
    with fdstash.open(tmp_path / "new" / chain.top.name) as image:
        check_served(image, model)


@pytest.mark.parametrize("broken", ["missing", "other CID", "elsewhere"])
def test_a_path_with_a_broken_chain_is_refused(tmp_path: Path, broken: str) -> None:
    chain = make_chain(tmp_path / "old")
    shutil.copytree(tmp_path / "old", tmp_path / "new")
    base = tmp_path / "new" / "vm.vmdk"
    if broken == "missing":
        base.unlink()
    elif broken == "other CID":
        base.write_text(base.read_text().replace("CID=000000b0", "CID=000000ff"))
    else:
        base.unlink()
        base.symlink_to(chain.base)
    with fdstash.open(chain.top, "r+") as image:
        error = refused(image, path=tmp_path / "new" / chain.top.name)
        assert error.phase == "acquire"
        assert isinstance(
            error.__cause__,
            {"missing": OSError, "elsewhere": RefusedError}.get(broken, FormatError),
        )


@pytest.fixture
def copies(tmp_path: Path, chain: Chain) -> Path:
    """The chain below the top, once more, in a folder beside that of the image."""
    folder = tmp_path / "copies"
    folder.mkdir()
    for path in chain.files()[2:]:
        shutil.copyfile(path, folder / path.name)
    return folder


@pytest.mark.parametrize("mode", ["r", "r+"])
@pytest.mark.parametrize("cache", [None, "none"])
def test_a_copy_of_the_parent_takes_its_place(
    chain: Chain, copies: Path, mode: str, cache: str | None
) -> None:
    model = bytearray(chain.guest)
    headers = [path.read_bytes()[:2048] for path in chain.files()[:2]]
    with fdstash.open(chain.top, mode, mark=False) as image:
        own = [(file.device, file.inode) for file in image.files[:2]]
        report = image.reopen(backing=copies / "vm-000001.vmdk", cache=cache)
        assert len(report.routes) == 6
        assert [(file.device, file.inode) for file in image.files[:2]] == own
        names = [str(copies / path.name) for path in chain.files()[2:]]
        assert [file.name for file in image.files[2:]] == names
        assert image.backing is not None
        assert image.backing.name == names[0]
        assert image.backing.hint == "vm-000001.vmdk"
        for path in chain.files()[2:]:
            path.unlink()
        # The headers say what they said: that is for who wants it so to write.
        assert [path.read_bytes()[:2048] for path in chain.files()[:2]] == headers
        check_served(image, model)
        image.reopen(mode="r+" if mode == "r" else "r")
        check_served(image, model)


def test_the_own_files_are_the_same_whatever_became_of_their_paths(
    chain: Chain, copies: Path
) -> None:
    model = bytearray(chain.guest)
    with fdstash.open(chain.top, "r+") as image:
        for path in chain.files()[:2]:
            path.rename(path.with_suffix(".old"))
        image.reopen(backing=copies / "vm-000001.vmdk")
        check_served(image, model)


def test_a_new_path_is_opened_with_the_parent_that_its_header_names(
    tmp_path: Path, chain: Chain, copies: Path
) -> None:
    for path in chain.files()[:2]:
        shutil.copyfile(path, copies / path.name)
    with fdstash.open(chain.top) as image:
        image.reopen(backing=copies / "vm-000001.vmdk")
        image.reopen(path=copies / chain.top.name)
        image.reopen(path=chain.top)
        assert [Path(file.name) for file in image.files] == chain.files()


@pytest.mark.parametrize("kind", ["other CID", "raw", "missing", "itself", "base", "extent"])
def test_what_is_not_the_parent_is_refused(chain: Chain, copies: Path, kind: str) -> None:
    other = copies / "vm-000001.vmdk"
    if kind == "other CID":
        with fdstash.open(other, "r+") as image:
            image.pwrite(b"x", 0)
    elif kind == "raw":
        other.write_bytes(bytes(1 << 17))
    elif kind == "missing":
        other.unlink()
    else:
        other = {"itself": chain.top, "base": chain.base, "extent": chain.files()[1]}[kind]
    before = chain.top.read_bytes()
    with fdstash.open(chain.top, "r+", mark=False) as image:
        error = refused(image, backing=other)
        assert error.phase == "acquire"
        expected = errno.ENOENT if kind == "missing" else errno.EINVAL
        assert error.errno == expected
        check_served(image, bytearray(chain.guest))
    assert chain.top.read_bytes() == before


def test_the_files_of_the_new_parent_are_beneath_its_own_folder(chain: Chain, copies: Path) -> None:
    """Whoever calls may name any path; what its header names is under the rules."""
    os.rename(copies / "vm.vmdk", copies.parent / "moved.vmdk")
    os.symlink("../moved.vmdk", copies / "vm.vmdk")
    with fdstash.open(chain.top, "r+") as image:
        assert isinstance(refused(image, backing=copies / "vm-000001.vmdk"), PermissionError)


def test_a_new_parent_from_a_stash(chain: Chain, copies: Path, stash: FDStash) -> None:
    names = [copies / path.name for path in chain.files()[2:]]
    for name in names:
        stash.give(str(name), os.open(name, os.O_RDONLY))
    shutil.rmtree(copies)
    with fdstash.open(chain.top, "r+") as image:
        report = image.reopen(backing=names[0], stash=stash)
        assert [report.routes[str(name)] for name in names] == ["stash"] * 4
        check_served(image, bytearray(chain.guest))


def test_an_image_without_parent_gets_none(chain: Chain) -> None:
    with fdstash.open(chain.base, "r+") as image:
        assert refused(image, backing=chain.top).errno == errno.ENOTSUP
        with pytest.raises(OptionError):
            image.reopen(mode="x", backing=chain.top)


def test_a_view_of_the_old_parent_ends_and_there_is_a_new_one(chain: Chain, copies: Path) -> None:
    with fdstash.open(chain.top) as image:
        old = image.backing
        assert old is not None
        refused(image, backing=chain.top)
        assert old.pread(10, 0) == chain.guests[1][:10]
        image.reopen(backing=copies / "vm-000001.vmdk")
        with pytest.raises(ClosedError):
            old.pread(10, 0)
        assert image.backing is not None
        assert image.backing.pread(10, 0) == chain.guests[1][:10]


@pytest.mark.parametrize("number", ["closed", "taken by another file"])
def test_an_image_by_descriptor_needs_that_no_more(chain: Chain, copies: Path, number: str) -> None:
    """The number may be another file's by now, which must not become the image."""
    fd = os.open(chain.top, os.O_RDWR)
    image = fdstash.open(fd, "r+", name=str(chain.top))
    if number == "closed":
        os.close(fd)
    else:
        other = os.open(chain.paths[1], os.O_RDWR)
        os.dup2(other, fd)
        os.close(other)
    with image:
        own = image.files[0].inode
        image.reopen(backing=copies / "vm-000001.vmdk")
        assert image.files[0].inode == own
        check_served(image, bytearray(chain.guest))
    if number != "closed":
        os.close(fd)


@pytest.mark.parametrize("place", [0, 1])
def test_a_stash_does_not_bring_another_file_in_place_of_an_own_one(
    chain: Chain, copies: Path, stash: FDStash, place: int
) -> None:
    """Only what is below becomes another; that a copy would do as well nobody has said."""
    own = chain.files()[place]
    shutil.copyfile(own, copies / own.name)
    stash.give(str(own), os.open(copies / own.name, os.O_RDWR))
    with fdstash.open(chain.top, "r+") as image:
        error = refused(image, backing=copies / "vm-000001.vmdk", stash=stash)
        assert (error.errno, error.file, error.phase) == (errno.ESTALE, str(own), "acquire")
