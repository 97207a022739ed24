"""Every default of the package and of the command, in one place."""

from __future__ import annotations

from typing import Final

# The machine.
PROTOCOLS: Final = ("baseline", "v7", "v9")
PROTOCOL: Final = "v7"
MMUS: Final = ("tdp",)
MMU: Final = "tdp"
FORMATS: Final = ("ept", "npt")
FORMAT: Final = "ept"
#: What the aging walk of MGLRU asks secondary MMUs in `baseline`.
AGING_ASKS: Final = ("none", "accurate")
AGING_ASK: Final = "accurate"
#: Sizes of the pages that back guest memory, and what they are in bytes.
BACKINGS: Final = {"4k": 1 << 12, "2m": 1 << 21, "1g": 1 << 30}
BACKING: Final = "4k"
VCPUS: Final = 1
MAX_VCPUS: Final = 512
#: Entries and ways of each vCPU's modelled TLB; 0 entries: none.
TLB_ENTRIES: Final = 1536
TLB_WAYS: Final = 12
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
#: The modelled TLB is small beside the memory under test; the selftest relies on that too.
LIVE: Final = True

# The command `replay`.
REPLAY_EVERY: Final = 4000
REPLAY_TLB_ENTRIES: Final = 1536

# Plots.
PLOT_DPI: Final = 120
