"""Cells: they cover what they must, apart from one another, across the boundaries of extents."""

from __future__ import annotations

from itertools import pairwise

import pytest

from fdstash.bench.cells import packed, sampled, shares
from fdstash.bench.latency import exact_percentile


@pytest.mark.parametrize("odd_ones", [True, False])
@pytest.mark.parametrize("block_bytes", [512, 4096, 65536])
@pytest.mark.parametrize("size", [1, 1000, 4096, 1 << 20, (3 << 20) + 77])
def test_packed_cells_cover_everything_once(size: int, block_bytes: int, *, odd_ones: bool) -> None:
    end = 0
    for cell in packed(size, block_bytes, odd_ones=odd_ones):
        assert cell.offset == end
        assert cell.length > 0
        assert odd_ones or cell.offset % block_bytes == 0
        end += cell.length
    assert end == size


def test_packed_cells_cross_every_mebibyte() -> None:
    cells = packed(4 << 20, 4096)
    for boundary in range(1 << 20, 4 << 20, 1 << 20):
        assert any(c.offset < boundary < c.offset + c.length for c in cells)
    assert any(cell.offset % 512 and cell.length % 512 for cell in cells)
    assert sum(cell.length == 4096 and cell.offset % 4096 == 0 for cell in cells) > 900
    assert all(cell.length % 16 == 0 for cell in cells)  # they can be stamped


@pytest.mark.parametrize("size", [1, 511, 4096, 100_000, 1 << 20, (64 << 20) + 5])
@pytest.mark.parametrize("seed", range(3))
def test_sampled_cells_lie_apart_within_the_image(size: int, seed: int) -> None:
    cells = sampled(size, 4096, 500, seed)
    assert 0 < len(cells) <= 501
    end = 0
    for cell in cells:
        assert cell.offset >= end
        assert cell.length > 0
        end = cell.offset + cell.length
    assert end == size
    assert cells == sampled(size, 4096, 500, seed)


@pytest.mark.parametrize("jobs", [1, 4, 100])
def test_shares_have_each_cell_once_and_mix_neighbours(jobs: int) -> None:
    cells = packed(1 << 20, 32768)
    dealt = shares(cells, jobs, 1)
    assert len(dealt) == min(jobs, len(cells))
    assert sorted(cell for share in dealt for cell in share) == cells
    assert all(share == sorted(share) for share in dealt)
    if jobs == 4:
        owner = {cell: number for number, share in enumerate(dealt) for cell in share}
        strangers = sum(owner[a] != owner[b] for a, b in pairwise(cells))
        assert strangers > len(cells) / 2


def test_percentiles_of_few_values() -> None:
    assert exact_percentile([], 50) == 0
    assert exact_percentile([5], 99.9) == exact_percentile([5], 0) == 5
    assert exact_percentile(list(range(1, 1001)), 99.9) == 999
