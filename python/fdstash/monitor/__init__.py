"""A monitor: QMP over a Unix socket, by which image nodes are opened, reopened and exported.

`schema` says what commands there are, `commands` what they do; `server` speaks to clients.
"""

from __future__ import annotations

from fdstash.monitor.daemon import Daemon
from fdstash.monitor.errors import QmpError
from fdstash.monitor.exports import ExportServer
from fdstash.monitor.settings import Settings

__all__ = ["Daemon", "ExportServer", "QmpError", "Settings"]
