"""Every default of the package and of the command, in one place."""

from __future__ import annotations

from typing import Final

# The machine.
PROTOCOLS: Final = ("baseline", "v7", "v9")
PROTOCOL: Final = "v7"
MMUS: Final = ("tdp", "shadow", "nested")
MMU: Final = "tdp"
FORMATS: Final = ("ept", "npt")
FORMAT: Final = "ept"
#: What the aging walk of MGLRU may ask secondary MMUs, and what it does ask in
#: the kernel of each protocol. Kernels before 6.12-rc6 asked nothing: baseline
#: can be run with "none" too.
AGING_ASKS: Final = ("none", "accurate", "fast_only")
PROTOCOL_ASKS: Final = {"baseline": "accurate", "v7": "fast_only", "v9": "accurate"}
#: Sizes of the pages that back guest memory, and what they are in bytes.
BACKINGS: Final = {"4k": 1 << 12, "2m": 1 << 21, "1g": 1 << 30}
BACKING: Final = "4k"
#: Kinds of memory.
KINDS: Final = ("anon", "shmem", "file")
VCPUS: Final = 1
MAX_VCPUS: Final = 512
#: Entries of each vCPU's modelled TLB, a common server's second level; 0: none.
TLB_ENTRIES: Final = 1536
#: Its associativity where that fits the entries, else the nearest that does.
TLB_WAYS: Final = 12
TLB_MAX_WAYS: Final = 64
#: Levels of the secondary page tables.
LEVELS: Final = 4
#: Capabilities of the multi-gen LRU: core, mm walk, non-leaf young, secondary MMU walk.
CAPABILITIES: Final = 0x000F
#: Host memory beyond the guest's, in pages, when an experiment makes the host.
HOST_SLACK_PAGES: Final = 1024

# Randomness.
SEED: Final = 0x6B8B4567

# The command `access-tracking`.
VCPU_BYTES: Final = "1G"
#: The modelled TLB forgets only what others push out. The test is about page
#: tables: memory that fits a TLB would seem to stay old, as with `--tlb 1536`.
ACCESS_TRACKING_TLB_ENTRIES: Final = 0
LIVE: Final = True

# The command `replay`.
REPLAY_EVERY: Final = 4000
#: A first-level TLB. A recording has one access a page and window where the
#: program made thousands, so it presses on the TLB far less than the program did.
REPLAY_TLB_ENTRIES: Final = 64

# Plots.
PLOT_DPI: Final = 120
