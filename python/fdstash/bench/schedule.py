"""Which reopens are made, and in which order: the same for every way of reopening."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import NamedTuple

from fdstash.bench.sabotage import Options, sabotages
from fdstash.bench.subject import Made, Subject
from fdstash.bench.target import Target, fresh_stash
from fdstash.hostfile import FileInfo

__all__ = ["Schedule", "Step"]


class Step(NamedTuple):
    """One reopen. `arrange` is entered with the target and gives its options."""

    kind: str
    arrange: Callable[[Target], AbstractContextManager[Options]]
    in_place_only: bool = False  #: means nothing to close-then-open
    refused: bool = False  #: it must fail, and leave the image as it is


def _options(**options: object) -> Callable[[Target], AbstractContextManager[Options]]:
    return lambda _target: nullcontext(dict(options))


class Schedule:
    """`reopens` reopens that must succeed, and between them failures made on purpose.

    `caches` are the modes that the image's file system bears; `files` what the
    image consists of. The same seed gives the same steps.
    """

    def __init__(
        self,
        subject: Subject,
        files: tuple[FileInfo, ...],
        *,
        caches: list[str],
        reopens: int,
        seed: int,
    ) -> None:
        self._subject = subject
        self._files = files
        self._caches = caches
        self._reopens = reopens
        self._rng = random.Random(seed)  # noqa: S311 - repeatable, nothing secret
        self._sabotages = sabotages(subject)

    @property
    def refusals(self) -> int:
        """How many failures are made on purpose: each kind at least once."""
        return max(len(self._sabotages), self._reopens // 20)

    def __len__(self) -> int:
        return self._reopens + self.refusals

    def steps(self, target: Target) -> Iterator[Step]:
        """All of them, as fits how the target is open when the next one is asked for."""
        made = refused = 0
        while made < self._reopens or refused < self.refusals:
            if refused * self._reopens < made * self.refusals or made == self._reopens:
                sabotage = self._sabotages[refused % len(self._sabotages)]
                refused += 1
                yield Step(*sabotage, refused=True)
            else:
                made += 1
                yield self._next(target)

    def _next(self, target: Target) -> Step:
        rng = self._rng
        state = target.state
        cache = rng.choice([name for name in self._caches if name != state.cache])
        if self._subject.writable and state.mode == "r":
            # The load writes, so the image is read-only for one step.
            also = {"cache": cache} if rng.random() < 0.5 else {}
            return Step("read-only to read-write", _options(mode="r+", **also))
        kinds = ["cache mode"] * 10 + ["same path"] * 2 + ["another path"] * 2 + ["stash"] * 2
        if self._subject.writable:
            kinds += ["read-write to read-only"] * 2
        if self._subject.made:
            kinds += ["renamed"]
        kind = rng.choice(kinds)
        return Step(kind, self._arrangement(kind, state.path, cache))

    def _arrangement(
        self, kind: str, path: str, cache: str
    ) -> Callable[[Target], AbstractContextManager[Options]]:
        if kind == "stash":
            return self._stash(cache)
        if kind == "renamed" and isinstance(self._subject, Made):
            return self._rename(self._subject)
        if kind == "read-write to read-only":
            return _options(mode="r")
        if kind == "same path":
            return _options(path=path, cache=cache)
        if kind == "another path":
            return _options(path=self._subject.other_path(path), cache=cache)
        return _options(cache=cache)

    def _stash(self, cache: str) -> Callable[[Target], AbstractContextManager[Options]]:
        @contextmanager
        def arrange(target: Target) -> Iterator[Options]:
            with fresh_stash(target.files(), self._files, target.state.mode, cache) as stash:
                yield {"stash": stash, "cache": cache}

        return arrange

    def _rename(self, subject: Made) -> Callable[[Target], AbstractContextManager[Options]]:
        @contextmanager
        def arrange(target: Target) -> Iterator[Options]:
            with subject.renamed(target.state.path) as path:
                yield {"path": path}

        return arrange
