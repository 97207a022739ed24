//! Reverse maps: from a GFN to every SPTE that maps it (`arch/x86/kvm/mmu/mmu.c`,
//! `pte_list_*`, `rmap_*`, `kvm_rmap_lock()`).
//!
//! One word per GFN and level, the *head*:
//!
//! | value | meaning |
//! |---|---|
//! | 0 | no SPTE maps the GFN at this level |
//! | bit 0 clear | the address of the only SPTE |
//! | bit 0 set | the address of a descriptor: [`PTE_LIST_EXT`] SPTE addresses, a count, a tail count, a link |
//! | bit 1 set | somebody holds the chain |
//!
//! Only the head descriptor of a chain may be partly full; its tail count says
//! how many SPTEs the descriptors behind it hold.
//!
//! # Who may do what
//!
//! | field | read by | written by | guard | pairs with |
//! |---|---|---|---|---|
//! | head, from 0 to one SPTE | anyone | [`DescArena::add`] | `mmu_lock` for write | release store / acquire of [`RmapHead::lock`] |
//! | head, any other change | anyone | add, remove, zap | `mmu_lock` for write *and* bit 1 | the same |
//! | bit 1 | anyone | [`RmapHead::lock`], [`RmapHead::unlock`] | compare-and-exchange | acquire / release |
//! | descriptors | the holder of bit 1 | the holder of bit 1 under `mmu_lock` | bit 1 | the same |
//!
//! A reader outside `mmu_lock` takes the bit, walks from the value the lock
//! *returned*, and releases that same value. Descriptors therefore need no
//! grace period: the one who frees a descriptor holds the bit, so no reader is
//! inside, and the next reader starts from a head that no longer leads there.
//! The same argument protects the SPTEs: an entry leaves the chain only under
//! the bit, and its SPTE's slot is reused only after it left.

use crate::error::{Errno, Error, Result};
use crate::mutant::{self, Mutant};
use crate::sync::atomic::{AtomicU64, Ordering, zeroed};
use crate::sync::cell::Witness;
use crate::sync::lock::Mutex;
use crate::sync::once::OnceLock;
use crate::sync::spin::Backoff;
use crate::table::{POISON, TABLE_ENTRIES, TABLE_SHIFT, TableId};
use crate::trace::{Counter, Counters};

/// SPTE addresses in one descriptor; small under a model checker.
pub const PTE_LIST_EXT: usize = if cfg!(loom) { 2 } else { 14 };

/// The head is the address of a descriptor (`KVM_RMAP_MANY`).
pub const RMAP_MANY: u64 = 1 << 0;
/// The chain is held (`KVM_RMAP_LOCKED`).
pub const RMAP_LOCKED: u64 = 1 << 1;

const TAG_BITS: u32 = 2;

/// The address of an SPTE: its table and its index there, shifted so that the
/// two tag bits of a head are free, and never 0.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct SptePtr(u64);

impl SptePtr {
    /// The address of entry `index` of `table`.
    #[inline]
    pub fn new(table: TableId, index: usize) -> Self {
        debug_assert!(index < TABLE_ENTRIES);
        let place = u64::from(table.0) << TABLE_SHIFT | index as u64;
        SptePtr((place + 1) << TAG_BITS)
    }

    #[inline]
    fn place(self) -> u64 {
        (self.0 >> TAG_BITS) - 1
    }

    /// Its table.
    #[inline]
    pub fn table(self) -> TableId {
        TableId((self.place() >> TABLE_SHIFT) as u32)
    }

    /// Its index in the table (`spte_index()`).
    #[inline]
    pub fn index(self) -> usize {
        self.place() as usize & (TABLE_ENTRIES - 1)
    }
}

/// One head, wherever it is kept (`struct kvm_rmap_head`).
#[derive(Clone, Copy)]
pub struct RmapHead<'a>(pub &'a AtomicU64);

