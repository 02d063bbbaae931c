"""Image formats: what the bytes of a header mean, and where the guest's bytes are.

A driver parses headers and hands out segments; it reads and writes its files
through the `FileChild` protocol and never sees a descriptor. Nothing in here
imports more of the package than `fdstash.errors`.
"""
