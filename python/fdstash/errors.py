"""The exception tree.

Two roots meet here. What the operating system refused is an `OSError`, with
`errno` and `filename`; what the bytes of an image say wrongly is a `ValueError`.
All of it is an `Error`.

Every class that stems from `OSError` is also the builtin that Python gives its
errno: ``ImageIOError(errno.ENOENT, "no such extent", path)`` is caught by
``except FileNotFoundError`` as well. The object then belongs to a subclass made
on demand, which carries the public class's name and pickles as that class.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Self, TypeVar

__all__ = [
    "ClosedError",
    "Error",
    "FormatError",
    "ImageIOError",
    "LockError",
    "NotAFileError",
    "OptionError",
    "RefusedError",
    "ReopenError",
    "UnsupportedFormatError",
    "os_error",
]

_Filename = str | bytes | os.PathLike[Any] | int | None


class Error(Exception):
    """The root of all that this package raises on purpose."""


_combined: dict[tuple[type[OSError], type[OSError]], type[OSError]] = {}


def _with_builtin(cls: type[OSError], code: object) -> type[OSError]:
    """The subclass of `cls` that is also the builtin for the errno `code`."""
    builtin = type(OSError(code, "")) if isinstance(code, int) else OSError
    if issubclass(cls, builtin):
        return cls
    made = _combined.get((cls, builtin))
    if made is None:
        body = {
            "__module__": cls.__module__,
            "__qualname__": cls.__qualname__,
            "__doc__": cls.__doc__,
            "_public": cls,
        }
        made = _combined.setdefault((cls, builtin), type(cls.__name__, (cls, builtin), body))
    return made


def _rebuild(cls: type[_SystemError], args: tuple[Any, ...], state: Mapping[str, Any]) -> Any:
    error = cls(*args)
    error.__dict__.update(state)
    return error


class _SystemError(Error, OSError):
    """What a system call refused. See the module for the builtin it also is."""

    _public: type[_SystemError] | None = None

    def __new__(cls, *args: Any, **_keywords: Any) -> Self:
        # `OSError.__new__` is what stores errno, strerror and filename, since
        # this class has a `__new__` of its own; `OSError.__init__` does nothing.
        combined = _with_builtin(cls, args[0] if len(args) > 1 else None)
        plain = [os.fspath(arg) if isinstance(arg, os.PathLike) else arg for arg in args]
        return super().__new__(combined, *plain)  # type: ignore[return-value]

    def __reduce__(self) -> tuple[Any, ...]:
        args = self.args
        if self.filename2 is not None:
            args = (*args, self.filename, None, self.filename2)
        elif self.filename is not None:
            args = (*args, self.filename)
        return _rebuild, (self._public or type(self), args, dict(self.__dict__))


class ImageIOError(_SystemError):
    """A system call on a file of an image failed: `errno`, `strerror`, `filename`."""


class LockError(_SystemError):
    """An image lock could not be taken, or another program holds one in conflict."""


class ReopenError(_SystemError):
    """A reopen was refused or failed.

    `phase` names the step that failed (``"acquire"``, ``"check"``, ...), `file`
    the file it failed on (None when it was not about one file), and
    `rolled_back` says whether the image is as it was before the call.
    """

    phase: str
    file: str | None
    rolled_back: bool

    def __init__(
        self,
        code: int,
        message: str,
        filename: _Filename = None,
        *,
        phase: str = "",
        file: str | None = None,
        rolled_back: bool = True,
    ) -> None:
        super().__init__(code, message, filename)
        if file is None and filename is not None and not isinstance(filename, int):
            file = os.fsdecode(filename)
        self.phase = phase
        self.file = file
        self.rolled_back = rolled_back

    def __str__(self) -> str:
        text = super().__str__()
        if self.filename is None and self.file is not None:
            text = f"{text}: {self.file!r}"
        phase = f"in phase {self.phase}; " if self.phase else ""
        outcome = "rolled back" if self.rolled_back else "NOT rolled back"
        return f"{text} ({phase}the image was {outcome})"


class RefusedError(Error, PermissionError):
    """The resolver does not let a header name this file; errno is EACCES."""


class FormatError(Error, ValueError):
    """The bytes of an image are wrong, or not what was asked for.

    `file` is the name of the file, `offset` where in that file the wrong bytes
    are (bytes), `field` what they should have been; each is None when it does
    not apply. `message` says what is wrong and, where possible, what to do.
    """

    message: str
    file: str | None
    offset: int | None
    field: str | None

    def __init__(
        self,
        message: str,
        *,
        file: str | None = None,
        offset: int | None = None,
        field: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.file = file
        self.offset = offset
        self.field = field

    def __str__(self) -> str:
        parts = []
        if self.file is not None:
            parts.append(self.file if self.file.isprintable() else repr(self.file))
        where = [f"at byte {self.offset}"] if self.offset is not None else []
        if self.field is not None:
            where.append(f"field {self.field}")
        if where:
            parts.append(", ".join(where))
        return ": ".join([*parts, self.message])


class UnsupportedFormatError(FormatError):
    """The bytes are understood well enough to say that they cannot be opened."""


class NotAFileError(ImageIOError, FormatError):
    """A header names what is neither a regular file nor a block device, or leads round in links.

    `filename` is what it names, with the `errno` of the refusal; `file`, `offset`
    and `field` are where it is named.
    """

    def __init__(
        self,
        code: int,
        message: str,
        filename: _Filename = None,
        *,
        file: str | None = None,
        offset: int | None = None,
        field: str | None = None,
    ) -> None:
        FormatError.__init__(self, message, file=file, offset=offset, field=field)

    def __str__(self) -> str:
        where = f"{self.file}, field {self.field}: " if self.file is not None else ""
        return where + OSError.__str__(self)


class OptionError(Error, ValueError):
    """An option has a name or a value that the call does not take.

    `option` is its name.
    """

    option: str | None

    def __init__(self, message: str, *, option: str | None = None) -> None:
        super().__init__(message)
        self.option = option


class ClosedError(Error, ValueError):
    """The object was closed, or belongs to a process that this one was forked from."""


_SystemErrorT = TypeVar("_SystemErrorT", bound=_SystemError)


def os_error(
    code: int,
    filename: _Filename = None,
    message: str | None = None,
    cls: type[_SystemErrorT] = ImageIOError,  # type: ignore[assignment]
) -> _SystemErrorT:
    """A `cls` for the errno `code` (positive), with the system's text for it.

    `message` is put before that text: ``os_error(ENOENT, path, "open extent")``
    reads ``[Errno 2] open extent: No such file or directory: 'path'``.
    """
    text = os.strerror(code)
    if message is not None:
        text = f"{message}: {text}"
    return cls(code, text) if filename is None else cls(code, text, filename)