impl RmapHead<'_> {
    /// Hold the chain and return the head's value, without the bit; 0 when the
    /// chain is empty, and then nothing is held (`kvm_rmap_lock()`).
    ///
    /// The holder must be quick: a writer that wants the chain spins with
    /// `mmu_lock` held. The kernel forbids preemption meanwhile; here nothing
    /// between lock and unlock may block, allocate or yield.
    #[inline]
    pub fn lock(self, counters: &Counters) -> u64 {
        // Relaxed, here and while waiting: nothing behind the value is read
        // before the exchange below.
        let mut seen = self.0.load(Ordering::Relaxed);
        if seen == 0 {
            return 0;
        }
        loop {
            if seen & RMAP_LOCKED != 0 {
                seen = self.wait_unlocked(counters);
            }
            // The one who held it may have emptied it.
            if seen == 0 {
                return 0;
            }
            // Acquire: pairs with the release in `unlock`, so that the chain
            // is read and written only after its last holder was done with it.
            match self.0.compare_exchange_weak(
                seen,
                seen | RMAP_LOCKED,
                Ordering::Acquire,
                Ordering::Relaxed,
            ) {
                Ok(_) => {
                    counters.add(Counter::RmapLocks, 1);
                    return seen;
                }
                Err(now) => {
                    counters.add(Counter::RmapLost, 1);
                    seen = now;
                }
            }
        }
    }

    /// Pause, *then* look again: a look before the pause would be stale by the
    /// time it is used, and costs the holder its cache line once more. Mutant
    /// `pause-after-read` turns the two round.
    #[cold]
    fn wait_unlocked(self, counters: &Counters) -> u64 {
        let backoff = Backoff::new();
        loop {
            counters.add(Counter::RmapSpins, 1);
            let stale =
                mutant::active(Mutant::PauseAfterRead).then(|| self.0.load(Ordering::Relaxed));
            backoff.wait();
            let seen = stale.unwrap_or_else(|| self.0.load(Ordering::Relaxed));
            if seen & RMAP_LOCKED == 0 {
                return seen;
            }
        }
    }

    /// Let go of the chain and make `value` its head (`kvm_rmap_unlock()`).
    /// Under `mmu_lock` for write it may also be called on an empty chain.
    #[inline]
    pub fn unlock(self, value: u64) {
        debug_assert!(value & RMAP_LOCKED == 0);
        // Release: pairs with the acquire in `lock`.
        self.0.store(value, Ordering::Release);
    }

    /// Let go of a chain that was only read (`kvm_rmap_unlock_readonly()`).
    /// `value` is what [`lock`](Self::lock) returned.
    #[inline]
    pub fn unlock_readonly(self, value: u64) {
        debug_assert!(value != 0 && value & RMAP_LOCKED == 0);
        debug_assert!(self.0.load(Ordering::Relaxed) == value | RMAP_LOCKED);
        // Release, although nothing was written: a relaxed store could become
        // visible before the holder's last reads of the chain are done, and
        // the next holder frees what they read.
        let order = if mutant::active(Mutant::UnlockRelaxed) {
            Ordering::Relaxed
        } else {
            Ordering::Release
        };
        self.0.store(value, order);
    }

    /// The head's value without the bit (`kvm_rmap_get()`). Good for a walk only under `mmu_lock`
    /// for write, which keeps chains from changing.
    #[inline]
    pub fn value(self) -> u64 {
        self.0.load(Ordering::Relaxed) & !RMAP_LOCKED
    }

    /// Whether no SPTE maps the GFN at this level.
    #[inline]
    pub fn is_empty(self) -> bool {
        self.value() == 0
    }
}

/// A descriptor in a [`DescArena`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct DescId(u32);

impl DescId {
    #[inline]
    fn of_head(value: u64) -> Self {
        debug_assert!(value & RMAP_MANY != 0);
        DescId(((value >> TAG_BITS) - 1) as u32)
    }

