//! Whether a page that eviction has isolated is in use, and who around it is
//! (`lru_gen_look_around()` of `mm/vmscan.c`, `folio_referenced()` of
//! `mm/rmap.c`).
//!
//! A page found young lets the walk look at its neighbours in the page table,
//! for locality is what makes that cheap; and a table with enough young
//! neighbours is told to the next aging walk.
//!
//! Which secondary MMUs are asked, and how, depends on the kernel:
//!
//! | asking | the page itself | its neighbours |
//! |---|---|---|
//! | `None` | flushing notifier, after a look around if the entry is young | primary bit only |
//! | `Accurate` | accurate notifier | accurate notifier |
//! | `FastOnly` | accurate notifier | fast-only notifier, with capability 0x8 |

use super::filter::pmd_item;
use super::folio::{folio_behind, hand_over_dirty, update_gen};
use super::lruvec::{FILE, LruVec, MIN_LRU_BATCH, gen_from_seq, type_of};
use super::settings::{Asking, caps};
use super::walk::Batch;
use crate::cpu::Cpu;
use crate::mm::folio::{FolioWord, IDLE, REFERENCED, REFS_MASK, WORKINGSET, YOUNG};
use crate::mm::pagetable::{ACCESSED, PMD, PTE, SPECIAL, level_index, level_size};
use crate::mm::rmap::{Rmap, mapped_walk};
use crate::mm::{Area, Entry, Mm, PAGE_SIZE, Pfn, Pte, Word};
use crate::sync::atomic::Ordering;
use crate::trace::Counter;

/// What a batch of evicted folios is checked with.
pub(crate) struct LookAround<'a> {
    cpu: &'a Cpu,
    lruvec: &'a LruVec,
    asking: Asking,
    /// Capability 0x8.
    secondary: bool,
    /// The memory cgroup that reclaim is for: accesses by others do not count.
    target: Option<u16>,
    /// The walk context: sizes to be applied later. Without one, young
    /// neighbours are activated.
    batch: Option<&'a mut Batch>,
    /// Neighbours to activate.
    activate: &'a mut Vec<Pfn>,
}

/// What the reverse mapping said of a folio.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Referenced {
    /// VMAs that used it.
    pub vmas: u32,
    /// One of them is locked in memory.
    pub locked: bool,
}

impl<'a> LookAround<'a> {
    pub(crate) fn new(
        cpu: &'a Cpu,
        lruvec: &'a LruVec,
        target: Option<u16>,
        batch: Option<&'a mut Batch>,
        activate: &'a mut Vec<Pfn>,
    ) -> Self {
        let settings = &cpu.host().lru_gen;
        LookAround {
            cpu,
            lruvec,
            asking: settings.asking(),
            secondary: settings.has(caps::SECONDARY_MMU_WALK),
            target,
            batch,
            activate,
        }
    }

    /// Ask everything that maps a folio whether it used it, and clear that
    /// (`folio_referenced()`).
    pub(crate) fn folio_referenced(&mut self, rmap: &Rmap<'_>, head: Pfn) -> Referenced {
        let cpu = self.cpu;
        let memory = &cpu.host().memory;
        let index = u64::from(memory.pgoff(head).load(Ordering::Relaxed));
        let word = memory.word(head).get();
        let mut left = memory.mapcount(head);
        let mut result = Referenced {
            vmas: 0,
            locked: false,
        };
        rmap.walk(index, word.nr_pages(), |mm, vma, start, end| {
            // Uses that say nothing about recency, or are others'.
            if !vma.has_recency() || self.target.is_some_and(|id| id != mm.memcg.id) {
                return true;
            }
            let mut young = 0;
            mapped_walk(cpu, mm, memory, head, start, end, |address, at, pte| {
                if vma.flags.locked {
                    result.locked = true;
                    return false;
                }
                young += if at.level == PTE {
                    self.look_around(mm, vma, address, at, pte, word)
                } else {
                    u32::from(self.clear_flush_young(mm, address, at, pte))
                };
                left = left.saturating_sub(1);
                left > 0
            });
            if result.locked {
                return false;
            }
            if young > 0 && memory.word(head).get().has(IDLE) {
                memory.word(head).clear(IDLE);
            }
            if memory.word(head).get().has(YOUNG) {
                memory.word(head).clear(YOUNG);
                young += 1;
            }
            result.vmas += u32::from(young > 0);
            left > 0
        });
        result
    }

    /// Test and clear a leaf and its secondary mappings, flushing
    /// (`ptep_clear_flush_young_notify()` and its like for a PMD).
    fn clear_flush_young(&self, mm: &Mm, address: u64, at: Entry, pte: Pte) -> bool {
        let size = level_size(at.level);
        let start = address & !(size - 1);
        let primary = Self::clear_young(mm, at, pte);
        // Asked always, so that its bits are cleared too.
        let secondary = mm
            .notifiers
            .clear_flush_young(self.cpu, start, start + size);
        primary || secondary
    }

    /// Clear an entry's accessed bit if it was set.
    #[inline]
    fn clear_young(mm: &Mm, at: Entry, pte: Pte) -> bool {
        // Relaxed: the bit carries nothing but itself.
        pte.is_young() && mm.word(at).fetch_and(!ACCESSED, Ordering::Relaxed) & ACCESSED != 0
    }

