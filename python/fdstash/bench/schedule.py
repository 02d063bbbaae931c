"""Which reopens are made, and in which order: the same for every way of reopening."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import NamedTuple

import fdstash
from fdstash.bench.sabotage import Options, sabotages
from fdstash.bench.subject import Made, Subject
from fdstash.bench.target import Target, fresh_stash
from fdstash.errors import OptionError

__all__ = ["KINDS", "Schedule", "Step"]

#: Kinds of reopens, and how often each is made where nothing else is asked for. ``mode`` takes
#: write access away, and the step after it gives it back.
KINDS = {"cache": 10, "same-path": 2, "path": 2, "stash": 2, "mode": 2, "rename": 1, "backing": 1}


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
    image consists of. `kinds`: how often each is made, of those of `KINDS`; None: as those say,
    for what can be done to the image. The same seed gives the same steps.
    """

    def __init__(
        self,
        subject: Subject,
        image: fdstash.Image,
        *,
        caches: list[str],
        reopens: int,
        seed: int,
        kinds: Mapping[str, int] | None = None,
        failures: bool = True,
    ) -> None:
        """Raises `OptionError` for kinds that cannot be."""
        self._subject = subject
        self._files = image.files
        self._caches = caches
        self._reopens = reopens
        self._kinds = self._possible(kinds, has_backing=image.backing is not None)
        self._rng = random.Random(seed)  # noqa: S311 - repeatable, nothing secret
        self._sabotages = sabotages(subject) if failures else []

    def _possible(self, kinds: Mapping[str, int] | None, *, has_backing: bool) -> dict[str, int]:
        impossible = {
            "mode": not self._subject.writable,
            "rename": not self._subject.made,
            "backing": not has_backing,
        }
        if kinds is None:
            return {kind: each for kind, each in KINDS.items() if not impossible.get(kind)}
        for kind in kinds:
            if kind not in KINDS:
                raise OptionError(f"kinds are {', '.join(KINDS)}, not {kind}", option="kinds")
            if impossible.get(kind):
                raise OptionError(f"no {kind} reopen of this image is possible", option="kinds")
        if not any(kinds.values()) or min(kinds.values()) < 0:
            raise OptionError("one kind must be more than 0, and none less", option="kinds")
        return dict(kinds)

    @property
    def refusals(self) -> int:
        """How many failures are made on purpose: each kind at least once."""
        return max(len(self._sabotages), self._reopens // 20) if self._sabotages else 0

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
        (kind,) = rng.choices(list(self._kinds), list(self._kinds.values()))
        return self._step(kind, state.path, cache)

    def _step(self, kind: str, path: str, cache: str) -> Step:
        if kind == "rename" and isinstance(self._subject, Made):
            return Step("renamed", self._rename(self._subject))
        if kind == "backing":
            return Step("backing image", self._backing(cache), in_place_only=True)
        other = self._subject.other_path(path)
        arrangements = {
            "stash": ("stash", self._stash(cache)),
            "mode": ("read-write to read-only", _options(mode="r")),
            "same-path": ("same path", _options(path=path, cache=cache)),
            "path": ("another path", _options(path=other, cache=cache)),
            "cache": ("cache mode", _options(cache=cache)),
        }
        return Step(*arrangements[kind])

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

    def _backing(self, cache: str) -> Callable[[Target], AbstractContextManager[Options]]:
        def arrange(target: Target) -> AbstractContextManager[Options]:
            backing = target.image.backing
            path = backing.files[0].path if backing is not None else None
            return nullcontext({"backing": path, "cache": cache})

        return arrange
