"""What whoever starts the daemon decides: limits and permissions."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Settings"]


class Settings(NamedTuple):
    """Limits of one daemon."""

    allow_folders: tuple[str, ...] = ()  #: where clients may open files
    max_clients: int = 16  #: monitors at once
    max_descriptors: int = 1024  #: descriptors that each monitor, and all fdsets, may hold
    max_nodes: int = 1024  #: that clients have added
    max_message: int = 1 << 20  #: bytes of one command
    max_output: int = 8 << 20  #: bytes that a client has not read; it is disconnected then
    max_connections: int = 100  #: of NBD clients at once
    reopen_timeout: float = 30.0  #: seconds that a reopen waits for files and requests
    close_timeout: float = 10.0  #: seconds for each step of a shutdown