    #[inline]
    fn as_head(self) -> u64 {
        (u64::from(self.0) + 1) << TAG_BITS | RMAP_MANY
    }
}

// Words of a descriptor (`struct pte_list_desc`): 128 bytes.
const W_COUNTS: usize = 0;
const W_MORE: usize = 1;
const W_SPTES: usize = 2;
const DESC_WORDS: usize = W_SPTES + PTE_LIST_EXT;
/// Bytes of one descriptor.
pub const DESC_BYTES: usize = DESC_WORDS * size_of::<u64>();
#[cfg(not(loom))]
const _: () = assert!(DESC_BYTES == 128);

const CHUNK_DESCS: usize = if cfg!(loom) { 16 } else { 1024 };
const MAX_CHUNKS: usize = if cfg!(loom) { 1 } else { 65_536 };
/// How many descriptors a fault may need: one for the leaf's chain and one for
/// each parent's (`mmu_topup_memory_caches()`).
pub const DESC_CACHE_MIN: usize = 1 + 5;
/// A chain longer than this is zapped whole (`RMAP_RECYCLE_THRESHOLD`).
pub const RMAP_RECYCLE_THRESHOLD: u64 = 1000;
const DESC_CACHE_FILL: usize = if cfg!(loom) { 6 } else { 40 };

/// One descriptor's words. Relaxed everywhere: the head's bit orders them.
#[derive(Clone, Copy)]
struct Desc<'a> {
    words: &'a [AtomicU64],
    witness: &'a Witness,
}

impl Desc<'_> {
    #[inline]
    fn get(self, word: usize) -> u64 {
        self.witness.read();
        self.words[word].load(Ordering::Relaxed)
    }

    #[inline]
    fn set(self, word: usize, value: u64) {
        self.witness.write();
        self.words[word].store(value, Ordering::Relaxed);
    }

    /// SPTEs in this descriptor, and in those behind it.
    #[inline]
    fn counts(self) -> (usize, u64) {
        let counts = self.get(W_COUNTS);
        (counts as u32 as usize, counts >> 32)
    }

    #[inline]
    fn set_counts(self, here: usize, tail: u64) {
        self.set(W_COUNTS, here as u64 | tail << 32);
    }

    #[inline]
    fn is_poisoned(self) -> bool {
        self.get(W_COUNTS) == POISON
    }

    #[inline]
    fn more(self) -> Option<DescId> {
        match self.get(W_MORE) {
            0 => None,
            head => Some(DescId::of_head(head)),
        }
    }
}

struct Chunk {
    words: Box<[AtomicU64]>,
    witness: Box<[Witness]>,
}

/// Descriptors of one VM (`pte_list_desc_cache`), poisoned while free.
pub struct DescArena {
    chunks: Box<[OnceLock<Chunk>]>,
    free: Mutex<FreeDescs>,
}

#[derive(Default)]
struct FreeDescs {
    next: u32,
    returned: Vec<u32>,
    live: u32,
}

/// Descriptors that one vCPU has ready before it takes `mmu_lock`, under which
/// it must not allocate (`mmu_pte_list_desc_cache`).
#[derive(Default)]
pub struct DescCache(Vec<u32>);

impl Default for DescArena {
    fn default() -> Self {
        Self::new()
    }
}

impl DescArena {
    /// An arena without descriptors.
    pub fn new() -> Self {
        DescArena {
            chunks: (0..MAX_CHUNKS).map(|_| OnceLock::new()).collect(),
            free: Mutex::new(FreeDescs::default()),
        }
    }

