//! Counters and tracepoints.
//!
//! Counts explain times. Each [`Cpu`](crate::cpu::Cpu) keeps its own, so that
//! counting shares no cache line; they are added to the host's totals when the
//! `Cpu` goes. What one call did is therefore its `Cpu`'s counters.

use crate::sync::atomic::{Ordering, Tally};
use std::cell::Cell;

macro_rules! counters {
    ($($(#[doc = $doc:literal])+ $name:ident = $key:literal),* $(,)?) => {
        /// What is counted. The key is the name in JSON and in Python.
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
        #[repr(usize)]
        pub enum Counter { $($(#[doc = $doc])+ $name),* }

        impl Counter {
            /// Every counter, in the order of their numbers.
            pub const ALL: &'static [Counter] = &[$(Counter::$name),*];
            /// The key in results.
            pub const fn key(self) -> &'static str {
                match self { $(Counter::$name => $key),* }
            }
            /// One line on what it counts.
            pub const fn help(self) -> &'static str {
                match self { $(Counter::$name => concat!($($doc),+)),* }
            }
        }
    };
}

counters! {
    /// Guest accesses made by vCPUs.
    GuestAccesses = "guest_accesses",
    /// Guest accesses answered by the modelled TLB.
    TlbHits = "tlb_hits",
    /// Guest accesses that walked the SPTEs.
    TlbMisses = "tlb_misses",
    /// Remote TLB flushes requested.
    TlbFlushes = "tlb_flushes",
    /// Accessed bits that the guest's walks set.
    AccessedSet = "accessed_set",
    /// Dirty bits that the guest's walks set.
    DirtySet = "dirty_set",
    /// Secondary MMU faults (kvm_page_fault).
    KvmPageFaults = "kvm_page_faults",
    /// Secondary MMU faults fixed without mmu_lock (fast_page_fault).
    FastPageFaults = "fast_page_faults",
    /// Secondary MMU faults that met someone else's finished work.
    SpuriousFaults = "spurious_faults",
    /// Secondary MMU faults retried because of an invalidation or a lost race.
    FaultRetries = "fault_retries",
    /// Primary MMU faults (pgfault).
    PgFault = "pgfault",
    /// Primary MMU faults that needed swap or file input (pgmajfault).
    PgMajFault = "pgmajfault",
    /// SPTEs loaded by aging and testing.
    SpteLoads = "spte_loads",
    /// SPTEs loaded by vCPU walks and faults.
    SpteWalkLoads = "spte_walk_loads",
    /// Atomic and-operations on SPTEs by aging.
    SpteFetchAnd = "spte_fetch_and",
    /// Compare-and-exchange operations tried on SPTEs.
    SpteCas = "spte_cas",
    /// Compare-and-exchange operations on SPTEs that failed.
    SpteCasFailed = "spte_cas_failed",
    /// SPTEs cleared by a plain store under mmu_lock.
    SptePlainStores = "spte_plain_stores",
    /// Accessed bits cleared in SPTEs, or SPTEs access-tracked.
    SptesAged = "sptes_aged",
    /// SPTEs zapped.
    SptesZapped = "sptes_zapped",
    /// Freed tables that a walker met: must stay 0.
    PoisonReads = "poison_reads",
    /// Page-table pages allocated for secondary MMUs.
    TablesAllocated = "tables_allocated",
    /// Page-table pages passed to RCU to be freed.
    TablesFreed = "tables_freed",
    /// Rmap chains taken by their bit.
    RmapLocks = "rmap_locks",
    /// Rounds spent waiting for an rmap chain's bit.
    RmapSpins = "rmap_spins",
    /// Exchanges for an rmap chain's bit that another thread spoiled.
    RmapLost = "rmap_lost",
    /// SPTEs visited through rmap chains.
    RmapSptes = "rmap_sptes",
    /// Non-present SPTEs that an rmap walk met under mmu_lock: must stay 0.
    RmapCorrupt = "rmap_corrupt",
    /// Shadow pages zapped.
    ShadowPagesZapped = "shadow_pages_zapped",
    /// Shadow pages zapped because too many were in use.
    ShadowPagesRecycled = "shadow_pages_recycled",
    /// Guest writes to shadowed page tables that trapped and were emulated.
    ShadowWriteTraps = "shadow_write_traps",
    /// Shadow pages zapped because their guest page table was written often.
    ShadowWriteFloods = "shadow_write_floods",
    /// Faults passed on to the guest.
    GuestPageFaults = "guest_page_faults",
    /// mmu_lock acquisitions for read.
    MmuLockRead = "mmu_lock_read",
    /// mmu_lock acquisitions for write.
    MmuLockWrite = "mmu_lock_write",
    /// mmu_lock acquisitions that had to wait.
    MmuLockContended = "mmu_lock_contended",
    /// Nanoseconds spent waiting for mmu_lock.
    MmuLockWaitNs = "mmu_lock_wait_ns",
    /// LRU lock acquisitions by faults that had to wait.
    LruLockContended = "lru_lock_contended",
    /// Nanoseconds that faults spent waiting for the LRU lock.
    LruLockWaitNs = "lru_lock_wait_ns",
    /// Memslots yielded by HVA walks.
    MemslotsVisited = "memslots_visited",
    /// clear_flush_young notifier calls, one a subscriber asked.
    NotifierClearFlushYoung = "notifier_clear_flush_young",
    /// clear_young notifier calls with fast_only, one a subscriber asked.
    NotifierClearYoungFast = "notifier_clear_young_fast",
    /// clear_young notifier calls without fast_only, one a subscriber asked.
    NotifierClearYoungSlow = "notifier_clear_young_slow",
    /// test_young notifier calls with fast_only, one a subscriber asked.
    NotifierTestYoungFast = "notifier_test_young_fast",
    /// test_young notifier calls without fast_only, one a subscriber asked.
    NotifierTestYoungSlow = "notifier_test_young_slow",
    /// clear_young notifier calls for all pages of a PTE table together.
    NotifierClearYoungBatch = "notifier_clear_young_batch",
    /// Subscribers left alone because they are not fast.
    NotifierSkipped = "notifier_skipped",
    /// Notifier answers that said young.
    NotifierYoung = "notifier_young",
    /// invalidate_range_start notifier calls, one a subscriber asked.
    NotifierInvalidate = "notifier_invalidate",
    /// PTE-table slots looked at by the aging walk (MM_LEAF_TOTAL).
    MmLeafTotal = "mm_leaf_total",
    /// Old PTEs found by the aging walk (MM_LEAF_OLD).
    MmLeafOld = "mm_leaf_old",
    /// Young PTEs found by the aging walk (MM_LEAF_YOUNG).
    MmLeafYoung = "mm_leaf_young",
    /// PMD entries looked at (MM_NONLEAF_TOTAL).
    MmNonleafTotal = "mm_nonleaf_total",
    /// PMD entries found in the Bloom filter or young (MM_NONLEAF_FOUND).
    MmNonleafFound = "mm_nonleaf_found",
    /// PMD entries added to the next Bloom filter (MM_NONLEAF_ADDED).
    MmNonleafAdded = "mm_nonleaf_added",
    /// Folios whose generation the aging walk updated.
    FoliosPromoted = "folios_promoted",
    /// Attempts to change a folio's word that another thread spoiled.
    FolioCasFailed = "folio_cas_failed",
    /// Folios moved out of the oldest generation by making a new one.
    FoliosAged = "folios_aged",
    /// PTE tables skipped because their lock was taken.
    PtlTrylockFailed = "ptl_trylock_failed",
    /// mms given up because their mmap_lock was taken.
    MmapTrylockFailed = "mmap_trylock_failed",
    /// Look-arounds made by eviction.
    LookArounds = "look_arounds",
    /// Pages scanned by eviction (pgscan).
    PgScan = "pgscan",
    /// Pages reclaimed by eviction (pgsteal).
    PgSteal = "pgsteal",
    /// Pages moved by sorting and inc_min_seq (pgrefill).
    PgRefill = "pgrefill",
    /// Pages written to swap.
    SwapOut = "pswpout",
    /// Pages read from swap.
    SwapIn = "pswpin",
    /// Refaulted anonymous pages.
    RefaultAnon = "workingset_refault_anon",
    /// Refaulted file pages.
    RefaultFile = "workingset_refault_file",
    /// Refaulted anonymous pages that were activated.
    ActivateAnon = "workingset_activate_anon",
    /// Refaulted file pages that were activated.
    ActivateFile = "workingset_activate_file",
    /// Refaulted anonymous pages restored to the working set.
    RestoreAnon = "workingset_restore_anon",
    /// Refaulted file pages restored to the working set.
    RestoreFile = "workingset_restore_file",
    /// File pages written back.
    FileWritten = "file_written",
    /// Rounds of direct reclaim, for a memory cgroup or a node (allocstall).
    DirectReclaim = "allocstall",
    /// Times that kswapd was woken (pageoutrun).
    KswapdRuns = "pageoutrun",
    /// Nanoseconds that tasks over memory.high would have been put to sleep.
    HighThrottleNs = "memory_high_throttle_ns",
    /// Out-of-memory events: no memory could be had, or min_ttl_ms was missed.
    OomEvents = "oom",
}

/// How many counters there are.
pub const NR_COUNTERS: usize = Counter::ALL.len();

/// One thread's counters.
pub struct Counters([Cell<u64>; NR_COUNTERS]);

impl Default for Counters {
    fn default() -> Self {
        Counters([const { Cell::new(0) }; NR_COUNTERS])
    }
}

impl Counters {
    /// Add `n`.
    #[inline]
    pub fn add(&self, counter: Counter, n: u64) {
        let cell = &self.0[counter as usize];
        cell.set(cell.get().wrapping_add(n));
    }

    /// The value.
    pub fn get(&self, counter: Counter) -> u64 {
        self.0[counter as usize].get()
    }

    /// All values, by counter number.
    pub fn snapshot(&self) -> CounterValues {
        CounterValues(std::array::from_fn(|i| self.0[i].get()))
    }
}

/// The values of all counters at one time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CounterValues([u64; NR_COUNTERS]);

impl Default for CounterValues {
    fn default() -> Self {
        CounterValues([0; NR_COUNTERS])
    }
}

impl CounterValues {
    /// One value.
    pub fn get(&self, counter: Counter) -> u64 {
        self.0[counter as usize]
    }

    /// Key and value of every counter.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        Counter::ALL.iter().map(|&c| (c.key(), self.get(c)))
    }

    /// What was counted since `earlier`.
    pub fn since(&self, earlier: &CounterValues) -> CounterValues {
        CounterValues(std::array::from_fn(|i| {
            self.0[i].wrapping_sub(earlier.0[i])
        }))
    }

    /// Add another set of values.
    pub fn merge(&mut self, other: &CounterValues) {
        for (mine, theirs) in self.0.iter_mut().zip(other.0) {
            *mine = mine.wrapping_add(theirs);
        }
    }
}

/// The sums over all threads that have finished.
pub struct CounterTotals([Tally; NR_COUNTERS]);

impl Default for CounterTotals {
    fn default() -> Self {
        CounterTotals(std::array::from_fn(|_| Tally::new(0)))
    }
}

impl CounterTotals {
    /// Add one thread's values.
    pub fn merge(&self, values: &CounterValues) {
        for (total, &n) in self.0.iter().zip(&values.0) {
            if n != 0 {
                // Relaxed: sums only, nothing is published by them.
                total.fetch_add(n, Ordering::Relaxed);
            }
        }
    }

    /// Add to one of them.
    #[inline]
    pub fn add(&self, counter: Counter, n: u64) {
        if n != 0 {
            self.0[counter as usize].fetch_add(n, Ordering::Relaxed);
        }
    }

    /// One of the sums now.
    pub fn get(&self, counter: Counter) -> u64 {
        self.0[counter as usize].load(Ordering::Relaxed)
    }

    /// The sums now.
    pub fn snapshot(&self) -> CounterValues {
        CounterValues(std::array::from_fn(|i| self.0[i].load(Ordering::Relaxed)))
    }
}

/// A tracepoint. The numbers are bits of the mask that switches them on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[repr(u32)]
pub enum Event {
    /// `kvm_age_hva(start, end, fast_only)`.
    KvmAgeHva = 1 << 0,
    /// `kvm_test_age_hva(hva, fast_only)`.
    KvmTestAgeHva = 1 << 1,
    /// `kvm_unmap_hva_range(start, end)`.
    KvmUnmapHvaRange = 1 << 2,
    /// `kvm_tdp_mmu_spte_changed(as_id, gfn, level, old, new)`.
    KvmTdpMmuSpteChanged = 1 << 3,
    /// `kvm_page_fault(vcpu, gfn, access)`: 0 for a read, 1 for a write, 2 for an
    /// instruction fetch.
    KvmPageFault = 1 << 4,
    /// `fast_page_fault(vcpu, gfn, old, new)`.
    FastPageFault = 1 << 5,
}

impl Event {
    /// Every tracepoint.
    pub const ALL: &'static [Event] = &[
        Event::KvmAgeHva,
        Event::KvmTestAgeHva,
        Event::KvmUnmapHvaRange,
        Event::KvmTdpMmuSpteChanged,
        Event::KvmPageFault,
        Event::FastPageFault,
    ];

    /// The kernel's name of it.
    pub const fn name(self) -> &'static str {
        match self {
            Event::KvmAgeHva => "kvm_age_hva",
            Event::KvmTestAgeHva => "kvm_test_age_hva",
            Event::KvmUnmapHvaRange => "kvm_unmap_hva_range",
            Event::KvmTdpMmuSpteChanged => "kvm_tdp_mmu_spte_changed",
            Event::KvmPageFault => "kvm_page_fault",
            Event::FastPageFault => "fast_page_fault",
        }
    }

    /// Names of its arguments, in the order of [`Record::args`].
    pub const fn arg_names(self) -> &'static [&'static str] {
        match self {
            Event::KvmAgeHva => &["start", "end", "fast_only"],
            Event::KvmTestAgeHva => &["hva", "fast_only"],
            Event::KvmUnmapHvaRange => &["start", "end"],
            Event::KvmTdpMmuSpteChanged => &["as_id", "gfn", "level", "old", "new"],
            Event::KvmPageFault => &["vcpu", "gfn", "access"],
            Event::FastPageFault => &["vcpu", "gfn", "old", "new"],
        }
    }
}

/// One traced event.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Record {
    /// Nanoseconds on the host's clock.
    pub time_ns: u64,
    /// Which tracepoint.
    pub event: Event,
    /// Its arguments, in the order of [`Event::arg_names`]; the rest is 0.
    pub args: [u64; 5],
}
