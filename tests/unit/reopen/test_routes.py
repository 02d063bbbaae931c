"""By which route a file gets its new description, and what the report says of it."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path

import pytest

from fdstash import FDStash, Image
from fdstash.datapath import Requests
from fdstash.report import PHASES
from tests.support.disks import FlatDisk
from tests.support.kernel import same_description
from tests.support.refusals import Snapshot
from tests.support.requests import request_in_flight
from tests.support.seen import assert_as_kernel_says

pytestmark = pytest.mark.usefixtures("no_descriptor_leaks")


def test_a_reopen_that_changes_nothing_keeps_every_description(image: Image) -> None:
    with Snapshot(image) as before:
        report = image.reopen()
        assert set(report.routes.values()) == {"keep"}
        assert report.files_changed == 0
        before.assert_same()


def test_a_cache_toggle_sets_flags_and_keeps_the_descriptions(image: Image) -> None:
    with Snapshot(image) as before:
        for cache in ("none", "writeback"):
            report = image.reopen(cache=cache)
            assert set(report.routes.values()) == {"setfl"}
            assert report.files_changed == len(image.files)
            assert_as_kernel_says(image)
        before.assert_same()


def test_another_mode_is_a_new_description_through_proc(image: Image) -> None:
    with Snapshot(image) as before:
        for mode in ("r", "r+"):
            report = image.reopen(mode=mode)
            assert set(report.routes.values()) == {"proc"}
            assert report.files_changed == len(image.files)
            assert {file.mode for file in image.files} == {mode}
            assert_as_kernel_says(image)
            for file, copy in zip(image.files, before.copies, strict=True):
                assert not same_description(file.fd, copy)
        before.assert_same(descriptions=False)


def test_the_own_path_is_walked_again(image: Image) -> None:
    assert image.files[0].path is not None
    report = image.reopen(path=image.files[0].path)
    assert set(report.routes.values()) == {"path"}
    assert report.files_changed == len(image.files)


def test_a_stash_serves_the_files_that_it_holds_and_other_routes_the_rest(
    image: Image, flat: FlatDisk, stash: FDStash
) -> None:
    stash.give(str(flat.files[2]), os.open(flat.files[2], os.O_RDONLY))
    stash.give(flat.files[4].name, os.open(flat.files[4], os.O_RDONLY))  # by its last component
    routes = image.reopen(mode="r", stash=stash).routes
    by_name = {Path(name).name: route for name, route in routes.items()}
    assert by_name == {
        "disk.vmdk": "proc",
        "disk-a.bin": "proc",
        "disk-b.bin": "stash",
        "disk-c.bin": "proc",
        "disk-d.bin": "stash",
    }
    copy = stash.dup(str(flat.files[2]))
    assert same_description(copy, image.files[2].fd)
    os.close(copy)


def test_a_stash_without_the_mode_wanted_leaves_it_to_the_other_routes(
    image: Image, flat: FlatDisk, stash: FDStash
) -> None:
    for path in flat.files:
        stash.give(str(path), os.open(path, os.O_RDWR))
    assert set(image.reopen(mode="r", stash=stash).routes.values()) == {"proc"}


def test_the_report_tells_routes_phases_and_requests(image: Image) -> None:
    report = image.reopen(mode="r")
    assert list(report.routes) == [file.name for file in image.files]
    assert tuple(report.phases) == PHASES
    assert all(time_ns >= 0 for time_ns in report.phases.values())
    assert sum(report.phases.values()) == report.total_ns > 0
    assert report.requests_in_flight == 0
    assert report.close_errors == ()
    assert report.warnings == ()
    assert f"{len(image.files)} of {len(image.files)} files changed (proc)" in repr(report)


def test_the_report_counts_the_requests_in_flight(raw_image: Image) -> None:
    with ExitStack() as requests:
        for _ in range(3):
            requests.enter_context(request_in_flight(raw_image, Requests.READS))
        assert raw_image.reopen(cache="none").requests_in_flight == 3
    assert raw_image.reopen(cache="writeback").requests_in_flight == 0


def test_a_reopen_moves_no_slot(image: Image) -> None:
    slots = [file.fd for file in image.files]
    for options in ({"mode": "r"}, {"cache": "none"}, {"mode": "r+"}, {"cache": "unsafe"}):
        image.reopen(**options)
        assert [file.fd for file in image.files] == slots
