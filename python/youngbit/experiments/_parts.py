"""What several experiments have in common."""

from __future__ import annotations

from typing import Any

from .._core import build_info

__all__ = ["check_guest_tables", "check_names", "head", "ignore", "vm_options"]

_VM_OPTIONS = (
    "vcpus", "kind", "mmu", "protocol", "aging_asks", "ad", "format", "levels", "backing", "l1_ad",
    "aliases", "tlb_entries",
)  # fmt: skip


def ignore(*_: object) -> None:
    """Take a callback's place where the caller gave none."""


def vm_options(described: object) -> dict[str, Any]:
    """Return the options of `Host.create_vm` that a description has, by the same names."""
    return {name: getattr(described, name) for name in _VM_OPTIONS if hasattr(described, name)}


def check_guest_tables(mmu: str, *, l1_ad: bool, aliases: int) -> None:
    """Refuse what only page tables of the guest's own have, where KVM does not read them.

    Raises:
        ValueError: With the name of the parameter in front.

    """
    if aliases != 1 and mmu == "tdp":
        raise ValueError(
            f"aliases: {aliases} of a page have no effect with mmu tdp, which maps guest frames;"
            " expected mmu shadow or nested"
        )
    if not l1_ad and mmu != "nested":
        raise ValueError(
            f"l1_ad: off has no effect with mmu {mmu}, which has no guest of a guest;"
            " expected mmu nested"
        )


def check_names(what: str, names: tuple[str, ...]) -> None:
    """Refuse a choice of several that is of none, or has one twice.

    Raises:
        ValueError: With the name of the parameter in front.

    """
    if not names:
        raise ValueError(f"{what}: expected at least one")
    for number, name in enumerate(names):
        if name in names[:number]:
            raise ValueError(f"{what}: {name!r} is there twice")


def head(schema: str, version: int, parameters: dict[str, Any]) -> dict[str, Any]:
    """Return what a result as a plain dict begins with."""
    return {
        "schema": schema,
        "schema_version": version,
        "parameters": parameters,
        "seed": parameters["seed"],
        "build": build_info(),
    }
