"""Which formats there are, which of them can be opened, and how to tell them apart."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from fdstash.errors import OptionError, UnsupportedFormatError
from fdstash.formats import raw
from fdstash.formats.base import Format, shown
from fdstash.formats.options import CreateOption
from fdstash.formats.raw import Raw
from fdstash.formats.signatures import SIGNATURES
from fdstash.formats.vmdk import create as vmdk_create
from fdstash.formats.vmdk.disk import Vmdk
from fdstash.formats.vmdk.magic import sparse_variant

__all__ = [
    "HEAD_BYTES",
    "TAIL_BYTES",
    "Creator",
    "Recognised",
    "create_driver",
    "driver",
    "names",
    "probe",
    "recognise",
    "supported",
]

#: How many bytes of a file's start and end `probe` is to be given (all, if it has fewer).
HEAD_BYTES = 2048
TAIL_BYTES = 512


class Recognised(NamedTuple):
    """What a file was recognised as."""

    name: str  #: the format's name, as in `names`
    title: str  #: what a message calls it, with the variant where it is known
    confidence: int  #: 1 (nothing better) to 100 (a magic number)


class Creator(NamedTuple):
    """How an image of a format is made."""

    create: Callable[..., None]  #: (path, size, **options)
    options: Mapping[str, CreateOption]
    #: Whether images with these options are written once and whole: then `create` takes
    #: `content` too, pairs of an offset and bytes in ascending order.
    in_one_pass: Callable[[Mapping[str, object]], bool] | None = None


_DRIVERS: dict[str, type[Format]] = {"raw": Raw, "vmdk": Vmdk}
_CREATORS: dict[str, Creator] = {
    "raw": Creator(raw.create, raw.CREATE_OPTIONS),
    "vmdk": Creator(
        vmdk_create.create,
        vmdk_create.CREATE_OPTIONS,
        lambda options: options.get("subformat") == "streamOptimized",
    ),
}
_NAMES = tuple(sorted({*_DRIVERS, *(signature.name for signature in SIGNATURES)}))
_OPENS = "this version opens raw and VMDK"


def names() -> tuple[str, ...]:
    """Every format that is recognised, whether it can be opened or not, sorted."""
    return _NAMES


def supported() -> tuple[str, ...]:
    """The formats that can be opened, sorted."""
    return tuple(sorted(_DRIVERS))


def recognise(head: bytes, tail: bytes, size: int, filename: str) -> Recognised:
    """What a file of `size` bytes is, judged by its first and last bytes; raw if nothing else."""
    best = Recognised("raw", "raw", 0)
    for name, candidate in _DRIVERS.items():
        confidence = candidate.recognise(head, tail, size, filename)
        if confidence > best.confidence:
            best = Recognised(name, _title(name, head), confidence)
    for signature in SIGNATURES:
        if best.confidence < 100 and signature.matches(head, tail):
            best = Recognised(signature.name, signature.title, 100)
    return best


def probe(head: bytes, tail: bytes, size: int, filename: str) -> str:
    """The name of the format of a file of `size` bytes, by its first and last bytes.

    ``driver(probe(...))`` raises the error that names a format that cannot be
    opened. Anybody who writes to a raw disk can make it look like another format;
    hence no *writable* image is to be opened by a guess that it is raw.
    """
    return recognise(head, tail, size, filename).name


def driver(name: str, file: str | None = None) -> type[Format]:
    """The driver for the format `name`; `file` is what the error is to name.

    Raises `UnsupportedFormatError` for a format that is only recognised, and
    `OptionError` for a name that is unknown.
    """
    found = _DRIVERS.get(name)
    if found is None:
        raise _missing(name, "opened", file)
    return found


def create_driver(name: str) -> Creator:
    """How to make an image of the format `name`. Raises as `driver` does."""
    found = _CREATORS.get(name)
    if found is None:
        raise _missing(name, "created", None)
    return found


def _missing(name: str, verb: str, file: str | None) -> UnsupportedFormatError | OptionError:
    if name in _NAMES:
        return UnsupportedFormatError(
            f"recognised as {name}, which cannot be {verb} yet; {_OPENS}",
            file=file,
            field="format",
        )
    return OptionError(
        f"there is no format {shown(name)}; known are {', '.join(_NAMES)}", option="format"
    )


def _title(name: str, head: bytes) -> str:
    if name == "vmdk":
        return f"VMDK ({sparse_variant(head) or 'descriptor'})"
    return name