    /// Have at least [`DESC_CACHE_MIN`] descriptors ready
    /// (`kvm_mmu_topup_memory_cache()`). Called without `mmu_lock`.
    ///
    /// # Errors
    /// `ENOMEM` when the arena is full.
    pub fn topup(&self, cache: &mut DescCache) -> Result<()> {
        if cache.0.len() >= DESC_CACHE_MIN {
            return Ok(());
        }
        let mut free = self.free.lock();
        while cache.0.len() < DESC_CACHE_FILL {
            let id = match free.returned.pop() {
                Some(id) => id,
                None if (free.next as usize) < MAX_CHUNKS * CHUNK_DESCS => {
                    free.next += 1;
                    free.next - 1
                }
                None if cache.0.len() >= DESC_CACHE_MIN => break,
                None => {
                    return Err(Error::new(
                        Errno::ENOMEM,
                        format!("out of rmap descriptors: all {} are in use", free.next),
                    ));
                }
            };
            self.chunks[id as usize / CHUNK_DESCS].get_or_init(|| {
                let words: Box<[AtomicU64]> = zeroed(CHUNK_DESCS * DESC_WORDS);
                for desc in words.chunks(DESC_WORDS) {
                    desc[W_COUNTS].store(POISON, Ordering::Relaxed);
                }
                Chunk {
                    words,
                    witness: (0..CHUNK_DESCS)
                        .map(|_| Witness::new("the descriptor"))
                        .collect(),
                }
            });
            free.live += 1;
            cache.0.push(id);
        }
        Ok(())
    }

    /// Give a cache's descriptors back, when its vCPU goes.
    pub fn drain(&self, cache: &mut DescCache) {
        let mut free = self.free.lock();
        free.live -= cache.0.len() as u32;
        free.returned.append(&mut cache.0);
    }

