//! The LRU of one memory cgroup on one node: lists, sizes and history.
//!
//! | field | written | read |
//! |---|---|---|
//! | [`LruVec::lru_lock`] guards [`Lists`] and every list link | under it | under it |
//! | `max_seq` | under the lock, release | anywhere, acquire |
//! | `min_seq`, `timestamps`, `nr_pages`, `lru_size`, `avg_*`, `protected` | under the lock | anywhere, relaxed: a reader tolerates a value that is about to change |
//! | `evicted`, `refaulted` | anywhere, by addition | anywhere |
//!
//! Source: `struct lru_gen_folio` and `struct lruvec` of
//! `include/linux/mmzone.h`, `lru_gen_init_lruvec()` of `mm/vmscan.c`.

use super::filter::BloomFilter;
use crate::mm::folio::{Pfn, Word};
use crate::mm::memory::{MAX_FRAMES, PhysMem};
use crate::mutant::{self, Mutant};
use crate::sync::CachePadded;
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::lock::PatientMutex;

/// Generations that eviction leaves alone: the two youngest.
pub const MIN_NR_GENS: usize = 2;
/// Generations that can exist at one time.
pub const MAX_NR_GENS: usize = 4;
/// Tiers of a generation.
pub const MAX_NR_TIERS: usize = 4;
/// Generations whose history is kept (`CONFIG_LRU_GEN_STATS`).
pub const NR_HIST_GENS: usize = MAX_NR_GENS;
/// Pages that a batch should have (`MIN_LRU_BATCH`).
pub const MIN_LRU_BATCH: usize = 64;
/// Folios that a lock hold may move (`MAX_LRU_BATCH`).
pub const MAX_LRU_BATCH: usize = 64 * MIN_LRU_BATCH;
/// Index of anonymous (and shmem) pages (`LRU_GEN_ANON`).
pub const ANON: usize = 0;
/// Index of file pages (`LRU_GEN_FILE`).
pub const FILE: usize = 1;
/// Anonymous and file.
pub const NR_TYPES: usize = 2;

/// The slot of a sequence number (`lru_gen_from_seq()`).
#[inline]
pub const fn gen_from_seq(seq: u64) -> usize {
    (seq % MAX_NR_GENS as u64) as usize
}

/// The history slot of a sequence number (`lru_hist_from_seq()`).
#[inline]
pub const fn hist_from_seq(seq: u64) -> usize {
    (seq % NR_HIST_GENS as u64) as usize
}

/// The tier of a number of references beyond the first
/// (`lru_tier_from_refs()`): the rounded-up logarithm of that plus one.
#[inline]
pub const fn tier_from_refs(refs: u64) -> usize {
    (refs + 1).next_power_of_two().trailing_zeros() as usize
}

/// [`ANON`] or [`FILE`].
#[inline]
pub fn type_of(word: Word) -> usize {
    usize::from(word.is_file_lru())
}

/// The lists of a lruvec; whoever has `&mut` of it holds the LRU lock.
///
/// They are circular, with the ends of list `(gen, type)` standing in the
/// links as frame number `MAX_FRAMES + 2 * gen + type`. A folio can therefore
/// be unlinked without knowing which list it is on, which its word does not
/// say: walkers change the word's generation and leave the folio where it is.
pub struct Lists {
    /// Neighbours of the ends: towards the tail of the list comes its head.
    ends: [[u32; 2]; MAX_NR_GENS * NR_TYPES],
}

/// Side of a link: the neighbour towards the head, or towards the tail.
const HEADWARD: usize = 0;
const TAILWARD: usize = 1;

impl Lists {
    fn new() -> Self {
        Lists {
            ends: std::array::from_fn(|n| [MAX_FRAMES + n as u32; 2]),
        }
    }

    #[inline]
    const fn end(generation: usize, ty: usize) -> u32 {
        MAX_FRAMES + (generation * NR_TYPES + ty) as u32
    }

