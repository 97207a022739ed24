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
CORE: Final = 0x0001
MM_WALK: Final = 0x0002
SECONDARY_MMU_WALK: Final = 0x0008
#: Host memory beyond the guest's, in pages, when an experiment makes the host.
HOST_SLACK_PAGES: Final = 1024
#: Bytes of the model for each guest page that is used, measured, rounded up: by
#: the MMU over base pages, by the backing over larger ones.
MODEL_BYTES: Final = {"tdp": 48, "shadow": 58, "nested": 76, "2m": 32, "1g": 32}

# Randomness.
SEED: Final = 0x6B8B4567

# The command `access-tracking`.
VCPU_BYTES: Final = "1G"
#: The modelled TLB forgets only what others push out. The test is about page
#: tables: memory that fits a TLB would seem to stay old, as with ``--tlb 1536``.
ACCESS_TRACKING_TLB_ENTRIES: Final = 0
LIVE: Final = True
#: Runs of each protocol that count, with ``--against``.
CONTENTION_REPETITIONS: Final = 5

# The command `replay`.
REPLAY_EVERY: Final = 4000
#: A first-level TLB. A recording has one access a page and window where the
#: program made thousands, so it presses on the TLB far less than the program did.
REPLAY_TLB_ENTRIES: Final = 64

# The command `lru-gen`: the MMUs that recordings know, and their swap device.
SCENARIO_MMUS: Final = ("tdp", "shadow", "direct-rmap")
SCENARIO_SWAP_PAGES: Final = 131_071

# The command `reclaim`.
#: What memory may stay, as a share of the footprint.
RECLAIM_LIMIT: Final = 0.5
RECLAIM_PRESSURES: Final = ("proactive", "reclaim", "max", "high")
RECLAIM_WORKLOADS: Final = ("zipf", "hot-cold", "trace")
#: The guest of a made-up workload, and how long it runs.
RECLAIM_MEMORY: Final = "80M"
RECLAIM_ACCESSES: Final = 1_000_000
#: Share of the footprint that an aging interval touches, unless said otherwise:
#: between the quarter and the half that the kernel itself wants a generation to be.
RECLAIM_TOUCHED: Final = 1 / 3
#: Agings from one round of reclaim to the next: the generations then cover the
#: time since the round before.
RECLAIM_ROUND: Final = 4
#: A recording too short for that many rounds is aged more often.
RECLAIM_MIN_ROUNDS: Final = 6
#: How often everything runs, each time with the first round that share of a
#: round later.
RECLAIM_PHASES: Final = 8
#: Steps of an interval to which it is known when a guest that reclaims itself did.
RECLAIM_STEPS: Final = 16
#: Fewer pages than that are a batch or two, and reclaim is all overshoot.
RECLAIM_LEAST_PAGES: Final = 256
#: Memory and swap beyond the guest's, so that neither ends before the limit does.
RECLAIM_SLACK_PAGES: Final = 8192
#: Commands of one round before it gives up.
RECLAIM_TRIES: Final = 8
#: The two runs that are compared: without and with secondary MMU walks.
RECLAIM_OFF: Final = 0x0007
RECLAIM_ON: Final = 0x000F
RECLAIM_TLB_ENTRIES: Final = 64
#: What a guest waits for a page from swap, microseconds: a fast SSD.
RECLAIM_SWAP_IN_US: Final = 80.0
ZIPF_EXPONENT: Final = 1.0
HOT_FRACTION: Final = 0.2
HOT_PROBABILITY: Final = 0.9
HOT_PHASES: Final = 5
WRITE_SHARE: Final = 0.3

# The experiment `aging`.
AGING_PAGES: Final = 16_384
AGING_ACCESSES: Final = 200_000
AGING_EVERY: Final = 10_000
AGING_TLB_ENTRIES: Final = 0
AGING_WARM_UP: Final = 2

# Sweeps.
#: More runs than that are a mistake in a grid.
SWEEP_MAX_RUNS: Final = 1_000_000
#: Runs that the table's file is written by at a time.
SWEEP_BATCH: Final = 1000

# The command `bench`.
BENCH_SCALES: Final = ("smallest", "quick", "full", "large")
BENCH_SCALE: Final = "full"
BENCH_SEED: Final = 1
#: Share of the machine's time used by others above which a result says so.
BENCH_DISTURBED: Final = 0.05

# Traces.
#: Time in a snapshot of a DAMON record that is written: the kernel's 100 ms where
#: a trace's time is nanoseconds, and where it is instructions about as long.
DAMON_INTERVAL: Final = 100_000_000

# The command `estimate`: the kernel's attributes of DAMON.
DAMON_SAMPLES: Final = 20
DAMON_REGIONS: Final = (10, 1000)

# The command `policies`: what memory may stay, as shares of the footprint.
POLICY_SIZES: Final = (0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875)

# The command `heatmap`, and how a trace's pages become a guest's.
LAYOUTS: Final = ("touch", "address")
HEAT_MAP_ROWS: Final = 400
HEAT_MAP_COLUMNS: Final = 400
#: Columns of a trace that has too few events to fill those.
HEAT_MAP_FEWEST_COLUMNS: Final = 64

#: What is shorter is divided into so many intervals.
FEWEST_INTERVALS: Final = 16

# Plots.
PLOT_DPI: Final = 120

# The command `mmu-stress`: threads that are vCPUs, those that age, seconds, and
# accesses of each vCPU in a round.
STRESS_THREADS: Final = 2
STRESS_AGERS: Final = 2
STRESS_MAX_THREADS: Final = 64
STRESS_MAX_AGERS: Final = 16
STRESS_SECONDS: Final = 10.0
STRESS_ACCESSES: Final = 1 << 21

# Reports of runs and sweeps: more than that is left out, and the page says so.
#: Rows of a table.
REPORT_ROWS: Final = 1000
#: Runs whose passes are drawn.
REPORT_RUNS: Final = 24
#: Columns that a figure's menu offers.
REPORT_COLUMNS: Final = 60
#: Runs whose heat maps a report has, and columns of each at most.
REPORT_MAPS: Final = 8
REPORT_MAP_COLUMNS: Final = 300
#: Values of a parameter that are named; rows of a table that is not folded.
REPORT_VALUES: Final = 24
#: Letters of a run's settings beside which a figure has room.
REPORT_NAME: Final = 70
