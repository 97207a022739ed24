from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from youngbit.sizes import Pages, format_size, parse_pages, parse_size


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ("1G", 1 << 30),
        ("1g", 1 << 30),
        ("1GiB", 1 << 30),
        ("1GB", 1 << 30),
        (" 128 M ", 128 << 20),
        ("4k", 4096),
        ("2T", 2 << 40),
        ("4096", 4096),
        ("4096b", 4096),
        ("3 pages", 3 << 12),
        ("1page", 1 << 12),
        (1 << 30, 1 << 30),
        (np.int64(8192), 8192),
        (Pages(3), 3 << 12),
    ],
)
def test_sizes(size, expected):
    assert parse_size(size) == expected


@given(st.integers(1, (1 << 57) - 1))
def test_formatted_sizes_read_back(size):
    assert parse_size(format_size(size)) == size


def test_pages():
    assert parse_pages("1M") == 256
    assert repr(Pages(2)) == "Pages(2)"
