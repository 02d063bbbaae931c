"""VMDK: VMware's disks. A text descriptor names the files that hold the bytes.

`magic` tells the kinds apart, `descriptor` reads and writes the text, `layout`
decides what a descriptor means, `flat` is the driver, `create` makes images.

Sparse extents, as they are on the disk: `sparse_header` and `grain_directory` for
the hosted ones, `cowd` and `sesparse` for those of ESX, `markers` and
`compressed_grain` for streams, which `stream_reader` and `stream_writer` go through.
"""
