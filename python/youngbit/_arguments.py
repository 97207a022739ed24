"""Checks of what a caller gives."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any, cast

__all__ = ["address", "choice"]


def address(value: object, what: str) -> int:
    if isinstance(value, bool):
        raise TypeError(f"{what}: expected a whole number, not bool")
    try:
        number = operator.index(cast("Any", value))
    except TypeError:
        raise TypeError(f"{what}: expected a whole number, not {type(value).__name__}") from None
    if not 0 <= number < 1 << 63:
        raise ValueError(f"{what}: {number} is not an address")
    return number


def choice(value: object, choices: Sequence[str], what: str) -> str:
    if value not in choices:
        raise ValueError(f"{what}: {value!r} is none of {', '.join(map(repr, choices))}")
    return cast("str", value)