    // Relaxed throughout: the lock orders these.
    #[inline]
    fn get(&self, memory: &PhysMem, at: u32, side: usize) -> u32 {
        match at.checked_sub(MAX_FRAMES) {
            Some(n) => self.ends[n as usize][side],
            None => memory.link(Pfn(at), side).load(Ordering::Relaxed),
        }
    }

    #[inline]
    fn set(&mut self, memory: &PhysMem, at: u32, side: usize, to: u32) {
        match at.checked_sub(MAX_FRAMES) {
            Some(n) => self.ends[n as usize][side] = to,
            None => memory.link(Pfn(at), side).store(to, Ordering::Relaxed),
        }
    }

    #[inline(always)]
    fn insert_between(&mut self, memory: &PhysMem, pfn: Pfn, headward: u32, tailward: u32) {
        self.set(memory, pfn.0, HEADWARD, headward);
        self.set(memory, pfn.0, TAILWARD, tailward);
        self.set(memory, headward, TAILWARD, pfn.0);
        self.set(memory, tailward, HEADWARD, pfn.0);
    }

    /// Put a folio that is on no list at a list's head (`list_add()`).
    #[inline]
    pub fn add_head(&mut self, memory: &PhysMem, generation: usize, ty: usize, pfn: Pfn) {
        let end = Self::end(generation, ty);
        let first = self.get(memory, end, TAILWARD);
        self.insert_between(memory, pfn, end, first);
    }

    /// Put folios that are on no list at a list's head, one after the other:
    /// the last one becomes the first of the list. As
    /// [`add_head`](Self::add_head) of each, but each link is written once.
    #[inline]
    pub fn add_all_head(&mut self, memory: &PhysMem, generation: usize, ty: usize, folios: &[Pfn]) {
        let end = Self::end(generation, ty);
        let mut tailward = self.get(memory, end, TAILWARD);
        for &pfn in folios {
            memory
                .link(pfn, TAILWARD)
                .store(tailward, Ordering::Relaxed);
            self.set(memory, tailward, HEADWARD, pfn.0);
            tailward = pfn.0;
        }
        self.set(memory, tailward, HEADWARD, end);
        self.set(memory, end, TAILWARD, tailward);
    }

    /// Put a folio that is on no list at a list's tail (`list_add_tail()`).
    #[inline]
    pub fn add_tail(&mut self, memory: &PhysMem, generation: usize, ty: usize, pfn: Pfn) {
        let end = Self::end(generation, ty);
        let last = self.get(memory, end, HEADWARD);
        self.insert_between(memory, pfn, last, end);
    }

    /// Unlink a folio from whatever list it is on (`list_del()`).
    #[inline]
    pub fn remove(&mut self, memory: &PhysMem, pfn: Pfn) {
        let headward = self.get(memory, pfn.0, HEADWARD);
        let tailward = self.get(memory, pfn.0, TAILWARD);
        self.set(memory, headward, TAILWARD, tailward);
        self.set(memory, tailward, HEADWARD, headward);
    }

    /// Move a folio to a list's head (`list_move()`).
    #[inline]
    pub fn move_head(&mut self, memory: &PhysMem, generation: usize, ty: usize, pfn: Pfn) {
        self.remove(memory, pfn);
        self.add_head(memory, generation, ty, pfn);
    }

    /// Move a folio to a list's tail (`list_move_tail()`).
    #[inline]
    pub fn move_tail(&mut self, memory: &PhysMem, generation: usize, ty: usize, pfn: Pfn) {
        self.remove(memory, pfn);
        self.add_tail(memory, generation, ty, pfn);
    }

