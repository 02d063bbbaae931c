"""Fuzzes the reader of streamOptimized extents.

python tests/fuzz/fuzz_vmdk_stream.py [corpus folder] [-max_total_time=SECONDS]
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from fdstash.errors import FormatError
from fdstash.formats.vmdk.stream_reader import Footer, Grain, GrainTable, StreamReader
from tests.fuzz.harness import run

# A grain of 16 MiB made of a few bytes is no finding, and a thousand take their time.
MOST_UNPACKED = 256 << 20


def one_input(data: bytes) -> None:
    furthest = unpacked = 0

    def read(n: int, offset: int) -> bytes:
        nonlocal furthest
        assert offset >= furthest
        assert 0 <= n <= 1 << 26
        furthest = offset
        return data[offset : offset + n]

    try:
        reader = StreamReader(read, "disk.vmdk")
        header = reader.header
        for found in reader:
            assert 0 <= found.offset < len(data)
            if isinstance(found, Grain):
                assert len(found.data) == header.grain_length(found.number)
                unpacked += len(found.data)
                if unpacked > MOST_UNPACKED:
                    return
            elif isinstance(found, Footer):
                assert found.header.capacity == header.capacity
            else:
                limit = header.gtes_per_gt if isinstance(found, GrainTable) else header.gt_count
                assert len(found.entries) <= limit
                assert all(entry * 512 < len(data) for entry in found.entries)
    except FormatError as error:
        assert error.file == "disk.vmdk"
        assert error.field
        assert error.offset is not None


if __name__ == "__main__":
    run(one_input, "vmdk_stream")
