"""An image against a model of its bytes, with reopens that succeed and reopens that fail."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

import fdstash
from fdstash import FDStash, ReopenError
from tests.support.kernel import descriptor_count
from tests.support.machine import CACHES, MODES, RequestMachine

__all__ = ["ImageMachine"]

modes = st.sampled_from([None, *MODES])
caches = st.sampled_from([None, *CACHES])


class ImageMachine(RequestMachine):
    """One image that is reopened in every way."""

    #: Those among `others` that belong to the image itself, not to one below it.
    own: Sequence[str] | None = None

    @property
    def own_files(self) -> list[Path]:
        """Without those of images below."""
        names = self.others if self.own is None else self.own
        return [self.path, *(self.path.parent / name for name in names)]

    def moves(self, home: Path) -> list[tuple[Path, Path]]:
        """Each file, and what it is called in another home."""
        pairs = [(file, home / file.relative_to(self.path.parent)) for file in self.files]
        for _, target in pairs:
            target.parent.mkdir(exist_ok=True)
        return pairs

    @property
    def by_path(self) -> bool:
        """Whether `path=` with the image's own walks the same path again."""
        return self.image.files[0].path == str(self.path)

    def reopen(self, mode: str | None, cache: str | None, **options: Any) -> None:
        self.image.reopen(mode=mode, cache=cache, **options)
        self.mode, self.cache = mode or self.mode, cache or self.cache

    @contextlib.contextmanager
    def refused(self, *codes: int) -> Iterator[None]:
        """A reopen that fails and changes nothing."""
        files = self.image.files
        with pytest.raises(ReopenError) as caught:
            yield
        assert caught.value.rolled_back
        assert caught.value.errno in codes, caught.value
        # Tables that were written back on the way may have made a file longer.
        assert [f._replace(mode="", direct=False, fd=0, size=0) for f in self.image.files] == [
            f._replace(mode="", direct=False, fd=0, size=0) for f in files
        ]

    def prepare(self) -> None:
        """Reads are served while it runs, and a write from it is refused."""
        self.check(self.image.pread(700, 400), 400)
        if self.mode == "r+":
            with pytest.raises(fdstash.ImageIOError) as caught:
                self.image.pwrite(b"x", 0)
            assert caught.value.errno == errno.EDEADLK

    # -- reopens that succeed

    @rule(mode=modes, cache=caches, prepare=st.booleans())
    def reopen_options(self, mode: str | None, cache: str | None, *, prepare: bool) -> None:
        self.reopen(mode, cache, prepare=self.prepare if prepare else None)

    @rule(mode=modes, cache=caches)
    def reopen_own_path(self, mode: str | None, cache: str | None) -> None:
        self.reopen(mode, cache, path=self.path)

    @rule(mode=modes, cache=caches)
    def reopen_hard_link(self, mode: str | None, cache: str | None) -> None:
        home = self.fresh_home()
        for file, target in self.moves(home):
            os.link(file, target)
        self.reopen(mode, cache, path=home / self.path.name)
        self.path = home / self.path.name

    @rule(mode=modes, cache=caches)
    def reopen_renamed(self, mode: str | None, cache: str | None) -> None:
        self.homes += 1
        target = self.path.with_name(f"renamed-{self.homes}.{self.layout}")
        self.path.rename(target)
        self.reopen(mode, cache, path=target)
        self.path = target

    @rule(mode=modes, cache=caches)
    def reopen_copy(self, mode: str | None, cache: str | None) -> None:
        home = self.fresh_home()
        moves = self.moves(home)
        for file, target in moves:
            shutil.copyfile(file, target)
        if self.mode == "r+":  # the copy is old by now
            self.write(*self.place(4000, 3000), 7, fua=False)

        def bring_up_to_date() -> None:
            for file, target in moves:
                target.write_bytes(file.read_bytes())

        self.reopen(mode, cache, path=home / self.path.name, prepare=bring_up_to_date)
        for file, _ in moves:  # whoever still looks there is found out
            file.write_bytes(b"\xee" * file.stat().st_size)
        self.path = home / self.path.name

    @rule(mode=modes, cache=caches)
    def reopen_stash(self, mode: str | None, cache: str | None) -> None:
        with FDStash() as stash:
            for file in self.image.files:
                for access in (os.O_RDONLY, os.O_RDWR):
                    for direct in (0, os.O_DIRECT):
                        stash.add(file.name, os.open(file.name, access | direct))
            held = descriptor_count()
            self.reopen(mode, cache, stash=stash)
            assert descriptor_count() == held

    # -- reopens that fail

    @rule(mode=modes, cache=caches)
    def reopen_missing_path(self, mode: str | None, cache: str | None) -> None:
        with self.refused(errno.ENOENT):
            self.reopen(mode, cache, path=self.path.with_name("missing"))

    @precondition(lambda self: self.by_path)
    @rule(mode=modes, cache=caches, which=st.integers(0, 5))
    def reopen_other_inode(self, mode: str | None, cache: str | None, which: int) -> None:
        file = self.own_files[which % len(self.own_files)]
        aside = file.with_name("aside")
        file.rename(aside)
        try:
            shutil.copyfile(aside, file)
            with self.refused(errno.ESTALE):
                self.reopen(mode, cache, path=self.path)
        finally:
            aside.replace(file)

    @rule(mode=st.sampled_from(MODES), cache=st.sampled_from(CACHES), which=st.integers(0, 5))
    def reopen_wrong_stash(self, mode: str, cache: str, which: int) -> None:
        info = self.image.files[which % len(self.files)]
        other = self.root / "other"
        shutil.copyfile(info.name, other)
        flags = os.O_RDONLY if mode == "r" or self.is_only_read(info.name) else os.O_RDWR
        flags |= os.O_DIRECT if cache in ("none", "directsync") else 0
        with FDStash() as stash:
            stash.give(info.name, os.open(other, flags))
            with self.refused(errno.ESTALE):
                self.reopen(mode, cache, stash=stash)

    @rule(mode=modes, cache=caches, elsewhere=st.booleans())
    def reopen_prepare_raises(
        self, mode: str | None, cache: str | None, *, elsewhere: bool
    ) -> None:
        def refuse() -> None:
            raise KeyError("not now")

        path = None
        if elsewhere:
            home = self.fresh_home()
            for file, target in self.moves(home):
                shutil.copyfile(file, target)
            path = home / self.path.name
        with self.refused(errno.ECANCELED):
            self.reopen(mode, cache, path=path, prepare=refuse)

    # -- another image of the same files

    @rule(mode=st.sampled_from(MODES), cache=st.sampled_from(CACHES))
    def close_and_open(self, mode: str, cache: str) -> None:
        self.image.close()
        assert descriptor_count() == self.before
        self.mode, self.cache = mode, cache
        self.image = self.open()

    @rule(mode=st.sampled_from(MODES), cache=st.sampled_from(CACHES))
    def open_from_stash(self, mode: str, cache: str) -> None:
        with FDStash() as stash:
            self.image.extract_fds(stash)
            assert sorted(stash.names()) == sorted(map(str, self.files))
            self.image.close()
            assert descriptor_count() == self.before + len(self.files)
            self.mode, self.cache = mode, cache
            away = self.path.parent.rename(self.root / "away")
            try:  # nothing is looked up where the stash has it
                self.image = self.open(stash=stash)
            finally:
                away.rename(self.path.parent)
