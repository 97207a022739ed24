"""MMU notifiers written in Python."""

from __future__ import annotations

from typing import ClassVar

__all__ = ["MmuNotifier"]


class MmuNotifier:
    """A secondary MMU of your own: subclass it, and register it with an mm.

    Define the operations that your MMU has; one that you leave out is a missing
    operation, and is skipped. Addresses are bytes in the mm, ranges half open.

    ``clear_flush_young(start, end) -> bool``
        Were pages of the range accessed? Clear that, and flush your TLBs if so.
    ``clear_young(start, end, fast_only) -> bool``
        Were pages of the range accessed? Clear that. A stale "no" is legal. With
        ``fast_only`` answer only what needs no blocking, otherwise ``False``.
    ``test_young(address, fast_only) -> bool``
        Was the page accessed? Change nothing.
    ``invalidate_range_start(start, end)``
        The range is about to be unmapped: map nothing of it until the end.
    ``invalidate_range_end(start, end)``
        The range is unmapped.
    ``release()``
        The mm or the subscription goes. Nothing is called after.

    Each is called from inside a native pass, once a page or a table: this is a
    slow path. What it raises is raised by the call that ran the pass, after the
    pass has left the model consistent; so is ``TypeError`` when it answers
    something other than a ``bool``.

    Attributes:
        has_fast_aging: Whether ``fast_only`` calls are made to it at all. Set it
            on the class or before registering.

    """

    has_fast_aging: bool = False

    #: Operations that a subclass may define.
    OPERATIONS: ClassVar[tuple[str, ...]] = (
        "clear_flush_young",
        "clear_young",
        "test_young",
        "invalidate_range_start",
        "invalidate_range_end",
        "release",
    )

    def __repr__(self) -> str:
        has = [name for name in self.OPERATIONS if callable(getattr(self, name, None))]
        return f"{type(self).__name__}(operations={has}, has_fast_aging={self.has_fast_aging})"