    /// Move folios, at most `most` and from a list's tail on, each to the tail
    /// of the generation that `to` says, which is another one; returns how
    /// many. As [`move_tail`](Self::move_tail) of each, but the list that they
    /// leave and the ends of those that they enter are mended once: two stores
    /// a folio, in front of the next one's atomic exchange, which waits for
    /// them.
    #[inline]
    pub fn move_from_tail(
        &mut self,
        memory: &PhysMem,
        generation: usize,
        ty: usize,
        most: usize,
        mut to: impl FnMut(Pfn) -> usize,
    ) -> usize {
        let mut lasts: [u32; MAX_NR_GENS] =
            std::array::from_fn(|to| self.ends[to * NR_TYPES + ty][HEADWARD]);
        let mut at = lasts[generation];
        let mut moved = 0;
        while moved < most && at < MAX_FRAMES {
            let pfn = Pfn(at);
            let next = memory.link(pfn, HEADWARD).load(Ordering::Relaxed);
            let target = to(pfn) % MAX_NR_GENS;
            debug_assert_ne!(target, generation);
            let last = std::mem::replace(&mut lasts[target], at);
            memory.link(pfn, HEADWARD).store(last, Ordering::Relaxed);
            self.set(memory, last, TAILWARD, at);
            at = next;
            moved += 1;
        }
        lasts[generation] = at;
        for (to, &last) in lasts.iter().enumerate() {
            self.ends[to * NR_TYPES + ty][HEADWARD] = last;
            self.set(memory, last, TAILWARD, Self::end(to, ty));
        }
        moved
    }

    /// The folio at a list's tail, which eviction takes first
    /// (`lru_to_folio()`).
    #[inline]
    pub fn last(&self, generation: usize, ty: usize) -> Option<Pfn> {
        let n = self.ends[generation * NR_TYPES + ty][HEADWARD];
        (n < MAX_FRAMES).then_some(Pfn(n))
    }

    /// Whether a list is empty (`list_empty()`).
    #[inline]
    pub fn is_empty(&self, generation: usize, ty: usize) -> bool {
        self.last(generation, ty).is_none()
    }

    /// The folios of a list, from its tail to its head.
    pub fn from_tail<'a>(
        &'a self,
        memory: &'a PhysMem,
        generation: usize,
        ty: usize,
    ) -> impl Iterator<Item = Pfn> + 'a {
        let end = Self::end(generation, ty);
        let mut at = self.get(memory, end, HEADWARD);
        std::iter::from_fn(move || {
            let pfn = (at < MAX_FRAMES).then_some(Pfn(at))?;
            at = self.get(memory, at, HEADWARD);
            Some(pfn)
        })
    }
}

/// What the aging walk counts for a generation, in the order of the letters
/// that `lru_gen_full` prints.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(usize)]
pub enum MmStat {
    /// Slots of PTE tables looked at.
    LeafTotal,
    /// Of them old.
    LeafOld,
    /// Of them young.
    LeafYoung,
    /// PMD entries that name a table.
    NonleafTotal,
    /// Of them found in the Bloom filter.
    NonleafFound,
    /// Of them added to the next filter.
    NonleafAdded,
}

/// How many [`MmStat`]s there are.
pub const NR_MM_STATS: usize = 6;

/// The state of page-table walks over the memory cgroup's mm list
/// (`struct lru_gen_mm_state`). Where an iteration stands in the list is kept
/// with the list, under whose lock it changes.
pub struct MmState {
    /// The last sequence number that an iteration was finished for.
    pub seq: AtomicU64,
    /// PMD entries worth visiting, by the parity of the sequence number.
    pub filters: [BloomFilter; 2],
    /// Counts of the walks, by history slot.
    pub stats: [[AtomicU64; NR_MM_STATS]; NR_HIST_GENS],
}

type PerTier = [[AtomicU64; MAX_NR_TIERS]; NR_TYPES];

fn per_tier() -> PerTier {
    std::array::from_fn(|_| std::array::from_fn(|_| AtomicU64::new(0)))
}

fn history() -> [PerTier; NR_HIST_GENS] {
    std::array::from_fn(|_| per_tier())
}

