from __future__ import annotations

import copy
import errno
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest

from fdstash.errors import (
    ClosedError,
    Error,
    FormatError,
    ImageIOError,
    LockError,
    OptionError,
    RefusedError,
    ReopenError,
    UnsupportedFormatError,
    os_error,
)

FROM_SYSTEM = (ImageIOError, LockError, ReopenError)
# What Python's documentation gives for each errno.
BUILTINS = {
    errno.ENOENT: FileNotFoundError,
    errno.EACCES: PermissionError,
    errno.EPERM: PermissionError,
    errno.EAGAIN: BlockingIOError,
    errno.EINPROGRESS: BlockingIOError,
    errno.ETIMEDOUT: TimeoutError,
    errno.EINTR: InterruptedError,
    errno.EEXIST: FileExistsError,
    errno.EISDIR: IsADirectoryError,
    errno.ENOTDIR: NotADirectoryError,
    errno.EPIPE: BrokenPipeError,
    errno.ECONNRESET: ConnectionResetError,
    errno.EIO: OSError,
    errno.EMFILE: OSError,
}
EXAMPLES = [
    ImageIOError(errno.ENOENT, "no such extent", "/a/b"),
    ImageIOError(errno.EIO, "bad sector", b"/raw\xff"),
    ImageIOError(errno.EXDEV, "rename", "/a", None, "/b"),
    ImageIOError("only a message"),
    LockError(errno.EAGAIN, "in use"),
    ReopenError(errno.ETIMEDOUT, "still busy", "/a", phase="gate", rolled_back=True),
    ReopenError(errno.EINVAL, "bad header", phase="check", file="extent.vmdk", rolled_back=False),
    RefusedError(errno.EACCES, "outside the folder", "../x"),
    FormatError("wrong", file="a.vmdk", offset=0, field="magic"),
    UnsupportedFormatError("later", file="a.qcow2"),
    OptionError("no such option", option="colour"),
    ClosedError("the image is closed"),
]


@pytest.mark.parametrize("cls", FROM_SYSTEM)
@pytest.mark.parametrize("code", BUILTINS, ids=lambda code: errno.errorcode[code])
def test_an_error_is_the_builtin_of_its_errno(cls: type[OSError], code: int) -> None:
    error = cls(code, "text", "/some/file")
    assert isinstance(error, cls)
    assert isinstance(error, Error)
    assert isinstance(error, BUILTINS[code])
    assert type(OSError(code, "")) in type(error).__mro__
    assert (error.errno, error.strerror, error.filename) == (code, "text", "/some/file")


@pytest.mark.parametrize("cls", FROM_SYSTEM)
def test_the_combined_class_goes_by_the_public_name(cls: type[OSError]) -> None:
    made = type(cls(errno.ENOENT, "text"))
    assert made is type(cls(errno.ENOENT, "other text"))
    assert (made.__name__, made.__qualname__) == (cls.__name__, cls.__qualname__)
    assert made.__module__ == "fdstash.errors"


def test_an_error_is_no_builtin_of_another_errno() -> None:
    assert not isinstance(ImageIOError(errno.ENOENT, "text"), PermissionError)
    assert type(ImageIOError(errno.EIO, "text")) is ImageIOError
    assert type(ImageIOError("text")) is ImageIOError


def test_a_subclass_is_combined_as_well() -> None:
    class Mine(ImageIOError):
        pass

    error = Mine(errno.ENOENT, "text", "/f")
    assert isinstance(error, Mine)
    assert isinstance(error, FileNotFoundError)


