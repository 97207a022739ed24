"""What the machine that runs the model has to give."""

from __future__ import annotations

import errno
from pathlib import Path

from . import defaults
from .sizes import PAGE_SIZE, format_size

__all__ = ["available_memory", "check_memory"]

_MEMINFO = Path("/proc/meminfo")


def available_memory() -> int | None:
    """Return the bytes that can be had without swapping; None where nobody says."""
    try:
        lines = _MEMINFO.read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError):
        return None
    for line in lines:
        name, _, value = line.partition(":")
        if name == "MemAvailable" and value.split()[:1] and value.split()[0].isdigit():
            return int(value.split()[0]) << 10
    return None


def check_memory(guest: int, mmu: str, backing: str) -> None:
    """Refuse a guest that is used whole and whose model would not fit.

    A run that swaps measures the machine's disk, and one that is killed says
    nothing at all.

    Args:
        guest: Guest memory, in bytes.
        mmu: Which MMU maps it.
        backing: Size of the pages behind it.

    Raises:
        OSError: ``ENOMEM``, with what is needed and what there is.

    """
    each = defaults.MODEL_BYTES[mmu if backing == "4k" else backing]
    need = guest // PAGE_SIZE * each
    have = available_memory()
    if have is not None and need > have:
        raise OSError(
            errno.ENOMEM,
            f"guest memory of {format_size(guest)} needs {format_size(_rounded(need))} for its"
            f" model ({each} bytes a page), and this machine has {format_size(_rounded(have))}"
            " available",
        )


def _rounded(size: int) -> int:
    """Return a size in whole megabytes."""
    return size >> 20 << 20
