"""Options of `open` and `create`: which there are, and whether a value fits.

Sizes are bytes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Literal, NamedTuple

from fdstash.errors import OptionError
from fdstash.formats.base import MAX_OFFSET

__all__ = [
    "PREALLOCATION",
    "CreateOption",
    "check_choice",
    "check_flag",
    "check_names",
    "check_size",
    "check_text",
]


class CreateOption(NamedTuple):
    """What `create` takes under one name, for a command line to parse and list."""

    #: A size is an `int` of bytes, a flag a `bool`, others are `str`.
    kind: Literal["size", "text", "choice", "flag"]
    help: str
    choices: tuple[str, ...] = ()


PREALLOCATION = CreateOption(
    "choice",
    "off: sparse files; falloc: space reserved; full: zeros written",
    ("off", "falloc", "full"),
)


def check_names(options: Collection[str], known: Collection[str], what: str) -> None:
    """Raises `OptionError` for the first of `options` that is not among `known`."""
    for option in options:
        if option not in known:
            takes = ", ".join(sorted(known)) if known else "no options"
            raise OptionError(f"{what} has no option {option!r}; it takes {takes}", option=option)


def check_size(options: Mapping[str, object], name: str) -> int | None:
    """The option `name` as a number of bytes, or None where it is not given."""
    value = options.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise OptionError(f"{name} must be a number of bytes, not {value!r}", option=name)
    if not 0 <= value <= MAX_OFFSET:
        raise OptionError(f"{name} must be from 0 to {MAX_OFFSET} bytes, not {value}", option=name)
    return value


def check_choice(value: object, name: str, choices: Collection[str]) -> str:
    """`value`, which must be one of `choices`."""
    if not isinstance(value, str) or value not in choices:
        raise OptionError(f"{name} must be one of {', '.join(choices)}, not {value!r}", option=name)
    return value


def check_flag(value: object, name: str) -> bool:
    """`value`, which must be True or False."""
    if not isinstance(value, bool):
        raise OptionError(f"{name} must be True or False, not {value!r}", option=name)
    return value


def check_text(value: object, name: str) -> str:
    """`value`, which must be text that fits between the quotes of one line."""
    if not isinstance(value, str) or not value.isprintable() or '"' in value:
        raise OptionError(
            f"{name} must be printable text without quotes, not {value!r}", option=name
        )
    return value