/// The LRU of one memory cgroup on one node (`struct lruvec`).
pub struct LruVec {
    /// The memory cgroup's number.
    pub memcg: u16,
    /// The node.
    pub node: usize,
    /// The LRU lock, and what it guards. Aging holds it for thousands of folios
    /// at a time, and comes back at once for the next thousands, behind whoever
    /// waits by then and runs ([`PatientMutex::pass_on`]).
    ///
    /// Padded, as the sums below are: faults write them, and the aging walk
    /// reads what is beside them once a page. The lists are on lines of their
    /// own, as in the kernel: a waiter looks at the lock all the time, and
    /// would take the ends of the lists from the holder, who writes them.
    pub lru_lock: CachePadded<PatientMutex<CachePadded<Lists>>>,
    /// The youngest generation.
    max_seq: AtomicU64,
    /// The oldest generation of each type.
    min_seq: [AtomicU64; NR_TYPES],
    /// Birth of each generation, nanoseconds on the host's clock.
    timestamps: [AtomicU64; MAX_NR_GENS],
    /// Pages of each generation and type, signed: eventually consistent.
    nr_pages: CachePadded<[[AtomicU64; NR_TYPES]; MAX_NR_GENS]>,
    /// Pages of each type, inactive and active, as vmstat counts them: signed.
    lru_size: CachePadded<[[AtomicU64; 2]; NR_TYPES]>,
    /// Moving average of refaulted pages.
    pub avg_refaulted: PerTier,
    /// Moving average of evicted plus protected pages.
    pub avg_total: PerTier,
    /// Pages protected from eviction; tier 0 never is.
    pub protected: [PerTier; NR_HIST_GENS],
    /// Pages evicted.
    pub evicted: [PerTier; NR_HIST_GENS],
    /// Pages refaulted.
    pub refaulted: [PerTier; NR_HIST_GENS],
    /// The page-table walks.
    pub mm_state: MmState,
}

/// Change a signed sum that is only written under the LRU lock.
#[inline]
fn add_signed(sum: &AtomicU64, delta: i64) {
    // Relaxed, and not a read-modify-write: the lock excludes other writers.
    let value = sum.load(Ordering::Relaxed).wrapping_add_signed(delta);
    sum.store(value, Ordering::Relaxed);
}

impl LruVec {
    pub(crate) fn new(memcg: u16, node: usize, now_ns: u64) -> Self {
        LruVec {
            memcg,
            node,
            lru_lock: CachePadded::new(PatientMutex::new(CachePadded::new(Lists::new()))),
            max_seq: AtomicU64::new(MIN_NR_GENS as u64 + 1),
            min_seq: [AtomicU64::new(0), AtomicU64::new(0)],
            timestamps: std::array::from_fn(|_| AtomicU64::new(now_ns)),
            nr_pages: CachePadded::new(std::array::from_fn(|_| {
                std::array::from_fn(|_| AtomicU64::new(0))
            })),
            lru_size: CachePadded::new(std::array::from_fn(|_| {
                std::array::from_fn(|_| AtomicU64::new(0))
            })),
            avg_refaulted: per_tier(),
            avg_total: per_tier(),
            protected: history(),
            evicted: history(),
            refaulted: history(),
            mm_state: MmState {
                seq: AtomicU64::new(MIN_NR_GENS as u64),
                filters: [BloomFilter::new(), BloomFilter::new()],
                stats: std::array::from_fn(|_| std::array::from_fn(|_| AtomicU64::new(0))),
            },
        }
    }

    /// The youngest generation.
    #[inline]
    pub fn max_seq(&self) -> u64 {
        // Acquire: pairs with the release in `publish_max_seq`.
        self.max_seq.load(Ordering::Acquire)
    }

