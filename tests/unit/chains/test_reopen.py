"""A reopen of an image with parents changes every file of the chain, or none."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path
from typing import Any

import pytest

import fdstash
from fdstash import FormatError, Image
from tests.support.chains import Chain, make_chain
from tests.support.images import CACHES
from tests.support.other_user import let_in, without_permissions
from tests.support.refusals import refused
from tests.support.seen import check_served, locked_bytes

pytestmark = pytest.mark.usefixtures("no_descriptor_leaks")


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("mode", ["r", "r+"])
def test_every_file_changes_and_those_below_stay_readers(
    chain: Chain, mode: str, cache: str
) -> None:
    model = bytearray(chain.guest)
    with fdstash.open(chain.top, "r+" if mode == "r" else "r", cache="writeback") as image:
        slots = [file.fd for file in image.files]
        report = image.reopen(mode=mode, cache=cache)
        assert [file.fd for file in image.files] == slots
        assert list(report.routes) == [str(path) for path in chain.files()]
        assert [file.mode for file in image.files] == [mode, mode, *["r"] * 4]
        direct = cache in ("none", "directsync")
        assert [file.direct for file in image.files] == [direct] * 6
        assert report.files_changed == (6 if direct else 2)
        check_served(image, model)
        image.reopen(mode="r+", cache="writeback")
        check_served(image, model)
    with fdstash.open(chain.top) as image:
        check_served(image, model)


def away(chain: Chain, how: str) -> None:
    """What may become of the base while the image is open."""
    flat = chain.files()[-1]
    for path in (chain.base, flat):
        if how == "renamed":
            path.rename(path.with_suffix(".old"))
        elif how == "replaced":
            path.with_suffix(".new").write_bytes(path.read_bytes())
            path.with_suffix(".new").replace(path)
        else:
            path.unlink()
    if how == "folder":
        shutil.rmtree(chain.base.parent)


@pytest.mark.parametrize("how", ["renamed", "unlinked", "replaced", "folder"])
def test_a_parent_is_not_needed_at_its_path(tmp_path: Path, how: str) -> None:
    chain = make_chain(tmp_path / "vm", names=("base/vm.vmdk", "snap.vmdk"))
    model = bytearray(chain.guest)
    with fdstash.open(chain.top, "r+") as image:
        away(chain, how)
        for options in ({"mode": "r"}, {"cache": "none"}, {"mode": "r+", "cache": "directsync"}):
            image.reopen(**options)  # type: ignore[arg-type]
            check_served(image, model)
        image.extract_fds(stash := fdstash.FDStash())  # others hold them now: another route
        image.reopen(cache="writeback")
        stash.close()
        check_served(image, model)


@pytest.mark.parametrize(
    ("how", "code"),
    [("renamed", errno.ENOENT), ("unlinked", errno.ENOENT), ("replaced", errno.ESTALE)],
)
def test_by_path_the_parent_must_be_the_same_file(chain: Chain, how: str, code: int) -> None:
    with fdstash.open(chain.top, "r+") as image:
        image.reopen(path=chain.top, mode="r")
        away(chain, how)
        for options in ({"mode": "r+"}, {"cache": "none"}):
            error = refused(image, path=chain.top, **options)
            assert error.errno == code
            assert error.file in map(str, (chain.base, chain.files()[-1]))
            assert error.phase == "acquire"
        image.reopen(mode="r+")
        check_served(image, bytearray(chain.guest))


@pytest.mark.parametrize("number", [0, 1])
def test_a_parent_that_was_written_to_refuses_the_way_to_writing(chain: Chain, number: int) -> None:
    with fdstash.open(chain.top) as image:
        with fdstash.open(chain.paths[number], "r+", lock=False) as parent:
            parent.pwrite(b"x", 7 * 4096)
        error = refused(image, mode="r+")
        assert (error.phase, error.file) == ("prove", str(chain.paths[number + 1]))
        assert isinstance(error.__cause__, FormatError)
        assert error.__cause__.field == "parentCID"
        image.reopen(cache="none")


def test_a_parent_whose_layout_changed_refuses_the_way_to_writing(chain: Chain) -> None:
    with fdstash.open(chain.top) as image:
        chain.base.write_text(chain.base.read_text().replace("RW 256", "RW 128"))
        error = refused(image, mode="r+")
        assert (error.phase, error.file) == ("prove", str(chain.base))


@pytest.mark.parametrize(
    "options", [{"mode": "r"}, {"cache": "none"}, {"mode": "r", "cache": "none"}]
)
@pytest.mark.parametrize("victim", range(6))
@pytest.mark.root
def test_whichever_file_cannot_be_opened_none_changes(
    chain: Chain, victim: int, options: dict[str, Any]
) -> None:
    let_in(chain.base.parent)
    for path in chain.files():
        path.chmod(0o666)
    locked_bytes(chain.top)  # what it imports the other user may not reach
    with fdstash.open(chain.top, "r+") as image, fdstash.FDStash() as stash:
        image.extract_fds(stash)  # so that each needs a new description
        chain.files()[victim].chmod(0)
        with without_permissions():
            if victim >= 2 and "cache" not in options:
                image.reopen(**options)  # the parents are open for reading as it is
                return
            error = refused(image, **options)
        assert isinstance(error, PermissionError)
        assert (error.phase, error.file) == ("acquire", str(chain.files()[victim]))


def test_a_failure_in_prepare_leaves_the_whole_chain(chain: Chain) -> None:
    def fail() -> None:
        raise OSError(errno.EIO, "told to")

    with fdstash.open(chain.top, "r+") as image:
        for options in ({"mode": "r"}, {"cache": "none"}, {"backing": chain.paths[1]}):
            error = refused(image, prepare=fail, **options)
            assert (error.errno, error.phase) == (errno.EIO, "prepare")


def test_several_images_with_one_parent_change_together(tmp_path: Path) -> None:
    chains = [make_chain(tmp_path, names=("vm.vmdk", f"{name}.vmdk")) for name in "abc"]
    images: list[Image] = [fdstash.open(each.top, "r+") for each in chains]
    fdstash.reopen_all([(image, {"mode": "r", "cache": "none"}) for image in images])
    fdstash.reopen_all([(image, {"mode": "r+"}) for image in images])
    for image, each in zip(images, chains, strict=True):
        check_served(image, bytearray(each.guest))
        image.close()
