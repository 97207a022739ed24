"""Processes, their memory, and who else maps it."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from . import _core, defaults
from ._arguments import choice, whole
from .memcg import Memcg
from .notifier import MmuNotifier
from .sizes import Size, parse_pages, parse_size

if TYPE_CHECKING:
    from .machine import Host
    from .vm import Vm

__all__ = ["Kind", "Mm", "Registration"]

#: Kinds of memory that a mapping can have.
Kind: TypeAlias = Literal["anon", "shmem", "file"]


class Mm:
    """A process: an address space of its own; made by `youngbit.machine.Host.create_mm`."""

    def __init__(self, host: Host, native: _core.Mm, owner: Vm | None = None) -> None:
        self._host = host
        self._native = native
        # A VM's process ends with the VM: whoever holds the one keeps the other.
        self._owner = owner

    def __repr__(self) -> str:
        return f"Mm(id={self.id}, memcg={self.memcg.name!r})"

    def to_dict(self) -> dict[str, Any]:
        """Return a plain dict."""
        return {
            "id": self.id,
            "memcg": self.memcg.to_dict(),
            "has_fast_young_notifiers": self.has_fast_young_notifiers,
        }

    @property
    def id(self) -> int:
        """Its number on the host."""
        return self._native.id

    @property
    def memcg(self) -> Memcg:
        """The memory cgroup that its faults are charged to."""
        return Memcg(self._native.memcg, self._native.memcg_name, self._host)

    def mmap(
        self,
        length: Size,
        *,
        kind: Kind = "anon",
        address: int | None = None,
        backing: str = defaults.BACKING,
        locked: bool = False,
        read_only: bool = False,
        no_recency: bool = False,
    ) -> int:
        """Map fresh memory; return its address.

        Args:
            length: How much.
            kind: ``"anon"``, ``"shmem"`` or ``"file"``.
            address: Where; otherwise anywhere.
            backing: ``"4k"``; ``"2m"`` for transparent huge pages; ``"1g"`` for
                hugetlb pages.
            locked: As by ``mlock``.
            read_only: Not writable.
            no_recency: Accesses say nothing about recency (``MADV_RANDOM``).

        Raises:
            OSError: ``EINVAL``, ``EEXIST`` or ``ENOMEM``, as ``mmap``.

        """
        choice(kind, defaults.KINDS, "kind")
        choice(backing, tuple(defaults.BACKINGS), "backing")
        return self._native.mmap(
            parse_size(length, what="length"),
            kind,
            None if address is None else whole(address, "address"),
            backing == "2m",
            18 if backing == "1g" else 0,
            locked,
            read_only,
            no_recency,
        )

    def munmap(self, start: int, length: Size) -> None:
        """Unmap a range: notifiers first, then the pages."""
        self._native.munmap(whole(start, "start"), parse_size(length, what="length"))

    def touch(self, start: int, length: Size, *, write: bool = False) -> None:
        """Access every page of a range once, in order, as the process itself.

        Raises:
            OSError: ``EFAULT`` outside its memory, ``ENOMEM``.

        """
        start = whole(start, "start")
        self._native.touch(start, start + parse_size(length, what="length"), write)

    def read(self, start: int, length: Size) -> bytes:
        """Read mapped pages of files or shared memory by file descriptor.

        No page table and no accessed bit takes part: what is read is counted in
        references, and those make tiers.

        Returns:
            What the pages hold: one byte a page.

        Raises:
            OSError: ``EBADF`` where no file is mapped, ``ENOMEM``.

        """
        start = whole(start, "start")
        return self._native.read_pages(start, start + parse_size(length, what="length"))

    def write(self, start: int, length: Size, byte: int = 0) -> None:
        """Write mapped pages of files or shared memory by file descriptor.

        The pages become dirty; writing is not counted as using them.

        Args:
            start: Where the first page is mapped.
            length: How much to write; whole pages are.
            byte: What the pages hold from now on.

        Raises:
            ValueError: For what is no byte.
            OSError: ``EBADF`` where no file is mapped, ``ENOMEM``.

        """
        start = whole(start, "start")
        byte = whole(byte, "byte", at_most=0xFF)
        self._native.write_pages(start, start + parse_size(length, what="length"), byte)

    def fsync(self, address: int) -> int:
        """Write back the dirty pages of the file that is mapped at an address.

        Returns:
            How many were written.

        Raises:
            OSError: ``EIO``, once, after writing back some page failed, whoever
                tried; ``EBADF`` where no file is mapped.

        """
        return self._native.fsync(whole(address, "address"))

    def resident(self, start: int, length: Size) -> tuple[int, int]:
        """Return how many pages of a range are mapped, and how many are young.

        Young by the process's own page tables; secondary MMUs are not asked.
        """
        start = whole(start, "start")
        return self._native.resident(start, start + parse_size(length, what="length"))

    def page_generations(self, start: int, length: Size) -> npt.NDArray[np.int64]:
        """Return for each page of a range the number of its generation.

        -1 stands for a page that is not there or on no list.
        """
        return self._native.page_generations(
            whole(start, "start"), parse_pages(length, what="length")
        )

    def register(self, notifier: MmuNotifier) -> Registration:
        """Subscribe a notifier of your own to this process.

        Raises:
            TypeError: If it is no `MmuNotifier`, or has no operation; if an operation
                is no method, or one that cannot be called as `MmuNotifier` says; for
                a method that nobody calls but whose name is nearly an operation's.

        """
        if not isinstance(notifier, MmuNotifier):
            raise TypeError(f"notifier: expected an MmuNotifier, not {type(notifier).__name__}")
        notifier.check_operations()
        return Registration(self, notifier, self._native.register(notifier))

    def clear_young(self, start: int, length: Size, *, fast_only: bool = False) -> bool:
        """Ask all notifiers whether a range was accessed, and clear; no TLB flush."""
        start = whole(start, "start")
        return self._native.clear_young(start, start + parse_size(length, what="length"), fast_only)

    def clear_flush_young(self, start: int, length: Size) -> bool:
        """Ask all notifiers whether a range was accessed, clear, and flush."""
        start = whole(start, "start")
        return self._native.clear_flush_young(start, start + parse_size(length, what="length"))

    def test_young(self, address: int, *, fast_only: bool = False) -> bool:
        """Ask notifiers until one says that a page was accessed; change nothing."""
        return self._native.test_young(whole(address, "address"), fast_only)

    @property
    def has_fast_young_notifiers(self) -> bool:
        """Whether any subscriber is fast."""
        return self._native.has_fast_young_notifiers()

    def exit(self) -> None:
        """End the process: notifiers are released, its memory is freed."""
        self._host._native.exit_mm(self._native)


class Registration:
    """A notifier's subscription; ends with `unregister` or a ``with`` block."""

    def __init__(self, mm: Mm, notifier: MmuNotifier, native: _core.Registration) -> None:
        #: The process.
        self.mm = mm
        #: What is subscribed to it.
        self.notifier = notifier
        self._native = native

    def __repr__(self) -> str:
        return f"Registration({self.notifier!r}, {self.mm!r})"

    def to_dict(self) -> dict[str, Any]:
        """Return a plain dict."""
        return {
            "mm": self.mm.id,
            "notifier": type(self.notifier).__name__,
            "operations": self.notifier.operations(),
            "has_fast_aging": self.has_fast_aging,
        }

    @property
    def has_fast_aging(self) -> bool:
        """Whether it takes part in ``fast_only`` calls."""
        return self._native.has_fast_aging

    def unregister(self) -> None:
        """End it: ``release`` is called, and no callback runs after this returned.

        Raises:
            OSError: ``EINVAL`` if it ended before.

        """
        self._native.unregister()

    def __enter__(self) -> Registration:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.unregister()
