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
#: A number of accesses.
Accesses: TypeAlias = Annotated[int, Unit("accesses")]
#: A share of a whole, from 0 to 1.
Share: TypeAlias = Annotated[float, Unit("share")]
#: Wall time.
Seconds: TypeAlias = Annotated[float, Unit("seconds")]
#: A modelled time.
Microseconds: TypeAlias = Annotated[float, Unit("microseconds")]
#: A time of the host's clock.
Nanoseconds: TypeAlias = Annotated[int, Unit("nanoseconds")]

#: How a VM is aged.
Protocol: TypeAlias = Annotated[str, Choice(defaults.PROTOCOLS)]
#: Which MMU maps guest memory.
Mmu: TypeAlias = Annotated[str, Choice(defaults.MMUS)]
#: What aging asks secondary MMUs.
AgingAsks: TypeAlias = Annotated[str, Choice(defaults.AGING_ASKS)]
#: The format of page table entries.
Format: TypeAlias = Annotated[str, Choice(defaults.FORMATS)]
#: The size of the host's pages behind guest memory.
Backing: TypeAlias = Annotated[str, Choice(tuple(defaults.BACKINGS))]
#: What backs guest memory.
KindOfMemory: TypeAlias = Annotated[str, Choice(defaults.KINDS)]
