"""Sizes of memory: ``"1G"``, ``1 << 30`` or ``Pages(262_144)``."""

from __future__ import annotations

import operator
import re
from typing import SupportsIndex, TypeAlias

__all__ = ["PAGE_SIZE", "Pages", "Size", "format_size", "parse_pages", "parse_size"]

PAGE_SHIFT = 12
#: Bytes in a guest page.
PAGE_SIZE = 1 << PAGE_SHIFT

_UNITS = {"": 0, "b": 0, "k": 10, "m": 20, "g": 30, "t": 40}
_TEXT = re.compile(
    r"(?P<number>[0-9]+)\s*(?:(?P<unit>[kmgt]?)(?:i?b)?|(?P<pages>p|pages?))", re.IGNORECASE
)
_LIMIT = 1 << 57


class Pages(int):
    """A size counted in pages of 4 KiB, where otherwise a number means bytes.

    >>> parse_size(Pages(2))
    8192
    """

    def __repr__(self) -> str:
        return f"Pages({int(self)})"


#: What stands for a size: text with a unit, a number of bytes, or ``Pages``.
Size: TypeAlias = str | SupportsIndex


def parse_size(size: Size, *, what: str = "size") -> int:
    """Return the bytes that ``size`` means.

    Text is a whole number with an optional unit: ``k``, ``m``, ``g``, ``t``
    (powers of 1024; ``K``, ``KB`` and ``KiB`` are the same) or ``pages``. A
    number counts bytes, unless it is of type `Pages`.

    >>> parse_size("1G") == parse_size(1 << 30) == parse_size("262144 pages")
    True

    Args:
        size: The size.
        what: What the size is of, for the message.

    Raises:
        ValueError: If it is not a size, negative, zero, or beyond 2**57 bytes.
        TypeError: If it is neither text nor a whole number.

    """
    if isinstance(size, str):
        match = _TEXT.fullmatch(size.strip())
        if match is None:
            raise ValueError(f"{what}: {size!r} is not a size such as '128M', '1G' or '4096 pages'")
        number = int(match["number"])
        value = number << (PAGE_SHIFT if match["pages"] else _UNITS[match["unit"].lower()])
    elif isinstance(size, bool):
        raise TypeError(f"{what}: {size!r} is not a size")
    else:
        try:
            value = operator.index(size)
        except TypeError:
            raise TypeError(
                f"{what}: expected a text such as '1G' or a whole number of bytes,"
                f" not {type(size).__name__}"
            ) from None
        if isinstance(size, Pages):
            value <<= PAGE_SHIFT
    if value <= 0:
        raise ValueError(f"{what}: {size!r} is not positive")
    if value >= _LIMIT:
        raise ValueError(f"{what}: {size!r} is beyond 2**57 bytes")
    return value


def parse_pages(size: Size, *, what: str = "size") -> int:
    """Return how many pages ``size`` is.

    >>> parse_pages("1M")
    256

    Raises:
        ValueError: As `parse_size`, and if it is not a multiple of a page.
        TypeError: As `parse_size`.

    """
    value = parse_size(size, what=what)
    if value % PAGE_SIZE:
        raise ValueError(f"{what}: {size!r} is not a multiple of the page size, {PAGE_SIZE} bytes")
    return value >> PAGE_SHIFT


def format_size(size: int) -> str:
    """Return ``size`` bytes as text that `parse_size` reads back.

    >>> format_size(3 << 29), format_size(1 << 30), format_size(5)
    ('1536M', '1G', '5')
    """
    for unit in "TGMK":
        shift = _UNITS[unit.lower()]
        if size and not size & ((1 << shift) - 1):
            return f"{size >> shift}{unit}"
    return str(size)