    #[inline]
    fn desc(&self, id: DescId) -> Desc<'_> {
        let chunk = self.chunks[id.0 as usize / CHUNK_DESCS]
            .get()
            .expect("a descriptor comes from topup, which made its chunk");
        let at = id.0 as usize % CHUNK_DESCS;
        Desc {
            words: &chunk.words[at * DESC_WORDS..(at + 1) * DESC_WORDS],
            witness: &chunk.witness[at],
        }
    }

    fn free(&self, id: DescId) {
        let desc = self.desc(id);
        assert!(!desc.is_poisoned(), "rmap descriptor {} freed twice", id.0);
        for word in 0..DESC_WORDS {
            desc.set(word, POISON);
        }
        let mut free = self.free.lock();
        free.live -= 1;
        free.returned.push(id.0);
    }

    /// Descriptors in chains and in vCPUs' caches.
    pub fn live(&self) -> u32 {
        self.free.lock().live
    }

    /// Add an SPTE to a chain (`pte_list_add()`); returns how many it has now.
    /// The caller holds `mmu_lock` for write and has filled `cache`.
    pub fn add(
        &self,
        counters: &Counters,
        head: RmapHead<'_>,
        spte: SptePtr,
        cache: &mut DescCache,
    ) -> u64 {
        let value = head.lock(counters);
        let (new, count) = if value == 0 {
            // Nothing is held: only this thread, under `mmu_lock`, may make an
            // empty chain non-empty.
            (spte.0, 1)
        } else if value & RMAP_MANY == 0 {
            let id = Self::take(cache);
            let desc = self.desc(id);
            if mutant::active(Mutant::PublishBeforeInit) {
                head.unlock(id.as_head());
            }
            desc.set(W_SPTES, value);
            desc.set(W_SPTES + 1, spte.0);
            desc.set(W_MORE, 0);
            desc.set_counts(2, 0);
            (id.as_head(), 2)
        } else {
            let id = DescId::of_head(value);
            let desc = self.desc(id);
            let (here, tail) = desc.counts();
            if here == PTE_LIST_EXT {
                // Descriptors behind the head stay full: a new head it is.
                let id = Self::take(cache);
                let desc = self.desc(id);
                let tail = tail + here as u64;
                if mutant::active(Mutant::PublishBeforeInit) {
                    head.unlock(id.as_head());
                }
                desc.set(W_SPTES, spte.0);
                desc.set(W_MORE, value);
                desc.set_counts(1, tail);
                (id.as_head(), tail + 1)
            } else {
                desc.set(W_SPTES + here, spte.0);
                desc.set_counts(here + 1, tail);
                (value, tail + here as u64 + 1)
            }
        };
        // Its release publishes the descriptor written above.
        head.unlock(new);
        count
    }

    fn take(cache: &mut DescCache) -> DescId {
        DescId(
            cache
                .0
                .pop()
                .expect("the cache was filled before mmu_lock was taken"),
        )
    }

    /// Remove an SPTE from a chain (`pte_list_remove()`). The caller holds
    /// `mmu_lock` for write and has zapped the SPTE before.
    ///
    /// # Errors
    /// `EIO` when the chain does not hold it: the rmap is corrupt.
    pub fn remove(&self, counters: &Counters, head: RmapHead<'_>, spte: SptePtr) -> Result<()> {
        let value = head.lock(counters);
        if value == 0 {
            return Err(Self::corrupt(spte));
        }
        if value & RMAP_MANY == 0 {
            let found = value == spte.0;
            head.unlock(if found { 0 } else { value });
            return if found {
                Ok(())
            } else {
                Err(Self::corrupt(spte))
            };
        }
        let first = DescId::of_head(value);
        let mut at = Some(first);
        while let Some(id) = at {
            let desc = self.desc(id);
            let (here, _) = desc.counts();
            if let Some(n) = (0..here).find(|&n| desc.get(W_SPTES + n) == spte.0) {
                let (new, emptied) = self.fill_hole(value, desc, n);
                head.unlock(new);
                if let Some(id) = emptied {
                    self.free(id);
                }
                return Ok(());
            }
            at = desc.more();
        }
        head.unlock(value);
        Err(Self::corrupt(spte))
    }

    /// Move the head descriptor's last SPTE into slot `n` of `desc`, so that
    /// only the head is ever partly full; returns the new head value, and the
    /// descriptor that became empty (`pte_list_desc_remove_entry()`).
    fn fill_hole(&self, value: u64, desc: Desc<'_>, n: usize) -> (u64, Option<DescId>) {
        let first = DescId::of_head(value);
        let head_desc = self.desc(first);
        let (here, tail) = head_desc.counts();
        let last = head_desc.get(W_SPTES + here - 1);
        desc.set(W_SPTES + n, last);
        head_desc.set(W_SPTES + here - 1, 0);
        head_desc.set_counts(here - 1, tail);
        if here > 1 {
            return (value, None);
        }
        (head_desc.get(W_MORE), Some(first))
    }

    fn corrupt(spte: SptePtr) -> Error {
        Error::new(
            Errno::EIO,
            format!(
                "rmap corruption: SPTE {} of table {} is not in the chain of its GFN",
                spte.index(),
                spte.table().0
            ),
        )
    }

    /// Empty a chain: `zap` is called for each SPTE, and the chain is let go of
    /// when all are zapped (`kvm_zap_all_rmap_sptes()`). The caller holds
    /// `mmu_lock` for write. Returns whether there was any.
    pub fn zap_all(
        &self,
        counters: &Counters,
        head: RmapHead<'_>,
        mut zap: impl FnMut(SptePtr),
    ) -> bool {
        let value = head.lock(counters);
        if value == 0 {
            return false;
        }
        self.iter(counters, value).for_each(&mut zap);
        head.unlock(0);
        let mut at = (value & RMAP_MANY != 0).then(|| DescId::of_head(value));
        while let Some(id) = at {
            at = self.desc(id).more();
            self.free(id);
        }
        true
    }

    /// SPTEs in the chain that `value`, from [`RmapHead::lock`] or
    /// [`RmapHead::value`], leads to (`pte_list_count()`): one look, however
    /// long the chain is.
    pub fn count(&self, value: u64) -> u64 {
        if value & RMAP_MANY == 0 {
            return u64::from(value != 0);
        }
        let (here, tail) = self.desc(DescId::of_head(value)).counts();
        here as u64 + tail
    }

    /// The SPTEs of the chain that `value` leads to. The caller holds the
    /// chain and `value` is what the lock returned, or it holds `mmu_lock` for
    /// write. A freed descriptor ends the walk and is counted in
    /// `poison_reads`, which must stay 0.
    #[inline]
    pub fn iter<'a>(&'a self, counters: &'a Counters, value: u64) -> RmapIter<'a> {
        let mut iter = RmapIter {
            arena: self,
            counters,
            only: 0,
            desc: None,
            at: 0,
            len: 0,
        };
        if value & RMAP_MANY == 0 {
            iter.only = value;
        } else {
            iter.enter(Some(DescId::of_head(value)));
        }
        iter
    }

    /// Call `visit` with each SPTE of a chain, until it returns false, without
    /// `mmu_lock`: the chain is held by its bit and walked from the value the
    /// lock returned (`for_each_rmap_spte_lockless()`). An empty chain is not
    /// held, so it is not walked either, whatever its head says by then.
    #[inline]
    pub fn for_each_lockless(
        &self,
        counters: &Counters,
        head: RmapHead<'_>,
        mut visit: impl FnMut(SptePtr) -> bool,
    ) {
        let held = head.lock(counters);
        let mut value = held;
        if held == 0 {
            if !mutant::active(Mutant::RereadHead) {
                return;
            }
            value = head.value();
        }
        for ptr in self.iter(counters, value) {
            if !visit(ptr) {
                break;
            }
        }
        if held != 0 {
            head.unlock_readonly(held);
        }
    }

    /// Check a chain's shape: tail counts right, only the head partly full, no
    /// SPTE twice, no freed descriptor. The chain must not change meanwhile.
    ///
    /// # Errors
    /// `EIO` naming what is wrong.
    pub fn verify(&self, head: RmapHead<'_>) -> Result<Vec<SptePtr>> {
        let wrong = |what: String| Error::new(Errno::EIO, format!("rmap chain: {what}"));
        let value = head.0.load(Ordering::Acquire);
        if value & RMAP_LOCKED != 0 {
            return Err(wrong("left locked".into()));
        }
        let mut found = Vec::new();
        if value & RMAP_MANY == 0 {
            found.extend((value != 0).then_some(SptePtr(value)));
            return Ok(found);
        }
        let mut at = Some(DescId::of_head(value));
        let mut expected_tail = None;
        while let Some(id) = at {
            let desc = self.desc(id);
            if desc.is_poisoned() {
                return Err(wrong(format!("descriptor {} is free", id.0)));
            }
            let (here, tail) = desc.counts();
            if here == 0 || here > PTE_LIST_EXT {
                return Err(wrong(format!("descriptor {} holds {here} SPTEs", id.0)));
            }
            if expected_tail.is_some() && here != PTE_LIST_EXT {
                return Err(wrong(format!("tail descriptor {} is partly full", id.0)));
            }
            let total = here as u64 + tail;
            if let Some(expected) = expected_tail
                && total != expected
            {
                return Err(wrong(format!(
                    "tail count says {expected} SPTEs, the descriptors hold {total}"
                )));
            }
            expected_tail = Some(tail);
            found.extend((0..here).map(|n| SptePtr(desc.get(W_SPTES + n))));
            at = desc.more();
        }
        if expected_tail != Some(0) {
            return Err(wrong(format!(
                "the last descriptor expects {expected_tail:?} more SPTEs"
            )));
        }
        let mut sorted = found.clone();
        sorted.sort_unstable();
        sorted.dedup();
        if sorted.len() != found.len() {
            return Err(wrong("an SPTE is in it twice".into()));
        }
        Ok(found)
    }
}

