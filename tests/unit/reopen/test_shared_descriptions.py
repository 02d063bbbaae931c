"""A description that others may hold too is replaced, and its flags are left alone."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

import fdstash
from fdstash import ClosedError, FDStash, Image, reopen_all
from tests.support.disks import FlatDisk
from tests.support.kernel import getfl, open_descriptors, same_description

pytestmark = pytest.mark.usefixtures("no_descriptor_leaks")


def test_after_extract_fds_flags_are_changed_by_new_descriptions(
    image: Image, stash: FDStash
) -> None:
    image.extract_fds(stash)
    assert stash.names() == [file.name for file in image.files]
    copies = [stash.take(name) for name in stash.names()]
    assert all(map(same_description, copies, (file.fd for file in image.files)))
    assert set(image.reopen(cache="none").routes.values()) == {"proc"}
    for copy in copies:
        assert not getfl(copy) & os.O_DIRECT
        os.close(copy)
    # The new descriptions are the image's own again.
    assert set(image.reopen(cache="writeback").routes.values()) == {"setfl"}


def test_a_received_description_is_never_changed(raw: Path) -> None:
    fd = os.open(raw, os.O_RDWR)
    with fdstash.open(fd, "r+", format="raw") as image:
        assert set(image.reopen(cache="none").routes.values()) == {"proc"}
        assert not getfl(fd) & os.O_DIRECT
    os.close(fd)


def test_a_description_from_a_stash_is_never_changed(
    raw_image: Image, raw: Path, stash: FDStash
) -> None:
    stash.give(str(raw), os.open(raw, os.O_RDONLY))
    raw_image.reopen(mode="r", stash=stash)
    assert set(raw_image.reopen(cache="none").routes.values()) == {"proc"}
    copy = stash.dup(str(raw))
    assert not getfl(copy) & os.O_DIRECT
    os.close(copy)


def test_extract_fds_that_fails_gives_the_stash_nothing(image: Image) -> None:
    stash = FDStash()
    stash.close()
    before = open_descriptors()
    with pytest.raises(ClosedError):
        image.extract_fds(stash)
    assert open_descriptors() == before


def test_the_way_of_the_rfc_opens_the_image_again_from_what_was_extracted(
    image: Image, stash: FDStash, flat: FlatDisk
) -> None:
    image.pwrite(b"before", 20000)
    image.extract_fds(stash)
    image.close()
    for path in flat.files:
        path.rename(path.with_suffix(".moved"))
    with fdstash.open(flat.path, "r+", stash=stash) as again:
        assert again.pread(6, 20000) == b"before"
        assert len(stash) == len(flat.files)


def test_a_forked_child_can_neither_use_nor_reopen_the_image(image: Image) -> None:
    calls: list[Callable[[], object]] = [
        lambda: image.pread(1, 0),
        lambda: image.pwrite(b"x", 0),
        lambda: image.reopen(mode="r"),
        lambda: reopen_all([(image, {})]),
        lambda: image.files,
    ]
    slots = [file.fd for file in image.files]
    child = os.fork()
    if child == 0:
        status = 0
        for number, call in enumerate(calls):
            try:
                call()
            except ClosedError:
                continue
            except BaseException:  # noqa: BLE001 - a child that must not return
                status = 10 + number
            else:
                status = 50 + number
        for slot in slots:
            if os.path.exists(f"/proc/self/fd/{slot}"):
                status = 100
        os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    # The fork may have handed descriptions out: flags are not changed under others.
    assert set(image.reopen(cache="none").routes.values()) == {"proc"}
    assert set(image.reopen(cache="writeback").routes.values()) == {"setfl"}
