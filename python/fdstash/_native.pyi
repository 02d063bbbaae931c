# Built by CMake from the headers csrc/include/*_api.h.
from typing import Any

ffi: Any
lib: Any
