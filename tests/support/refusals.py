"""Calls that must fail: what they say, and that a reopen leaves everything as it was."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Self

import pytest

from fdstash import Image, ImageIOError, ReopenError
from fdstash.report import PHASES
from tests.support.kernel import open_descriptors, same_description
from tests.support.seen import assert_as_kernel_says, locked_bytes

__all__ = ["Snapshot", "failed_with", "refused"]


def failed_with(call: Callable[[], object]) -> int | None:
    """The errno of the ImageIOError with which the call must fail."""
    with pytest.raises(ImageIOError) as caught:
        call()
    return caught.value.errno


class Snapshot:
    """All that a failed reopen must leave as it was."""

    def __init__(self, image: Image) -> None:
        self.image = image
        self.seen = self._look()
        # Dups of the slots: after a failure they are still the same descriptions.
        self.copies = [os.dup(file.fd) for file in image.files]

    def _look(self) -> tuple[object, ...]:
        image = self.image
        locks = [locked_bytes(file.fd) for file in image.files]
        data = image.pread(image.size, 0)
        return image.mode, image.cache, image.format, image.files, locks, data

    def assert_same(self, *, descriptions: bool = True) -> None:
        before = self.seen
        assert self._look() == before
        assert_as_kernel_says(self.image)
        slots = [file.fd for file in self.image.files]
        if descriptions:
            assert all(map(same_description, slots, self.copies))
        if self.image.mode == "r+":
            for offset in (0, self.image.size - 3):
                self.image.pwrite(self.image.pread(3, offset), offset)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for copy in self.copies:
            os.close(copy)


def refused(image: Image, **options: Any) -> ReopenError:
    """Reopen, which must fail and leave everything as it was."""
    with Snapshot(image) as before:
        descriptors = open_descriptors()
        with pytest.raises(ReopenError) as caught:
            image.reopen(**options)
        assert open_descriptors() == descriptors
        before.assert_same()
    assert caught.value.rolled_back
    assert caught.value.phase in PHASES
    assert "rolled back" in str(caught.value)
    return caught.value
