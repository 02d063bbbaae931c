"""QEMU byte-range locks against real qemu-img and qemu-io, in both directions."""
