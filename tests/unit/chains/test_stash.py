"""A chain whose every descriptor is in a stash: given away, and opened where no file is."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import fdstash
from fdstash import FDStash, ImageIOError, RefusedError, ReopenError
from tests.support.chains import make_chain
from tests.support.images import read_all
from tests.support.kernel import open_descriptors, same_description
from tests.support.seen import check_served

pytestmark = pytest.mark.usefixtures("no_descriptor_leaks")

#: Every folder has a file of each name.
COLLIDING = ("a/base/vm.vmdk", "a/vm.vmdk", "vm.vmdk")


@pytest.mark.parametrize("mode", ["r", "r+"])
@pytest.mark.parametrize("names", [COLLIDING, ("vm.vmdk", "vm-000001.vmdk")])
def test_the_stash_gets_every_file_of_the_chain(
    tmp_path: Path, stash: FDStash, names: tuple[str, ...], mode: str
) -> None:
    chain = make_chain(tmp_path, names=names)
    with fdstash.open(chain.top, mode) as image:
        image.extract_fds(stash)
        assert stash.names() == [str(path) for path in chain.files()]
        for file in image.files:
            copy = stash.dup(file.name)
            assert same_description(copy, file.fd)
            os.close(copy)
        check_served(image, bytearray(chain.guest))


@pytest.mark.parametrize("mode", ["r", "r+"])
def test_it_is_opened_from_the_stash_alone(tmp_path: Path, stash: FDStash, mode: str) -> None:
    """Names that are equal but for their folders are kept apart."""
    chain = make_chain(tmp_path / "vm", names=COLLIDING)
    with fdstash.open(chain.top, mode) as image:
        image.extract_fds(stash)
    os.rename(tmp_path / "vm", tmp_path / "gone")
    model = bytearray(chain.guest)
    with fdstash.open(chain.top, mode, stash=stash) as image:
        assert [file.path for file in image.files] == [None] * 6
        check_served(image, model)
        image.reopen(cache="none", stash=stash)
        check_served(image, model)
    assert len(stash) == 6


CHILD = """
import os, socket, sys, fdstash, fdstash.passing
sock = socket.socket(fileno=int(sys.argv[1]))
os.chroot(sys.argv[2])
os.chdir("/")
with fdstash.FDStash.receive(sock) as stash:
    with fdstash.open(sys.argv[3], "r+", stash=stash, lock=False) as image:
        data = image.pread(image.size, 0)
        image.pwrite(b"from within", 100)
        image.reopen(cache="none", stash=stash)
        assert image.pread(11, 100) == b"from within"
        print(data.hex())
"""


@pytest.mark.root
def test_it_is_opened_by_a_process_that_reaches_no_file(tmp_path: Path, stash: FDStash) -> None:
    chain = make_chain(tmp_path / "vm", names=COLLIDING)
    (tmp_path / "empty").mkdir()
    for cache in ("writeback", "none"):
        with fdstash.open(chain.top, "r+", cache=cache) as image, FDStash() as more:
            image.extract_fds(more)
            for name in more.names():
                stash.add(name, more.take(name))
    ours, theirs = socket.socketpair()
    with ours, theirs:
        arguments = [str(theirs.fileno()), str(tmp_path / "empty"), str(chain.top)]
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, *arguments],
            pass_fds=[theirs.fileno()],
            stdout=subprocess.PIPE,
            text=True,
        )
        stash.send(ours)
        said, _ = child.communicate(timeout=60)
    assert child.returncode == 0
    assert bytes.fromhex(said) == chain.guest
    with fdstash.open(chain.top) as image:
        assert image.pread(11, 100) == b"from within"


def test_a_last_component_that_would_serve_two_files_is_refused(
    tmp_path: Path, stash: FDStash
) -> None:
    chain = make_chain(tmp_path / "vm", names=COLLIDING)
    stash.give("vm.vmdk", os.open(chain.top, os.O_RDONLY))
    before = open_descriptors()
    with pytest.raises(RefusedError) as caught:
        fdstash.open(chain.top, stash=stash)
    assert "would serve both" in str(caught.value)
    assert repr(str(chain.top)) in str(caught.value)
    assert repr(str(chain.paths[1])) in str(caught.value)
    assert open_descriptors() == before
    with fdstash.open(chain.top) as image:
        with pytest.raises(ReopenError) as refused:
            image.reopen(cache="none", stash=stash)
        assert isinstance(refused.value, PermissionError)
        check_served(image, bytearray(chain.guest))
    assert len(stash) == 1


def test_a_file_of_a_parent_that_the_stash_lacks_is_looked_for_on_the_host(
    tmp_path: Path, stash: FDStash
) -> None:
    chain = make_chain(tmp_path / "vm")
    with fdstash.open(chain.top) as image:
        image.extract_fds(stash)
    lacking = chain.files()[5]
    os.close(stash.take(str(lacking)))
    with fdstash.open(chain.top, stash=stash) as image:
        assert [file.path is None for file in image.files] == [True] * 5 + [False]
        assert read_all(image) == chain.guest
    lacking.unlink()
    with pytest.raises(FileNotFoundError) as caught:
        fdstash.open(chain.top, stash=stash)
    assert caught.value.filename == str(lacking)


def test_an_image_by_descriptor_without_a_name_finds_its_chain_in_the_stash(
    tmp_path: Path, stash: FDStash
) -> None:
    """By the text of the header: there is no folder that it could be joined to."""
    chain = make_chain(tmp_path)
    for path in chain.files()[1:]:
        stash.give(path.name, os.open(path, os.O_RDONLY))
    fd = os.open(chain.top, os.O_RDWR)
    try:
        os.close(stash.take("vm-000002-delta.vmdk"))
        stash.give("vm-000002-delta.vmdk", os.open(chain.files()[1], os.O_RDWR))
        with fdstash.open(fd, "r+", stash=stash) as image:
            check_served(image, bytearray(chain.guest))
        os.close(stash.take("vm-flat.vmdk"))
        with pytest.raises(ImageIOError) as caught:
            fdstash.open(fd, "r+", stash=stash)
        assert caught.value.filename == "vm-flat.vmdk"
        assert "stash" in str(caught.value)
    finally:
        os.close(fd)


def test_a_stash_with_another_parent_is_refused_by_its_cid(tmp_path: Path, stash: FDStash) -> None:
    chain = make_chain(tmp_path / "vm")
    shutil.copytree(tmp_path / "vm", tmp_path / "other")
    other = tmp_path / "other" / "vm-000001.vmdk"
    with fdstash.open(other, "r+") as image:
        image.pwrite(b"x", 0)
    stash.give(str(chain.paths[1]), os.open(other, os.O_RDONLY))
    with pytest.raises(fdstash.FormatError) as caught:
        fdstash.open(chain.top, stash=stash)
    assert caught.value.field == "parentCID"
