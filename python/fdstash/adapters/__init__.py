"""An image behind other interfaces: what emulators and file-system readers hold.

What is here needs no other package. `fdstash.adapters.amitools`, `dissect`, `qiling`
and `tsk` each need the one that they adapt to, and are imported by name.
"""

from fdstash.adapters.block_device import BlockDevice, ImageBlockDevice
from fdstash.adapters.disk_file import DiskFile

__all__ = ["BlockDevice", "DiskFile", "ImageBlockDevice"]
