"""Several images change together, or none of them."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

import fdstash
from fdstash import ClosedError, Image, OptionError, ReopenError, reopen_all
from fdstash.datapath import Requests
from tests.support.disks import make_flat, make_raw
from tests.support.images import SIZE
from tests.support.refusals import Snapshot
from tests.support.requests import request_in_flight

pytestmark = pytest.mark.usefixtures("no_descriptor_leaks")


def test_several_images_change_together(image: Image, raw_image: Image) -> None:
    reports = reopen_all([(image, {"mode": "r"}), (raw_image, {"cache": "none"})])
    assert [len(report.routes) for report in reports] == [5, 1]
    assert set(reports[0].routes.values()) == {"proc"}
    assert set(reports[1].routes.values()) == {"setfl"}
    assert (image.mode, image.cache, raw_image.mode, raw_image.cache) == (
        *("r", "writeback"),
        *("r+", "none"),
    )
    assert reopen_all([]) == []


def fail_in(phase: str, raw: Path) -> dict[str, Any]:
    """Options with which the reopen of a raw image fails in that phase."""
    if phase == "acquire":
        return {"path": raw.with_name("none")}
    if phase == "prove":
        return {"path": make_raw(raw.parent, SIZE // 2, name="short.raw")}
    if phase == "gate":
        return {"mode": "r"}

    def prepare() -> None:
        raise RuntimeError("on purpose")

    return {"prepare": prepare}


@pytest.mark.parametrize("phase", ["acquire", "prove", "gate", "prepare"])
@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("other", [{"mode": "r", "cache": "none"}, {"path": "copy/disk.vmdk"}])
def test_none_changes_where_one_fails(
    image: Image, raw_image: Image, phase: str, place: int, other: dict[str, str]
) -> None:
    raw = Path(raw_image.name)
    folder = raw.parent / "copy"
    make_flat(folder)
    if "path" in other:
        other = {"path": str(raw.parent / other["path"])}
    pairs: list[tuple[Image, dict[str, Any]]] = [(image, other)]
    pairs.insert(place, (raw_image, fail_in(phase, raw)))
    with Snapshot(image) as one, Snapshot(raw_image) as two:
        with ExitStack() as requests:
            if phase == "gate":
                requests.enter_context(request_in_flight(raw_image, Requests.WRITES))
            with pytest.raises(ReopenError) as caught:
                reopen_all(pairs, timeout=0.2)
        assert caught.value.phase == phase
        assert caught.value.rolled_back
        one.assert_same()
        two.assert_same()


def test_an_image_named_twice_is_an_error_and_nothing_changes(image: Image) -> None:
    with Snapshot(image) as before:
        with pytest.raises(OptionError):
            reopen_all([(image, {"mode": "r"}), (image, {"cache": "none"})])
        before.assert_same()


def test_an_image_that_is_closed_stops_all(image: Image, raw: Path) -> None:
    closed = fdstash.open(raw)
    closed.close()
    for pairs in ([(image, {"mode": "r"}), (closed, {})], [(closed, {}), (image, {"mode": "r"})]):
        with Snapshot(image) as before:
            with pytest.raises(ClosedError):
                reopen_all(pairs)
            before.assert_same()
    image.reopen(mode="r")  # no lock was left behind


def test_options_that_cannot_be_stop_all_before_anything_changes(
    image: Image, raw_image: Image
) -> None:
    with Snapshot(image) as before:
        with pytest.raises(OptionError):
            reopen_all([(image, {"mode": "r"}), (raw_image, {"mode": "x"})])
        with pytest.raises(TypeError):
            reopen_all([(image, {"mode": "r"}), (raw_image, {"colour": "x"})])
        before.assert_same()
    image.reopen(mode="r")
    raw_image.reopen(mode="r")