@pytest.mark.parametrize("error", EXAMPLES, ids=repr)
@pytest.mark.parametrize(
    "again",
    [
        copy.copy,
        copy.deepcopy,
        *(
            lambda error, p=protocol: pickle.loads(pickle.dumps(error, p))
            for protocol in range(pickle.HIGHEST_PROTOCOL + 1)
        ),
    ],
)
def test_a_copy_says_the_same(error: Exception, again: Callable[[Exception], Exception]) -> None:
    other = again(error)
    assert type(other) is type(error)
    assert str(other) == str(error)
    assert other.args == error.args
    assert vars(other) == vars(error)
    if isinstance(error, OSError):
        assert isinstance(other, OSError)
        assert (other.errno, other.filename, other.filename2) == (
            error.errno,
            error.filename,
            error.filename2,
        )


def test_notes_survive_pickling() -> None:
    error = ImageIOError(errno.ENOENT, "text", "/f")
    error.add_note("while opening extent 3")
    assert pickle.loads(pickle.dumps(error)).__notes__ == ["while opening extent 3"]


def test_text_names_errno_and_file() -> None:
    assert str(ImageIOError(errno.ENOENT, "gone", "/a")) == "[Errno 2] gone: '/a'"
    assert str(os_error(errno.EIO, "/a")) == "[Errno 5] Input/output error: '/a'"
    assert str(os_error(errno.EIO)) == "[Errno 5] Input/output error"
    assert (
        str(os_error(errno.ENOENT, Path("/a"), "open extent"))
        == "[Errno 2] open extent: No such file or directory: '/a'"
    )


def test_os_error_makes_the_class_asked_for() -> None:
    error = os_error(errno.EAGAIN, "/a", cls=LockError)
    assert isinstance(error, LockError)
    assert isinstance(error, BlockingIOError)


def test_a_reopen_error_says_phase_file_and_outcome() -> None:
    error = ReopenError(errno.ENOENT, "gone", "/x/extent.vmdk", phase="acquire")
    assert (error.phase, error.file, error.rolled_back) == ("acquire", "/x/extent.vmdk", True)
    assert str(error) == (
        "[Errno 2] gone: '/x/extent.vmdk' (in phase acquire; the image was rolled back)"
    )
    error = ReopenError(errno.EINVAL, "bad", phase="reload", file="e", rolled_back=False)
    assert error.filename is None
    assert str(error).endswith("bad: 'e' (in phase reload; the image was NOT rolled back)")
    assert ReopenError(errno.EINVAL, "bad", b"/by/tes").file == "/by/tes"
    assert ReopenError(errno.EINVAL, "bad").file is None


def test_a_refusal_is_a_permission_error() -> None:
    error = RefusedError(errno.EACCES, "outside", "../x")
    assert isinstance(error, Error)
    assert isinstance(error, PermissionError)
    assert error.errno == errno.EACCES
    assert error.filename == "../x"


@pytest.mark.parametrize(
    ("keywords", "text"),
    [
        ({}, "wrong"),
        ({"file": "a"}, "a: wrong"),
        ({"file": "a", "offset": 0}, "a: at byte 0: wrong"),
        ({"file": "a", "field": "f"}, "a: field f: wrong"),
        ({"file": "a", "offset": 7, "field": "f"}, "a: at byte 7, field f: wrong"),
        ({"offset": 7}, "at byte 7: wrong"),
        ({"file": "a\nb\udcff"}, "'a\\nb\\udcff': wrong"),
    ],
)
def test_a_format_error_says_what_is_where(keywords: dict[str, object], text: str) -> None:
    error = FormatError("wrong", **keywords)  # type: ignore[arg-type]
    assert str(error) == text
    assert error.message == "wrong"
    assert (error.file, error.offset, error.field) == (
        keywords.get("file"),
        keywords.get("offset"),
        keywords.get("field"),
    )


def test_wrong_bytes_options_and_closed_objects_are_value_errors() -> None:
    for of_bytes in (FormatError, UnsupportedFormatError, OptionError, ClosedError):
        assert issubclass(of_bytes, Error)
        assert issubclass(of_bytes, ValueError)
    for of_system in (*FROM_SYSTEM, RefusedError):
        assert issubclass(of_system, Error)
        assert issubclass(of_system, OSError)
