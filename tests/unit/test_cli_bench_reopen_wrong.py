"""`fdstash bench reopen` must see what goes wrong: broken ways to reopen, and spoiled bytes."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest

import fdstash
from fdstash.bench import reopen as engine
from fdstash.bench.subject import default_folder
from fdstash.bench.target import ReopenTarget
from tests.support.command import fdstash_json

#: All that is 0 where nothing is wrong.
FIGURES = (
    "failed_reopens",
    "failed_requests",
    "wrong_blocks",
    "lost_images",
    "leaked_descriptors",
)


@pytest.fixture
def folder() -> Iterator[Path]:
    """Where images are made, whose every block is written: not on a slow disk."""
    with tempfile.TemporaryDirectory(prefix="fdstash-test-", dir=default_folder()) as name:
        yield Path(name)


class Leaking(ReopenTarget):
    """Leaves a descriptor open after a failure."""

    leaked: ClassVar[list[int]] = []

    def reopen(self, options: Mapping[str, Any]) -> int:
        try:
            return super().reopen(options)
        except fdstash.Error:
            self.leaked.append(os.open("/dev/null", os.O_RDONLY))
            raise


class Changing(ReopenTarget):
    """Leaves the image in another cache mode after a failure."""

    def reopen(self, options: Mapping[str, Any]) -> int:
        try:
            return super().reopen(options)
        except fdstash.Error:
            direct = self.image.files[0].direct
            self.image.reopen(cache="writeback" if direct else "none")
            raise


class Careless(ReopenTarget):
    """Takes whatever it finds, and refuses nothing."""

    def reopen(self, options: Mapping[str, Any]) -> int:
        try:
            return super().reopen(options)
        except fdstash.Error:
            return 1


class Failing(ReopenTarget):
    """Cannot change cache modes."""

    def reopen(self, options: Mapping[str, Any]) -> int:
        if set(options) == {"cache"}:
            raise fdstash.ReopenError(5, "broken")
        return super().reopen(options)


@pytest.mark.parametrize(
    ("target", "figure"),
    [
        (Leaking, "leaked_descriptors"),
        (Changing, "lost_images"),
        (Failing, "failed_reopens"),
        (Careless, None),
    ],
)
def test_what_goes_wrong_is_found(
    monkeypatch: pytest.MonkeyPatch, folder: Path, target: type[ReopenTarget], figure: str | None
) -> None:
    monkeypatch.setattr(engine, "ReopenTarget", target)
    arguments = ("--reopens", "20", "--extents", "3", "--no-naive", "--dir", folder)
    found = fdstash_json("bench", "reopen", *arguments, code=1)
    for fd in Leaking.leaked:
        os.close(fd)
    Leaking.leaked.clear()
    assert found["clean"] is False
    if figure is None:
        assert found["refused_on_purpose"] < found["made_on_purpose"]
    else:
        assert found[figure] > 0
        assert not any(found[each] for each in FIGURES if each != figure)


def test_wrong_bytes_are_found(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    class Spoiling(ReopenTarget):
        def reopen(self, options: Mapping[str, Any]) -> int:
            done = super().reopen(options)
            if self.state.mode == "r+":
                self.image.pwrite(b"\xff", 12345)
            return done

    monkeypatch.setattr(engine, "ReopenTarget", Spoiling)
    arguments = ("--reopens", "30", "--extents", "1", "--no-naive", "--dir", folder)
    found = fdstash_json("bench", "reopen", *arguments, code=1)
    assert found["wrong_blocks"] > 0


def test_failed_requests_are_counted(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    class Forgetting(ReopenTarget):
        """Takes write access away and does not tell the load."""

        def reopen(self, options: Mapping[str, Any]) -> int:
            self.image.reopen(mode="r")
            time.sleep(0.02)
            self.image.reopen(mode=self.state.mode)
            return super().reopen(options)

    monkeypatch.setattr(engine, "ReopenTarget", Forgetting)
    arguments = ("--reopens", "10", "--extents", "1", "--no-naive", "--dir", folder)
    found = fdstash_json("bench", "reopen", "--no-failures", *arguments, code=1)
    assert found["failed_requests"] > 0
    assert found["wrong_blocks"] == found["lost_images"] == 0
