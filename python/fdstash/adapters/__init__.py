"""An image behind other interfaces: what emulators and file-system readers hold."""

from fdstash.adapters.block_device import BlockDevice, ImageBlockDevice

__all__ = ["BlockDevice", "ImageBlockDevice"]
