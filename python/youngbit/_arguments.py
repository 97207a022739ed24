"""Checks of what a caller gives."""

from __future__ import annotations

import difflib
import inspect
import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from .machine import Host

__all__ = ["check_calls", "check_names", "check_same_host", "choice", "whole"]

_LIMIT = 1 << 63
#: How alike a name must be to one that is known to be taken for a slip of the pen.
_ALIKE = 0.8


def whole(value: object, what: str, *, at_least: int = 0, at_most: int = _LIMIT - 1) -> int:
    """Return a whole number within limits.

    Raises:
        TypeError: If it is none.
        ValueError: If it is beyond a limit.

    """
    kind = type(value).__name__
    if isinstance(value, bool):
        raise TypeError(f"{what}: expected a whole number, not {kind}")
    try:
        number = operator.index(cast("Any", value))
    except TypeError:
        raise TypeError(f"{what}: expected a whole number, not {kind}") from None
    if at_least <= number <= at_most:
        return number
    if number < at_least:
        wrong = "negative" if number < 0 <= at_least else f"below {at_least}"
    else:
        wrong = f"above {at_most}" if at_most < _LIMIT - 1 else "not below 2**63"
    limits = f"from {at_least}" + (f" to {at_most}" if at_most < _LIMIT - 1 else "")
    raise ValueError(f"{what}: {number} is {wrong}; expected a whole number {limits}")


def choice(value: object, choices: Sequence[str], what: str) -> str:
    """Return one of some texts.

    Raises:
        ValueError: If it is another.

    """
    if value not in choices:
        raise ValueError(f"{what}: {value!r} is none of {', '.join(map(repr, choices))}")
    return cast("str", value)


def check_same_host(host: Host, found: object, of: Host | None, what: str) -> None:
    """Refuse what was made on another host: its number means something else here.

    Raises:
        ValueError: Naming both hosts.

    """
    if of is not None and of is not host:
        raise ValueError(f"{what}: {found!r} is of another host, {of!r}, and not of this, {host!r}")


def check_names(given: object, base: type, known: Iterable[str]) -> None:
    """Refuse a method whose name is nearly that of one which a subclass may define.

    Raises:
        TypeError: Naming both.

    """
    known = list(known)
    own = {name: value for each in type(given).__mro__ if each is not base and each is not object
           for name, value in vars(each).items()}  # fmt: skip
    own |= vars(given) if hasattr(given, "__dict__") else {}
    for name, value in own.items():
        if name.startswith("_") or hasattr(base, name) or name in known:
            continue
        # Looked at, not got: a property of the caller's own is not to be run.
        if not (callable(value) or isinstance(value, (classmethod, staticmethod))):
            continue
        for alike in difflib.get_close_matches(name, known, 1, _ALIKE):
            raise TypeError(
                f"{type(given).__name__}.{name}: nobody calls it, and {base.__name__} has"
                f" {alike}; call it that, or something less like it"
            )


def check_calls(given: object, parameters: Mapping[str, Sequence[str]]) -> None:
    """Refuse a method that cannot be called as it will be.

    Args:
        given: The object.
        parameters: Of each method that it has, what it is called with.

    Raises:
        TypeError: Naming the method, and what it is called with.

    """
    for name, names in parameters.items():
        method = getattr(given, name)
        try:
            signature = inspect.signature(method)
        except (TypeError, ValueError):
            # Not written in Python: what it takes is known to nobody.
            continue
        try:
            signature.bind(*names)
        except TypeError:
            raise TypeError(
                f"{type(given).__name__}.{name}{signature}: is called with ({', '.join(names)})"
            ) from None
