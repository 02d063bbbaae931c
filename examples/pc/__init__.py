"""A small PC in the CPU emulator Unicorn, whose disk is an image that fdstash opened.

    python -m examples.pc

boots the rescue image of GRUB and reopens the disk while GRUB reads it.
"""
