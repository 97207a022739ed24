"""What the fields of descriptions count, for those who read, write and document them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, TypeAlias

from . import defaults

__all__ = [
    "Accesses",
    "AgingAsks",
    "Backing",
    "Bytes",
    "Choice",
    "Format",
    "KindOfMemory",
    "Mask",
    "Microseconds",
    "Mmu",
    "Nanoseconds",
    "Protocol",
    "Seconds",
    "Share",
    "Unit",
]


@dataclass(frozen=True)
class Unit:
    """The unit of a number."""

    name: str


@dataclass(frozen=True)
class Choice:
    """The texts that a field may be."""

    names: tuple[str, ...]


#: A size; descriptions may give it as text, such as ``"128M"``.
Bytes: TypeAlias = Annotated[int, Unit("bytes")]
#: A mask of bits, written in hexadecimal.
Mask: TypeAlias = Annotated[int, Unit("mask")]
Accesses: TypeAlias = Annotated[int, Unit("accesses")]
Share: TypeAlias = Annotated[float, Unit("share")]
Seconds: TypeAlias = Annotated[float, Unit("seconds")]
Microseconds: TypeAlias = Annotated[float, Unit("microseconds")]
Nanoseconds: TypeAlias = Annotated[int, Unit("nanoseconds")]

Protocol: TypeAlias = Annotated[str, Choice(defaults.PROTOCOLS)]
Mmu: TypeAlias = Annotated[str, Choice(defaults.MMUS)]
AgingAsks: TypeAlias = Annotated[str, Choice(defaults.AGING_ASKS)]
Format: TypeAlias = Annotated[str, Choice(defaults.FORMATS)]
Backing: TypeAlias = Annotated[str, Choice(tuple(defaults.BACKINGS))]
KindOfMemory: TypeAlias = Annotated[str, Choice(defaults.KINDS)]
