"""The command line: `fdstash`, with the habits of `qemu-img`.

`main` is where it starts, `app` has the commands, and each command is a file.
"""
