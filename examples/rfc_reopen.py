"""The reopen of the 2011 RFC, in its own words, over the public interface.

    "First call bdrv_extract_fds() to stash the file descriptors, then close the
    block device. Try opening the new image but if that fails, reopen using the
    stashed file descriptors."

`Image.reopen` does without: it keeps the image open and its locks held all the
while. This form is for who wants to see the idea, or to open something else
altogether in the image's place.

    python examples/rfc_reopen.py
"""

from __future__ import annotations

import os
import tempfile

import fdstash


def reopen(image: fdstash.Image, path: str, mode: str, cache: str) -> fdstash.Image:
    """Open `path` in the place of `image`; should that fail, open `image` as it was."""
    with fdstash.FDStash() as stash:
        image.extract_fds(stash)
        try:
            image.close()
            return fdstash.open(path, mode, format=image.format, cache=cache)
        except fdstash.Error as error:
            print(f"{error}\ngoing on with the old descriptors")
            return fdstash.open(
                image.name, image.mode, format=image.format, cache=image.cache, stash=stash
            )


def main() -> None:
    """Take an extent away, reopen, and read on."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "disk.vmdk")
        extent, moved = os.path.join(folder, "disk-f042.vmdk"), os.path.join(folder, "moved")
        fdstash.create(path, "vmdk", 100 << 20, subformat="twoGbMaxExtentFlat", extent_size=1 << 20)
        image = fdstash.open(path, "r+")
        image.pwrite(b"still here", 41 << 20)

        os.rename(extent, moved)
        image = reopen(image, path, "r", "none")
        print(image, image.pread(10, 41 << 20))

        os.rename(moved, extent)
        image = reopen(image, path, "r", "none")
        print(image, image.pread(10, 41 << 20))
        image.close()


if __name__ == "__main__":
    main()
