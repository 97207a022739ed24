"""What several experiments have in common."""

from __future__ import annotations

from typing import Any

from .._core import build_info

__all__ = ["head", "ignore", "vm_options"]

_VM_OPTIONS = (
    "vcpus", "kind", "mmu", "protocol", "aging_asks", "ad", "format", "levels", "backing", "l1_ad",
    "aliases", "tlb_entries",
)  # fmt: skip


def ignore(*_: object) -> None:
    """Take a callback's place where the caller gave none."""


def vm_options(described: object) -> dict[str, Any]:
    """Return the options of `Host.create_vm` that a description has, by the same names."""
    return {name: getattr(described, name) for name in _VM_OPTIONS if hasattr(described, name)}


def head(schema: str, version: int, parameters: dict[str, Any]) -> dict[str, Any]:
    """Return what a result as a plain dict begins with."""
    return {
        "schema": schema,
        "schema_version": version,
        "parameters": parameters,
        "seed": parameters["seed"],
        "build": build_info(),
    }
