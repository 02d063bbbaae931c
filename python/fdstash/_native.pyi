# Built by CMake from fdstash_api.h.
from typing import Any

ffi: Any
lib: Any