/// See [`DescArena::iter`].
pub struct RmapIter<'a> {
    arena: &'a DescArena,
    counters: &'a Counters,
    only: u64,
    desc: Option<Desc<'a>>,
    at: usize,
    len: usize,
}

impl RmapIter<'_> {
    fn enter(&mut self, id: Option<DescId>) {
        self.desc = id.map(|id| self.arena.desc(id));
        self.at = 0;
        self.len = 0;
        if let Some(desc) = self.desc {
            if desc.is_poisoned() {
                self.counters.add(Counter::PoisonReads, 1);
                self.desc = None;
            } else {
                self.len = desc.counts().0;
            }
        }
    }
}

impl Iterator for RmapIter<'_> {
    type Item = SptePtr;

    #[inline]
    fn next(&mut self) -> Option<SptePtr> {
        let desc = match self.desc {
            None => {
                let only = std::mem::take(&mut self.only);
                if only == 0 {
                    return None;
                }
                self.counters.add(Counter::RmapSptes, 1);
                return Some(SptePtr(only));
            }
            Some(desc) if self.at < self.len => desc,
            Some(desc) => {
                self.enter(desc.more());
                self.desc?
            }
        };
        let spte = desc.get(W_SPTES + self.at);
        self.at += 1;
        if spte == POISON || spte == 0 {
            self.counters.add(Counter::PoisonReads, 1);
            self.desc = None;
            return None;
        }
        self.counters.add(Counter::RmapSptes, 1);
        Some(SptePtr(spte))
    }
}

