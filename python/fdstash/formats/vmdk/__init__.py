"""VMDK: VMware's disks. A text descriptor names the files that hold the bytes.

`magic` tells the kinds apart, `descriptor` reads and writes the text, `layout`
decides what a descriptor means, `flat` is the driver, `create` makes images.
"""
