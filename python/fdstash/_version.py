"""The version of the core that this package was built with."""

from fdstash._ffi import ffi, lib

__all__ = ["__version__"]

__version__: str = ffi.string(lib.fdstash_version()).decode("ascii")