    /// The words of `max_seq` and of a generation's birth, for a checker's
    /// report.
    #[cfg(loom)]
    pub fn words(&self, seq: u64) -> (&AtomicU64, &AtomicU64) {
        (&self.max_seq, &self.timestamps[gen_from_seq(seq)])
    }

    /// The oldest generation of a type.
    #[inline]
    pub fn min_seq(&self, ty: usize) -> u64 {
        self.min_seq[ty].load(Ordering::Relaxed)
    }

    /// Raise the youngest generation by one, born now.
    pub(crate) fn publish_max_seq(&self, _held: &mut Lists, now_ns: u64) {
        let next = self.max_seq.load(Ordering::Relaxed) + 1;
        self.timestamps[gen_from_seq(next)].store(now_ns, Ordering::Relaxed);
        // Release: whoever sees the new number sees its birth time and the
        // emptied generation that it reuses; pairs with `max_seq`.
        let order = if mutant::active(Mutant::MaxSeqRelaxed) {
            Ordering::Relaxed
        } else {
            Ordering::Release
        };
        self.max_seq.store(next, order);
    }

    /// Retire the oldest generations of a type below `seq`.
    pub(crate) fn set_min_seq(&self, _held: &mut Lists, ty: usize, seq: u64) {
        self.min_seq[ty].store(seq, Ordering::Relaxed);
    }

    /// Generations of a type (`get_nr_gens()`).
    #[inline]
    pub fn nr_gens(&self, ty: usize) -> usize {
        (self.max_seq.load(Ordering::Relaxed) - self.min_seq(ty) + 1) as usize
    }

    /// When a generation was born, nanoseconds on the host's clock.
    pub fn timestamp(&self, seq: u64) -> u64 {
        self.timestamps[gen_from_seq(seq)].load(Ordering::Relaxed)
    }

    /// Pages counted in a generation's slot; transiently negative while a walk
    /// has not applied its batch.
    #[inline]
    pub fn nr_pages(&self, generation: usize, ty: usize) -> i64 {
        self.nr_pages[generation][ty].load(Ordering::Relaxed) as i64
    }

    /// Pages of a type in the two youngest generations (`active`), or in the
    /// others, as vmstat counts them (`NR_ACTIVE_ANON` and its like).
    pub fn lru_size(&self, ty: usize, active: bool) -> u64 {
        (self.lru_size[ty][usize::from(active)].load(Ordering::Relaxed) as i64).max(0) as u64
    }

    /// Whether a generation's slot counts as active (`lru_gen_is_active()`).
    #[inline]
    pub fn is_active(&self, generation: usize) -> bool {
        let max_seq = self.max_seq.load(Ordering::Relaxed);
        generation == gen_from_seq(max_seq) || generation == gen_from_seq(max_seq - 1)
    }

    /// Add to a generation's size and to vmstat's.
    #[inline]
    pub(crate) fn add_pages(&self, _held: &mut Lists, generation: usize, ty: usize, delta: i64) {
        add_signed(&self.nr_pages[generation][ty], delta);
        add_signed(
            &self.lru_size[ty][usize::from(self.is_active(generation))],
            delta,
        );
    }

    /// Move pages between vmstat's active and inactive sizes.
    pub(crate) fn deactivate_pages(&self, _held: &mut Lists, ty: usize, delta: i64) {
        add_signed(&self.lru_size[ty][0], delta);
        add_signed(&self.lru_size[ty][1], -delta);
    }

    /// Account a folio that is added (`old` is `None`), deleted (`new` is
    /// `None`) or moved (`lru_gen_update_size()`).
    #[inline]
    pub(crate) fn update_size(
        &self,
        held: &mut Lists,
        word: Word,
        old: Option<usize>,
        new: Option<usize>,
    ) {
        let ty = type_of(word);
        let pages = word.nr_pages() as i64;
        if let Some(old) = old {
            self.add_pages(held, old, ty, -pages);
        }
        if let Some(new) = new {
            self.add_pages(held, new, ty, pages);
        }
    }
}
