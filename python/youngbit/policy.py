"""Policies of reclaim written in Python."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Final, Literal, TypeAlias

from ._arguments import check_calls, check_names

if TYPE_CHECKING:
    from ._core import LruView

__all__ = ["Choice", "Policy"]

#: Which type to evict from, and the highest of its tiers that may go; None
#: leaves that to `Policy.tier`.
Choice: TypeAlias = "tuple[Literal['anon', 'file'], int | None]"


#: What each decision is called with.
_PARAMETERS: Final = {
    "choose": ("view", "swappiness", "may_io", "kernel"),
    "tier": ("view", "kind", "kernel"),
    "should_age": ("view", "can_swap", "kernel"),
}


class Policy:
    """What reclaim decides: subclass it, and set it as `Host.policy`.

    Override the decisions that are to be yours; the kernel's stand for the
    others, and every method is given the kernel's answer as its last argument.
    What to decide by is ``view``, a snapshot of one memory cgroup on one node:
    ``memcg``, ``node``, ``max_seq``, ``min_seq`` (anonymous, file), ``pages``
    (number, anonymous and file pages of each generation, oldest first) and
    ``positions(kind)`` (for each tier pages refaulted, and pages evicted or
    protected).

    A policy is asked once for each batch of up to 4096 folios, not for each
    page, before any lock of the LRU is taken. ``docs/policies.md`` says what
    that costs. In live runs every thread that reclaims asks it, so it shares the
    interpreter with them. It cannot call into the machine: that raises
    ``OSError`` with ``EBUSY``. What it raises, and ``TypeError`` for an answer
    that is none, is raised by the call that was reclaiming, after that has left
    the model consistent; until then the kernel's decisions stand.
    """

    #: Decisions that a subclass may override.
    DECISIONS: ClassVar[tuple[str, ...]] = tuple(_PARAMETERS)

    def choose(self, view: LruView, swappiness: int, may_io: bool, kernel: Choice) -> Choice:
        """Which type to evict from first.

        Args:
            view: The lruvec.
            swappiness: 1 to 200; at 0 nobody is asked, for only file pages can go.
            may_io: Whether pages may be written to swap now.
            kernel: The kernel's choice.

        """
        return kernel

    def tier(self, view: LruView, kind: Literal["anon", "file"], kernel: int) -> int:
        """Return the highest tier of a type to evict, 0 to 3; those above are protected.

        Args:
            view: The lruvec.
            kind: Which type.
            kernel: The kernel's answer, of its controller.

        """
        return kernel

    def should_age(self, view: LruView, can_swap: bool, kernel: bool) -> bool:
        """Whether to age before more is evicted.

        Asked by reclaim under pressure only, and only where there is something
        to decide; commands age when they say so. At the default priority reclaim
        evicts even so.

        Args:
            view: The lruvec.
            can_swap: Whether anonymous pages can go.
            kernel: The kernel's answer.

        """
        return kernel

    def check_decisions(self) -> None:
        """Check that what is overridden can be called as it will be; `Host.policy` does so.

        Raises:
            TypeError: For a decision with other parameters, and for a method whose
                name is nearly a decision's.

        """
        check_names(self, Policy, self.DECISIONS)
        check_calls(self, {name: _PARAMETERS[name] for name in self.overridden()})

    def overridden(self) -> list[str]:
        """Return the names of the decisions that are this object's own."""
        return [
            name
            for name in self.DECISIONS
            if getattr(type(self), name) is not getattr(Policy, name) or name in vars(self)
        ]
