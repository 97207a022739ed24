"""Virtual machines, and runs of their vCPUs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from . import _core
from ._arguments import check_same_host, choice, whole
from .access import Stream
from .memcg import LruGen, Memcg
from .mm import Mm
from .results import AgingRun, IdleStats, RunStats
from .sizes import PAGE_SIZE, Size, parse_size

if TYPE_CHECKING:
    from .machine import Host

__all__ = ["LOG_DIRTY_PAGES", "READONLY", "Memslot", "Mode", "Vm"]

#: How vCPUs run: in turns in the calling thread, or a thread each.
Mode: TypeAlias = Literal["inline", "live"]

#: Flag of a memslot: which pages are written is recorded.
LOG_DIRTY_PAGES: Final = 1 << 0
#: Flag of a memslot: the guest cannot write.
READONLY: Final = 1 << 1


@dataclass(frozen=True)
class Memslot:
    """A part of guest memory, and where the process has it."""

    #: Its number.
    slot: int
    #: Where the guest sees it, in bytes.
    guest_phys_addr: int
    #: Its size in bytes.
    memory_size: int
    #: Where the process has it.
    userspace_addr: int
    #: A sum of `LOG_DIRTY_PAGES` and `READONLY`.
    flags: int

    def to_dict(self) -> dict[str, int]:
        """Return a plain dict."""
        return asdict(self)


class Vm:
    """A virtual machine and its guest memory; made by `youngbit.machine.Host.create_vm`."""

    def __init__(self, host: Host, native: _core.Vm, parameters: dict[str, Any]) -> None:
        self._host = host
        self._native = native
        self._parameters = parameters

    def __repr__(self) -> str:
        inside = ", ".join(f"{key}={value!r}" for key, value in self._parameters.items())
        return f"Vm({inside})"

    def to_dict(self) -> dict[str, Any]:
        """Return what the VM was made as."""
        return dict(self._parameters)

    @property
    def mm(self) -> Mm:
        """The process whose memory the guest sees."""
        return Mm(self._host, self._native.mm, self)

    @property
    def memcg(self) -> Memcg:
        """The memory cgroup that guest memory is charged to."""
        return self.mm.memcg

    @property
    def nr_pages(self) -> int:
        """Guest memory in pages of 4 KiB, as the VM was made with it."""
        return self._native.nr_pages

    @property
    def nr_vcpus(self) -> int:
        """How many vCPUs."""
        return self._native.nr_vcpus

    @property
    def address(self) -> int:
        """Where in the process guest memory begins."""
        return self._native.address

    @property
    def guest_physical(self) -> tuple[int, int]:
        """First byte of guest memory, and one past the last, as the guest counts."""
        return self._native.guest_physical

    def memslots(self) -> list[Memslot]:
        """Return the parts of guest memory, by where the guest sees them.

        At first there is one, 0: all of `nr_pages` at address 0.
        """
        return [
            Memslot(slot, guest, size, address, flags)
            for slot, flags, guest, size, address in self._native.memslots()
        ]

    def set_memory_region(
        self,
        slot: int,
        *,
        guest_phys_addr: int = 0,
        memory_size: Size | Literal[0] = 0,
        userspace_addr: int = 0,
        flags: int = 0,
    ) -> None:
        """Create, move or delete a memslot, or change its flags.

        As the ioctl ``KVM_SET_USER_MEMORY_REGION``: a number that is free makes a
        slot; one that is taken moves it, if its address in the guest differs, or
        changes its flags; a size of 0 deletes it. vCPUs may run meanwhile. A guest
        reaches memory beyond `nr_pages` through streams with a region; an access to
        what no slot has is an error.

        Args:
            slot: Its number, 0 to 32,763; with an address space in bits 16 and
                up, of which a VM made from Python has 0 only.
            guest_phys_addr: Where the guest sees it, in bytes.
            memory_size: Its size; 0 to delete it.
            userspace_addr: Where the process has it: `Vm.address`, or what
                `youngbit.mm.Mm.mmap` of `Vm.mm` returned.
            flags: A sum of `LOG_DIRTY_PAGES` and `READONLY`.

        Raises:
            OSError: ``EINVAL`` for what is malformed, or changes what cannot change
                (size, address in the process, ``READONLY``), or deletes what is not
                there; ``EEXIST`` if it overlaps another slot.

        """
        none = not isinstance(memory_size, (str, bool)) and memory_size == 0
        self._native.set_memory_region(
            whole(slot, "slot", at_most=(1 << 32) - 1),
            whole(flags, "flags", at_most=(1 << 32) - 1),
            whole(guest_phys_addr, "guest_phys_addr"),
            0 if none else parse_size(memory_size, what="memory_size"),
            whole(userspace_addr, "userspace_addr"),
        )

    def run(
        self,
        stream: Stream | Sequence[Stream],
        *,
        mode: Mode = "inline",
        overlap: bool = False,
    ) -> RunStats:
        """Run the vCPUs until each has made its accesses.

        Args:
            stream: What each vCPU does, or one stream a vCPU.
            mode: ``"inline"``: one vCPU after another in this thread, the same to
                the last bit each time. ``"live"``: one thread a vCPU, and one
                kswapd a node.
            overlap: Give each vCPU all of guest memory; otherwise each has its
                share, unless its stream names a region.

        Raises:
            OSError: If a stream leaves guest memory, or memory runs out.
            KeyboardInterrupt: Within a tenth of a second of Ctrl-C; what was
                accessed stays accessed.

        """
        choice(mode, ("inline", "live"), "mode")
        seconds, vcpus, counters = self._native.run(self._streams(stream), mode == "live", overlap)
        return RunStats(seconds, tuple(vcpus), counters)

    def run_while_aging(
        self,
        stream: Stream | Sequence[Stream],
        lru: LruGen,
        *,
        overlap: bool = False,
        can_swap: bool = True,
        force_scan: bool = True,
        apart: bool = False,
    ) -> tuple[RunStats, AgingRun]:
        """Run one thread a vCPU, and age in a loop in this thread until all are done.

        Args:
            stream: What the vCPUs touch, one for each or one for all.
            lru: What is aged.
            overlap: Let each vCPU touch the memory of all.
            can_swap: As `LruGen.age`.
            force_scan: As `LruGen.age`.
            apart: Keep this thread on one processor and the vCPUs on the others,
                where there are others and the system allows it.

        Returns:
            What the run did, and the aging passes.

        Raises:
            TypeError: If ``lru`` is no `LruGen`.
            ValueError: If it is another host's.
            OSError: As `run` and `LruGen.age`.

        """
        if not isinstance(lru, LruGen):
            raise TypeError(f"lru: expected a LruGen, not {type(lru).__name__}")
        check_same_host(self._host, lru, lru._host, "lru")
        seconds, vcpus, counters, passes, processor, aged = self._native.run_while_aging(
            self._streams(stream),
            overlap,
            lru.memcg.id,
            lru.node,
            can_swap,
            force_scan,
            apart,
        )
        vcpu_cpu, aging_cpu = processor or (None, None)
        aging = AgingRun(
            tuple(each for each, _ in passes),
            tuple(asked for _, asked in passes),
            aging_cpu,
            vcpu_cpu,
            aged,
        )
        return RunStats(seconds, tuple(vcpus), counters), aging

    def _streams(self, stream: Stream | Sequence[Stream]) -> list[Stream]:
        streams = [stream] * self.nr_vcpus if isinstance(stream, Stream) else list(stream)
        for i, each in enumerate(streams):
            if not isinstance(each, Stream):
                raise TypeError(f"stream[{i}]: expected a Stream, not {type(each).__name__}")
        if len(streams) != self.nr_vcpus:
            raise ValueError(f"stream: {len(streams)} streams for {self.nr_vcpus} vCPUs")
        return streams

    def page_generations(self) -> npt.NDArray[np.int64]:
        """Return for each guest page the number of its generation.

        -1 stands for a page that is not there or on no list.
        """
        return self._native.page_generations()

    def set_guest_mode(self, *, l2: bool) -> None:
        """Let every vCPU of a nested VM run the guest's guest (as at first), or the guest.

        Raises:
            OSError: ``EOPNOTSUPP`` if the VM is not nested.

        """
        self._native.set_guest_mode(l2)

    def mark_idle(self, first_page: int = 0, nr_pages: int | None = None) -> IdleStats:
        """Mark pages idle through ``page_idle``; those that are idle still stay so.

        Args:
            first_page: First guest page.
            nr_pages: How many; otherwise all that follow.

        """
        return IdleStats(*self._native.mark_idle(*self._range(first_page, nr_pages)))

    def test_idle(self, first_page: int = 0, nr_pages: int | None = None) -> npt.NDArray[np.bool_]:
        """Return for each guest page whether ``page_idle`` says that it is idle."""
        return self._native.test_idle(*self._range(first_page, nr_pages))

    def scan_young(
        self, first_page: int = 0, nr_pages: int | None = None, *, flush: bool = False
    ) -> npt.NDArray[np.bool_]:
        """Return for each guest page whether it was accessed since the last time; clear that.

        Reads the accessed bits of the process and, through the accurate
        notifiers, of the guest, a page at a time.

        Args:
            first_page: First guest page.
            nr_pages: How many; otherwise all that follow.
            flush: Flush the TLB for each page that was accessed. Otherwise
                accesses through what it still holds are not seen.

        """
        first, count = self._range(first_page, nr_pages)
        start = self.address + first * PAGE_SIZE
        found, _ = _core.scan_young(self._native.mm, start, count, flush)
        return found

    def _range(self, first_page: int, nr_pages: int | None) -> tuple[int, int]:
        first = whole(first_page, "first_page")
        count = self.nr_pages - first if nr_pages is None else whole(nr_pages, "nr_pages")
        if count <= 0 or first + count > self.nr_pages:
            raise ValueError(
                f"pages {first} to {first + count}: expected some of the guest's {self.nr_pages}"
            )
        return first, count
