"""MMU notifiers written in Python."""

from __future__ import annotations

from typing import ClassVar, Final

from ._arguments import check_calls, check_names

__all__ = ["MmuNotifier"]


#: What each operation is called with.
_PARAMETERS: Final = {
    "clear_flush_young": ("start", "end"),
    "clear_young": ("start", "end", "fast_only"),
    "test_young": ("address", "fast_only"),
    "invalidate_range_start": ("start", "end"),
    "invalidate_range_end": ("start", "end"),
    "release": (),
}


class MmuNotifier:
    """A secondary MMU of your own: subclass it, and register it with an mm.

    Define the operations that your MMU has, at least one; one that you leave out is
    a missing operation, and is skipped. Addresses are bytes in the mm, ranges half open.

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
    OPERATIONS: ClassVar[tuple[str, ...]] = tuple(_PARAMETERS)

    def operations(self) -> list[str]:
        """Return the names of the operations that it has."""
        return [name for name in self.OPERATIONS if callable(getattr(self, name, None))]

    def check_operations(self) -> None:
        """Check that somebody could call it, and as they will; registering does so.

        Raises:
            TypeError: If it has no operation, or one that cannot be called as said
                above; for a method whose name is nearly an operation's.

        """
        check_names(self, MmuNotifier, self.OPERATIONS)
        if all(getattr(self, name, None) is None for name in self.OPERATIONS):
            raise TypeError(
                f"{type(self).__name__} has no operation: expected some of"
                f" {', '.join(self.OPERATIONS)}"
            )
        check_calls(self, {name: _PARAMETERS[name] for name in self.operations()})

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(operations={self.operations()},"
            f" has_fast_aging={self.has_fast_aging})"
        )