/// Levels that leaf SPTEs have: 4 KiB, 2 MiB, 1 GiB (`KVM_NR_PAGE_SIZES`).
pub const NR_LEVELS: u32 = 3;

/// Index of a GFN among the heads of a slot (`gfn_to_index()`).
#[inline]
pub fn gfn_to_index(gfn: u64, base_gfn: u64, level: u32) -> usize {
    let shift = (level - 1) * TABLE_SHIFT;
    ((gfn >> shift) - (base_gfn >> shift)) as usize
}

/// The heads of one memslot, one array per level (`kvm_arch_memory_slot::rmap`):
/// 8 bytes a page and level. Untouched parts cost no memory.
pub struct SlotRmaps {
    base_gfn: u64,
    npages: u64,
    heads: [Box<[AtomicU64]>; NR_LEVELS as usize],
}

impl SlotRmaps {
    /// Empty heads for `[base_gfn, base_gfn + npages)`, `npages` not 0.
    pub fn new(base_gfn: u64, npages: u64) -> Self {
        let heads = std::array::from_fn(|n| {
            let last = gfn_to_index(base_gfn + npages - 1, base_gfn, n as u32 + 1);
            zeroed(last + 1)
        });
        SlotRmaps {
            base_gfn,
            npages,
            heads,
        }
    }

    /// The head of a GFN of the slot (`gfn_to_rmap()`).
    #[inline]
    pub fn head(&self, gfn: u64, level: u32) -> RmapHead<'_> {
        RmapHead(&self.heads[level as usize - 1][gfn_to_index(gfn, self.base_gfn, level)])
    }

    /// The heads of `level` whose huge page meets `[start, end)`, each once.
    ///
    /// Steps by index. Stepping a GFN by the huge page size from an unaligned
    /// `start` would leave the range before the last huge page that it meets:
    /// mutant `unaligned-step`.
    #[inline]
    pub fn range(&self, level: u32, start: u64, end: u64) -> impl Iterator<Item = RmapHead<'_>> {
        let start = start.max(self.base_gfn);
        let end = end.min(self.base_gfn + self.npages);
        let heads = if start < end {
            let first = gfn_to_index(start, self.base_gfn, level);
            let last = gfn_to_index(end - 1, self.base_gfn, level);
            &self.heads[level as usize - 1][first..=last]
        } else {
            &[]
        };
        heads.iter().map(RmapHead)
    }

    /// Bytes of the heads.
    pub fn bytes(&self) -> usize {
        self.heads.iter().map(|h| h.len() * size_of::<u64>()).sum()
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
