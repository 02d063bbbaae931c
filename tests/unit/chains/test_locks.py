"""Locks over a chain: the opened image writes, and whatever is below is held still."""

from __future__ import annotations

from pathlib import Path

import pytest

import fdstash
from fdstash import LockError
from tests.support.chains import Chain, make_chain
from tests.support.kernel import open_descriptors
from tests.support.qemu_tools import qemu_io
from tests.support.refusals import refused
from tests.support.seen import READER_BYTES, WRITER_BYTES, locked_bytes

pytestmark = pytest.mark.usefixtures("no_descriptor_leaks")


@pytest.mark.parametrize("mode", ["r", "r+"])
def test_parents_are_locked_as_by_readers(chain: Chain, mode: str) -> None:
    own = WRITER_BYTES if mode == "r+" else READER_BYTES
    with fdstash.open(chain.top, mode) as image:
        expected = [own] * 2 + [READER_BYTES] * 4
        assert [locked_bytes(path) for path in chain.files()] == expected
        image.reopen(mode="r", cache="none")
        assert [locked_bytes(path) for path in chain.files()] == [READER_BYTES] * 6
    assert [locked_bytes(path) for path in chain.files()] == [[]] * 6


@pytest.mark.parametrize("mode", ["r", "r+"])
def test_nobody_writes_to_a_parent_meanwhile(chain: Chain, mode: str) -> None:
    with fdstash.open(chain.top, mode):
        for path in chain.paths[:2]:
            before = open_descriptors()
            with pytest.raises(LockError):
                fdstash.open(path, "r+")
            assert open_descriptors() == before
            with fdstash.open(path) as parent:
                refused(parent, mode="r+")
    with fdstash.open(chain.base, "r+") as parent:
        parent.pwrite(parent.pread(1, 0), 0)


@pytest.mark.parametrize("mode", ["r", "r+"])
def test_an_image_whose_parent_is_being_written_to_is_not_opened(chain: Chain, mode: str) -> None:
    for path in chain.paths[:2]:
        with fdstash.open(path, "r+"):
            before = open_descriptors()
            with pytest.raises(LockError):
                fdstash.open(chain.top, mode)
            assert open_descriptors() == before


def test_qemu_does_not_write_to_a_parent_meanwhile(tmp_path: Path) -> None:
    chain = make_chain(tmp_path, kind="SPARSE")
    with fdstash.open(chain.top, "r+"):
        for path in chain.files()[2:]:
            raw = path == chain.files()[-1]
            ran = qemu_io(path, "write 0 512", format="raw" if raw else "vmdk")
            assert ran.refused_by_a_lock
        assert qemu_io(chain.base, "read 0 512", format="vmdk", options=["-r"]).status == 0
    # By the extent, so that the CID of the base stays as it is.
    assert qemu_io(chain.files()[-1], "write 0 512").status == 0


def test_children_of_one_parent_are_written_side_by_side(tmp_path: Path) -> None:
    chains = [make_chain(tmp_path, names=("vm.vmdk", f"{name}.vmdk")) for name in "abc"]
    images = [fdstash.open(each.top, "r+") for each in chains]
    for number, image in enumerate(images):
        image.pwrite(bytes([number]) * 600, 100)
        image.reopen(cache="none")
    assert locked_bytes(chains[0].base) == sorted(READER_BYTES * 3)
    for number, image in enumerate(images):
        assert image.pread(600, 100) == bytes([number]) * 600
        image.close()


def test_a_reopen_with_another_backing_moves_the_locks(tmp_path: Path, chain: Chain) -> None:
    copy = make_chain(tmp_path / "copy")
    with fdstash.open(chain.top, "r+") as image:
        image.reopen(backing=copy.paths[1])
        assert [locked_bytes(path) for path in chain.files()] == [WRITER_BYTES] * 2 + [[]] * 4
        assert [locked_bytes(path) for path in copy.files()[2:]] == [READER_BYTES] * 4
