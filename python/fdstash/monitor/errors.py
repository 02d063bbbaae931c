"""What a command answers when it fails: a class of QEMU's, and a sentence for a person."""

from __future__ import annotations

import os

from fdstash.errors import Error, FormatError, ReopenError

__all__ = ["QmpError", "command_not_found", "device_not_found", "told"]

GENERIC = "GenericError"

_WORDS = {
    "pass one in the stash as": "pass one with getfd or add-fd as",
    "lock=False does without locks": '"locking": "off" does without locks',
    "or use lock=False": 'or say "locking": "off"',
    "see fdstash.raise_nofile()": "raise the daemon's LimitNOFILE",
    "and fdstash.raise_nofile() raises the limit": "and the daemon's LimitNOFILE is the limit",
}


class QmpError(Error):
    """An error of a command. `kind` is QEMU's class, the text its `desc`."""

    def __init__(self, desc: str, kind: str = GENERIC) -> None:
        super().__init__(desc)
        self.desc = desc
        self.kind = kind


def command_not_found(desc: str) -> QmpError:
    """A `QmpError` of the class CommandNotFound."""
    return QmpError(desc, "CommandNotFound")


def device_not_found(name: str) -> QmpError:
    """A `QmpError` of the class DeviceNotFound."""
    return QmpError(f"Device '{name}' not found", "DeviceNotFound")


def told(error: BaseException, what: str) -> QmpError:
    """What went wrong with `what`, in one sentence: where, why and, where known, what to do."""
    if isinstance(error, QmpError):
        return error
    if isinstance(error, ReopenError):
        where = error.file or error.filename
        reason = _in_our_words(error.strerror or str(error))
        after = "" if error.rolled_back else "; it could NOT be rolled back"
        return QmpError(f"{what}: {where}: {reason} (in phase {error.phase}){after}")
    if isinstance(error, OSError) and not isinstance(error, FormatError):
        where = "" if error.filename is None else f"{os.fsdecode(error.filename)}: "
        if where[:-2] in what:
            where = ""
        return QmpError(f"{what}: {where}{_in_our_words(error.strerror or str(error))}")
    if isinstance(error, Error | ValueError):
        return QmpError(f"{what}: {_in_our_words(str(error))}")
    return QmpError(f"{what}: {type(error).__name__}: {error}")


def _in_our_words(text: str) -> str:
    """What the library tells a program to do, as a client of the monitor does it."""
    for theirs, ours in _WORDS.items():
        text = text.replace(theirs, ours)
    return text