    /// Check the page at `address`, whose table's lock is held, and look
    /// around if it is young. Returns how often it was found referenced.
    fn look_around(
        &mut self,
        mm: &Mm,
        vma: &Area,
        address: u64,
        at: Entry,
        pte: Pte,
        folio: Word,
    ) -> u32 {
        let (cpu, page_end) = (self.cpu, address + PAGE_SIZE);
        match self.asking {
            Asking::None => {
                let mut referenced = 0;
                if pte.is_young() {
                    self.neighbours(mm, vma, address, at, folio, 0);
                    referenced += 1;
                }
                let now = mm.read(at);
                referenced + u32::from(self.clear_flush_young(mm, address, at, now))
            }
            Asking::Accurate => {
                let primary = Self::clear_young(mm, at, pte);
                let secondary = mm.notifiers.clear_young(cpu, address, page_end, false);
                if !(primary || secondary) {
                    return 0;
                }
                self.neighbours(mm, vma, address, at, folio, 1);
                1
            }
            Asking::FastOnly => {
                let secondary = mm.notifiers.clear_young(cpu, address, page_end, false);
                // Read again: the guest's fault may have touched it meanwhile.
                if Self::clear_young(mm, at, mm.read(at)) {
                    self.neighbours(mm, vma, address, at, folio, 1);
                    return 1;
                }
                // Slow secondary MMUs would make each neighbour as dear as this.
                if secondary && mm.notifiers.has_fast_young_notifiers() {
                    self.neighbours(mm, vma, address, at, folio, 1);
                }
                u32::from(secondary)
            }
        }
    }

    /// Check the pages around `address`: up to `MIN_LRU_BATCH` of them, of the
    /// same table and VMA.
    fn neighbours(
        &mut self,
        mm: &Mm,
        vma: &Area,
        address: u64,
        at: Entry,
        folio: Word,
        mut young: usize,
    ) {
        if vma.flags.special || mm.tables.meta(at.table).ptl.is_contended() {
            return;
        }
        let (start, end) = window(vma, address);
        if end - start == PAGE_SIZE {
            return;
        }
        self.cpu.count(Counter::LookArounds);
        let max_seq = self.lruvec.max_seq();
        let new_gen = gen_from_seq(max_seq);
        let first = level_index(start, PTE);
        let pages = ((end - start) / PAGE_SIZE) as usize;
        for n in 0..pages {
            let place = Entry {
                index: first + n,
                ..at
            };
            let here = start + n as u64 * PAGE_SIZE;
            young += usize::from(self.neighbour(mm, here, place, folio, new_gen));
        }
        // A cache line of entries has a young one on average.
        if young * 8 >= pages {
            let filters = &self.lruvec.mm_state.filters;
            filters[max_seq as usize % 2].insert(pmd_item(mm.id, address / level_size(PMD)));
        }
    }

    /// Check one page; promote it if it is young.
    #[inline]
    fn neighbour(&mut self, mm: &Mm, address: u64, at: Entry, folio: Word, new_gen: usize) -> bool {
        let cpu = self.cpu;
        let memory = &cpu.host().memory;
        let pte = mm.read(at);
        if !pte.is_present() || pte.has(SPECIAL) {
            return false;
        }
        let asks = self.asking != Asking::None && mm.notifiers.has_notifiers();
        if !pte.is_young() && !asks {
            return false;
        }
        // Private copies in a file mapping are not promoted with the file's
        // pages: whether anonymous pages can be swapped was not asked.
        let Some((pfn, word)) = folio_behind(memory, self.lruvec, pte)
            .filter(|&(_, word)| type_of(folio) != FILE || type_of(word) == FILE)
        else {
            return false;
        };
        let secondary = match self.asking {
            Asking::Accurate => mm
                .notifiers
                .clear_young(cpu, address, address + PAGE_SIZE, false),
            Asking::FastOnly if self.secondary => {
                mm.notifiers
                    .clear_young(cpu, address, address + PAGE_SIZE, true)
            }
            Asking::FastOnly | Asking::None => false,
        };
        let primary = Self::clear_young(mm, at, pte);
        if !(primary || secondary) {
            return false;
        }
        let word = hand_over_dirty(memory, pte, pfn, word);
        if let Some(batch) = &mut self.batch {
            if let Some(old_gen) = update_gen(cpu, memory, pfn, new_gen)
                && old_gen != new_gen
            {
                batch.note(word, old_gen, new_gen);
            }
        } else {
            match word.generation() {
                None => {
                    memory.word(pfn).set(REFERENCED);
                }
                Some(old_gen) if old_gen != new_gen => {
                    memory.word(pfn).clear(REFS_MASK | REFERENCED | WORKINGSET);
                    // Not here: the LRU lock is not taken under a table's.
                    self.activate.push(pfn);
                }
                Some(_) => {}
            }
        }
        true
    }
}

/// The pages to look at around `address`.
fn window(vma: &Area, address: u64) -> (u64, u64) {
    const SPAN: u64 = MIN_LRU_BATCH as u64 * PAGE_SIZE;
    let table = level_size(PMD);
    let mut start = (address & !(table - 1)).max(vma.start);
    let mut end = (address | (table - 1)).min(vma.end - 1) + 1;
    if end - start > SPAN {
        if address - start < SPAN / 2 {
            end = start + SPAN;
        } else if end - address < SPAN / 2 {
            start = end - SPAN;
        } else {
            start = address - SPAN / 2;
            end = address + SPAN / 2;
        }
    }
    (start, end)
}
