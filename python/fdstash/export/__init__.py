"""Images for other programs, over the NBD protocol: `NbdServer`."""

from fdstash.export.exports import ExportInfo
from fdstash.export.server import NbdServer

__all__ = ["ExportInfo", "NbdServer"]
