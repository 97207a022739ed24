"""The kernel's text files: of the multi-gen LRU, of memory cgroups, below ``/proc``."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, SupportsIndex

from . import _core
from .sizes import PAGE_SIZE, Pages

if TYPE_CHECKING:
    from .machine import Host
    from .memcg import Memcg

__all__ = ["DebugFs", "MemcgFiles", "ProcFs", "TextFile", "numbers"]


def numbers(text: str) -> dict[str, int]:
    """Return what a file says that has a name and a number a line."""
    return {name: int(value) for name, value in (line.split() for line in text.splitlines())}


class DebugFs(Mapping[str, "TextFile"]):
    """The text files of MGLRU, in the kernel's layout."""

    NAMES = ("enabled", "min_ttl_ms", "lru_gen", "lru_gen_full")

    def __init__(self, host: Host) -> None:
        self._host = host

    def __getitem__(self, name: str) -> TextFile:
        if name not in self.NAMES:
            raise KeyError(name)
        return TextFile(self._host, name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.NAMES)

    def __len__(self) -> int:
        return len(self.NAMES)


class MemcgFiles(Mapping[str, "TextFile"]):
    """The text files of a memory cgroup, in the kernel's layout."""

    NAMES = ("memory.current", "memory.high", "memory.max", "memory.reclaim", "memory.stat")

    def __init__(self, host: Host, memcg: Memcg) -> None:
        self._host = host
        self._memcg = memcg

    def __getitem__(self, name: str) -> TextFile:
        if name not in self.NAMES:
            raise KeyError(name)
        return _MemcgFile(self._host, self._memcg, name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.NAMES)

    def __len__(self) -> int:
        return len(self.NAMES)


class ProcFs(Mapping[str, "TextFile"]):
    """The files below ``/proc`` that reclaim has."""

    NAMES = ("vmstat", "sys/vm/swappiness")

    def __init__(self, host: Host) -> None:
        self._host = host

    def __getitem__(self, name: str) -> TextFile:
        if name not in self.NAMES:
            raise KeyError(name)
        return _ProcFile(self._host, name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.NAMES)

    def __len__(self) -> int:
        return len(self.NAMES)


def _written(text: object) -> bytes:
    if isinstance(text, str):
        return text.encode()
    if isinstance(text, (bytes, bytearray)):
        return bytes(text)
    # bytes() of a number is that many null bytes, and True is a number.
    if not isinstance(text, bool) and isinstance(text, SupportsIndex):
        number = operator.index(text)
        return str(number * PAGE_SIZE if isinstance(text, Pages) else number).encode()
    raise TypeError(f"text: expected a text or a whole number, not {type(text).__name__}")


class TextFile:
    """One text file; made by `Host.debugfs`, `Host.procfs` and `Memcg.files`."""

    def __init__(self, host: Host, name: str) -> None:
        self._host = host
        #: Its name.
        self.name = name

    def __repr__(self) -> str:
        return f"TextFile({self.name!r})"

    def read(self) -> str:
        """Return what it reads as.

        Raises:
            OSError: ``EINVAL`` for a file that is only written.

        """
        return self._host._native.read_file(self.name)

    def write(self, text: str | bytes | SupportsIndex) -> None:
        """Write to it; ``lru_gen`` takes commands.

        Args:
            text: What to write. A number is written in decimal; `Pages` as what
                they are in bytes, which is what limits are in.

        Raises:
            TypeError: If it is neither text nor a whole number.
            OSError: With the kernel's ``errno``.

        """
        self._write(_written(text))

    def _write(self, data: bytes) -> None:
        self._host._native.write_file(self.name, data)


class _MemcgFile(TextFile):
    def __init__(self, host: Host, memcg: Memcg, name: str) -> None:
        super().__init__(host, name)
        self._memcg = memcg

    def read(self) -> str:
        return _core.memcg_read(self._host._native, self._memcg.id, self.name)

    def _write(self, data: bytes) -> None:
        _core.memcg_write(self._host._native, self._memcg.id, self.name, data)


class _ProcFile(TextFile):
    def read(self) -> str:
        return _core.proc_read(self._host._native, self.name)

    def _write(self, data: bytes) -> None:
        _core.proc_write(self._host._native, self.name, data)
