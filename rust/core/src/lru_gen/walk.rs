//! The aging walk over an mm's page tables (`walk_mm()` and below it, of
//! `mm/vmscan.c`).
//!
//! The cost of the faithful path is paid here, a page at a time: read the
//! entry, read the folio's word, ask the secondary MMUs, clear the entry's
//! accessed bit if it is set, move the folio by its word. Nothing is allocated,
//! no reference is counted and no shared counter written for a page: sizes and
//! counts are kept in the walk and applied a batch at a time.

use super::filter::pmd_item;
use super::folio::{folio_behind, hand_over_dirty, update_gen_from};
use super::lruvec::{
    ANON as ANON_TYPE, FILE, LruVec, MAX_LRU_BATCH, MAX_NR_GENS, MmStat, NR_MM_STATS, NR_TYPES,
    gen_from_seq, type_of,
};
use super::settings::WalkRules;
use crate::cpu::Cpu;
use crate::mm::folio::{Pfn, TAIL};
use crate::mm::pagetable::{
    ACCESSED, LEVELS, PMD, PTE, PUD, Pte, SPECIAL, TASK_SIZE, level_index, level_size,
};
use crate::mm::vma::Vmas;
use crate::mm::{Kind, Mm, PAGE_SIZE, PageMask, Vma, Word};
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::table::{TABLE_ENTRIES, TableId};
use crate::trace::Counter;
use std::sync::Arc;

/// Sizes of generations that a walk has changed and not yet applied.
#[derive(Default)]
pub struct Batch {
    nr_pages: [[i64; NR_TYPES]; MAX_NR_GENS],
    batched: usize,
}

impl Batch {
    /// Note that a folio moved (`update_batch_size()`).
    #[inline]
    pub fn note(&mut self, word: Word, old: usize, new: usize) {
        let pages = word.nr_pages() as i64;
        self.batched += 1;
        self.nr_pages[old][type_of(word)] -= pages;
        self.nr_pages[new][type_of(word)] += pages;
    }

    /// Note the moves of base pages from one PTE table.
    fn note_all(&mut self, moves: Moves, new: usize) {
        for (ty, lanes) in [(ANON_TYPE, moves.anon), (FILE, moves.file)] {
            for old in 0..MAX_NR_GENS {
                let pages = lanes >> (LANE_BITS * old as u32) & LANE_MASK;
                self.batched += pages as usize;
                self.nr_pages[old][ty] -= pages as i64;
                self.nr_pages[new][ty] += pages as i64;
            }
        }
    }

    /// Folios noted since the last application.
    pub fn len(&self) -> usize {
        self.batched
    }

    /// Whether nothing is to be applied.
    pub fn is_empty(&self) -> bool {
        self.batched == 0
    }

    /// Apply the changes under the LRU lock (`reset_batch_size()`).
    pub fn apply(&mut self, cpu: &Cpu, lruvec: &LruVec) {
        if self.is_empty() {
            return;
        }
        cpu.count_n(Counter::FoliosPromoted, self.batched as u64);
        self.batched = 0;
        let mut lists = lruvec.lru_lock.lock();
        for (generation, types) in self.nr_pages.iter_mut().enumerate() {
            for (ty, delta) in types.iter_mut().enumerate() {
                if *delta != 0 {
                    lruvec.add_pages(&mut lists, generation, ty, std::mem::take(delta));
                }
            }
        }
    }
}

/// Pages in a word of a mask.
const MASK_BITS: usize = u64::BITS as usize;

const LANE_BITS: u32 = u64::BITS / MAX_NR_GENS as u32;
const LANE_MASK: u64 = (1 << LANE_BITS) - 1;
const _: () = assert!((TABLE_ENTRIES as u64) < LANE_MASK);

/// Base pages of one PTE table that moved, by the generation that they left, a
/// lane of a word each: they stay in registers, because an atomic operation
/// waits for every store before it, and each page has one or two.
#[derive(Clone, Copy, Default)]
struct Moves {
    anon: u64,
    file: u64,
}

impl Moves {
    #[inline(always)]
    fn note(&mut self, word: Word, old: usize) {
        let one = 1 << (LANE_BITS * old as u32);
        let anon = type_of(word) == ANON_TYPE;
        self.anon += if anon { one } else { 0 };
        self.file += if anon { 0 } else { one };
    }
}

/// One walker's state (`struct lru_gen_mm_walk`).
pub(super) struct MmWalk<'a> {
    pub lruvec: &'a LruVec,
    pub seq: u64,
    pub can_swap: bool,
    pub force_scan: bool,
    pub stats: [u64; NR_MM_STATS],
    batch: Batch,
    rules: WalkRules,
    /// The caller wants to stop.
    pub stopped: bool,
}

/// One PTE table, as a walk meets it.
struct PteTable<'v> {
    table: TableId,
    /// The first mapping in it that is not skipped.
    vma: &'v Vma,
    /// Where the walk enters it.
    start: u64,
    /// Where its entries end.
    end: u64,
}

impl<'a> MmWalk<'a> {
    pub fn new(cpu: &Cpu, lruvec: &'a LruVec, seq: u64, can_swap: bool, force_scan: bool) -> Self {
        MmWalk {
            lruvec,
            seq,
            can_swap,
            force_scan,
            stats: [0; NR_MM_STATS],
            batch: Batch::default(),
            rules: cpu.host().lru_gen.walk_rules(),
            stopped: false,
        }
    }

    #[inline]
    fn stat(&mut self, stat: MmStat, n: u64) {
        self.stats[stat as usize] += n;
    }

    /// Walk one mm (`walk_mm()`): in batches, between which `mmap_lock` is
    /// dropped. The lock is only tried; where it is taken, the mm is given up
    /// for this iteration.
    pub fn walk_mm(&mut self, cpu: &Cpu, mm: &Arc<Mm>) {
        let mut next = Some(0);
        while let Some(from) = next {
            // Another thread may have advanced it.
            if self.lruvec.max_seq() != self.seq {
                break;
            }
            self.rules = cpu.host().lru_gen.walk_rules();
            next = match mm.mmap_lock.try_read() {
                Some(vmas) => self.walk_batch(cpu, mm, &vmas, from),
                None => {
                    cpu.count(Counter::MmapTrylockFailed);
                    None
                }
            };
            self.batch.apply(cpu, self.lruvec);
        }
    }

    /// Walk from `address` until a batch is full; returns where to go on.
    fn walk_batch(&mut self, cpu: &Cpu, mm: &Mm, vmas: &Vmas, mut address: u64) -> Option<u64> {
        // One section for the whole batch: those that each notifier call
        // enters nest in it and cost a counter.
        let _srcu = cpu.srcu.lock();
        while let Some((vma, start)) = self.next_vma(vmas, address, TASK_SIZE) {
            let end = start / level_size(PUD) * level_size(PUD) + level_size(PUD);
            self.walk_pud_entry(cpu, mm, vmas, vma, start, end);
            address = end;
            if self.stopped {
                return None;
            }
            if self.batch.len() >= MAX_LRU_BATCH {
                return Some(address);
            }
        }
        None
    }

    /// The first mapping that aging looks at in `[from, to)`, and where it
    /// begins in it (`get_next_vma()`).
    fn next_vma<'v>(&self, vmas: &'v Vmas, from: u64, to: u64) -> Option<(&'v Vma, u64)> {
        if from >= to {
            return None;
        }
        let vma = vmas.overlapping(from, to).find(|vma| !self.skips(vma))?;
        Some((vma, from.max(vma.start)))
    }

    /// Whether aging ignores a mapping (`should_skip_vma()`).
    fn skips(&self, vma: &Vma) -> bool {
        let flags = &vma.flags;
        flags.inaccessible
            || flags.hugetlb_order != 0
            || flags.locked
            || flags.special
            || !vma.has_recency()
            || (vma.mapping.kind != Kind::File && !self.can_swap)
    }

    /// Walk the PMD table of one PUD entry, from `start` to `end`
    /// (`walk_pmd_range()`).
    fn walk_pud_entry<'v>(
        &mut self,
        cpu: &Cpu,
        mm: &Mm,
        vmas: &'v Vmas,
        mut vma: &'v Vma,
        mut start: u64,
        end: u64,
    ) {
        let Some(pmd_table) = find_pmd_table(mm, start) else {
            return;
        };
        loop {
            let entry = &mm.tables.entries(pmd_table)[level_index(start, PMD)];
            let pmd_end = start / level_size(PMD) * level_size(PMD) + level_size(PMD);
            let at = PteTable {
                table: pmd_table,
                vma,
                start,
                end: pmd_end,
            };
            self.walk_pmd_entry(cpu, mm, vmas, entry, at);
            if self.stopped || cpu.poll() {
                self.stopped = true;
                return;
            }
            if pmd_end < end && vma.end > pmd_end {
                start = pmd_end;
            } else if let Some(next) = self.next_vma(vmas, pmd_end, end) {
                (vma, start) = next;
            } else {
                return;
            }
        }
    }

    fn walk_pmd_entry(
        &mut self,
        cpu: &Cpu,
        mm: &Mm,
        vmas: &Vmas,
        entry: &AtomicU64,
        at: PteTable<'_>,
    ) {
        // Acquire: pairs with the release that published the table or folio.
        let pmd = Pte(entry.load(Ordering::Acquire));
        if !pmd.is_present() {
            self.stat(MmStat::LeafTotal, 1);
            return;
        }
        if pmd.is_leaf(PMD) {
            self.stat(MmStat::LeafTotal, 1);
            self.walk_huge(cpu, mm, entry, pmd, &at);
            return;
        }
        self.stat(MmStat::NonleafTotal, 1);
        if self.narrows(mm) {
            if !pmd.is_young() {
                return;
            }
            if let Some(_ptl) = mm.tables.meta(at.table).ptl.try_lock() {
                // Relaxed: a hint; the processor sets it behind us anyway.
                entry.fetch_and(!ACCESSED, Ordering::Relaxed);
            }
        }
        let filters = &self.lruvec.mm_state.filters;
        let item = pmd_item(mm.id, at.start / level_size(PMD));
        if !self.force_scan && !filters[self.seq as usize % 2].test(item) {
            return;
        }
        self.stat(MmStat::NonleafFound, 1);
        let table = PteTable {
            table: pmd.table_id(),
            ..at
        };
        if self.walk_pte_table(cpu, mm, vmas, table) {
            self.stat(MmStat::NonleafAdded, 1);
            filters[(self.seq as usize + 1) % 2].insert(item);
        }
    }

    /// Whether the young bit of a non-leaf entry is used and cleared.
    fn narrows(&self, mm: &Mm) -> bool {
        self.rules.nonleaf
            && !(self.rules.nonleaf_careful && (self.force_scan || mm.notifiers.has_notifiers()))
    }

    /// A huge page that a PMD maps (`walk_pmd_range_locked()`). Its own bit is
    /// tested and cleared first; then the secondary MMUs are asked, always.
    fn walk_huge(&mut self, cpu: &Cpu, mm: &Mm, entry: &AtomicU64, pmd: Pte, at: &PteTable<'_>) {
        let has_notifiers = mm.notifiers.has_notifiers();
        if pmd.has(SPECIAL) || (!pmd.is_young() && !has_notifiers) {
            self.stat(MmStat::LeafOld, u64::from(!pmd.has(SPECIAL)));
            return;
        }
        let new_gen = gen_from_seq(self.lruvec.max_seq());
        let Some(_ptl) = mm.tables.meta(at.table).ptl.try_lock() else {
            cpu.count(Counter::PtlTrylockFailed);
            return;
        };
        let pmd = Pte(entry.load(Ordering::Acquire));
        if !pmd.is_leaf(PMD) {
            return;
        }
        let Some((pfn, word)) = self.folio_behind(cpu, pmd) else {
            return;
        };
        // Relaxed: the bit carries nothing but itself.
        let primary =
            pmd.is_young() && entry.fetch_and(!ACCESSED, Ordering::Relaxed) & ACCESSED != 0;
        let secondary = has_notifiers
            && self.rules.ask.is_some_and(|fast_only| {
                let end = at.start + level_size(PMD);
                mm.notifiers.clear_young(cpu, at.start, end, fast_only)
            });
        if primary || secondary {
            let mut moves = Moves::default();
            self.promote(cpu, pmd, pfn, word, new_gen, &mut moves);
            self.stat(MmStat::LeafYoung, 1);
            self.batch.note_all(moves, new_gen);
        } else {
            self.stat(MmStat::LeafOld, 1);
        }
    }

    /// The folio that a present leaf maps, if it belongs to this lruvec and
    /// this walk.
    #[inline(always)]
    fn folio_behind(&self, cpu: &Cpu, pte: Pte) -> Option<(Pfn, Word)> {
        folio_behind(&cpu.host().memory, self.lruvec, pte)
            .filter(|&(_, word)| self.can_swap || type_of(word) == FILE)
    }

    /// A page was young: hand its dirty bit to the folio and move that to the
    /// youngest generation.
    #[inline(always)]
    fn promote(
        &mut self,
        cpu: &Cpu,
        pte: Pte,
        pfn: Pfn,
        word: Word,
        new_gen: usize,
        moves: &mut Moves,
    ) {
        let memory = &cpu.host().memory;
        let word = hand_over_dirty(memory, pte, pfn, word);
        if let Some(old_gen) = update_gen_from(cpu, memory, pfn, word, new_gen)
            && old_gen != new_gen
        {
            if word.order() == 0 {
                moves.note(word, old_gen);
            } else {
                self.batch.note(word, old_gen, new_gen);
            }
        }
    }

    /// Walk one PTE table under its lock, which is only tried
    /// (`walk_pte_range()`). Returns whether enough of it was young to visit it
    /// again.
    fn walk_pte_table(&mut self, cpu: &Cpu, mm: &Mm, vmas: &Vmas, at: PteTable<'_>) -> bool {
        let new_gen = gen_from_seq(self.lruvec.max_seq());
        let Some(_ptl) = mm.tables.meta(at.table).ptl.try_lock() else {
            cpu.count(Counter::PtlTrylockFailed);
            return false;
        };
        // As `pte_offset_map()` does; what notifiers read under RCU nests in it.
        let _rcu = cpu.rcu.lock();
        let entries = mm.tables.entries(at.table);
        let mut slots = 0;
        let mut young = 0;
        let mut segment = Some((at.vma, at.start));
        while let Some((vma, start)) = segment {
            let end = vma.end.min(at.end);
            let first = level_index(start, PTE);
            let last = first + ((end - start) / PAGE_SIZE) as usize;
            slots += (last - first) as u64;
            young += self.walk_ptes(cpu, mm, &entries[first..last], start, new_gen);
            segment = self.next_vma(vmas, end, at.end);
        }
        self.stat(MmStat::LeafTotal, slots);
        // A cache line of entries has a young one on average.
        young * 8 >= slots
    }

    /// Age the entries that map `[start, ..)`; returns how many were young.
    fn walk_ptes(
        &mut self,
        cpu: &Cpu,
        mm: &Mm,
        entries: &[AtomicU64],
        start: u64,
        new_gen: usize,
    ) -> u64 {
        let has_notifiers = mm.notifiers.has_notifiers();
        let ask = self.rules.ask.filter(|_| has_notifiers);
        if self.rules.batched
            && let Some(fast_only) = ask
        {
            return self.walk_ptes_batched(cpu, mm, entries, start, new_gen, fast_only);
        }
        let mut old = 0;
        let mut young = 0;
        let mut moves = Moves::default();
        for (entry, n) in entries.iter().zip(0..) {
            // Acquire: pairs with the release that published the folio.
            let pte = Pte(entry.load(Ordering::Acquire));
            if !pte.is_present() || pte.has(SPECIAL) {
                continue;
            }
            let primary = pte.is_young();
            if !primary && !has_notifiers {
                old += 1;
                continue;
            }
            let Some((pfn, word)) = self.folio_behind(cpu, pte) else {
                continue;
            };
            // Asked first and always, so that its bit is cleared even where
            // the primary's already says young.
            let secondary = ask.is_some_and(|fast_only| {
                let address = start + n * PAGE_SIZE;
                mm.notifiers
                    .clear_young(cpu, address, address + PAGE_SIZE, fast_only)
            });
            if primary {
                // Relaxed: the bit carries nothing but itself. Tested first,
                // since a read-modify-write of an old entry costs the same.
                entry.fetch_and(!ACCESSED, Ordering::Relaxed);
            }
            if primary || secondary {
                young += 1;
                self.promote(cpu, pte, pfn, word, new_gen, &mut moves);
            } else {
                old += 1;
            }
        }
        self.batch.note_all(moves, new_gen);
        self.stat(MmStat::LeafYoung, young);
        self.stat(MmStat::LeafOld, old);
        young
    }
}

impl MmWalk<'_> {
    /// [`walk_ptes`](Self::walk_ptes) that asks once, about all pages that it
    /// asks about.
    fn walk_ptes_batched(
        &mut self,
        cpu: &Cpu,
        mm: &Mm,
        entries: &[AtomicU64],
        start: u64,
        new_gen: usize,
        fast_only: bool,
    ) -> u64 {
        let mut wanted = PageMask::EMPTY;
        let mut primary = PageMask::EMPTY;
        let mut words = [Word(TAIL); TABLE_ENTRIES];
        let masks = wanted.words_mut().iter_mut().zip(primary.words_mut());
        let lines = entries.chunks(MASK_BITS).zip(words.chunks_mut(MASK_BITS));
        for ((entries, words), (wanted, primary)) in lines.zip(masks) {
            for ((entry, kept), n) in entries.iter().zip(words).zip(0..) {
                // Acquire: pairs with the release that published the folio.
                let pte = Pte(entry.load(Ordering::Acquire));
                if !pte.is_present() || pte.has(SPECIAL) {
                    continue;
                }
                if let Some((_, word)) = self.folio_behind(cpu, pte) {
                    *kept = word;
                    *wanted |= 1 << n;
                    *primary |= u64::from(pte.is_young()) << n;
                }
            }
        }
        if wanted.is_empty() {
            return 0;
        }
        let secondary = mm
            .notifiers
            .clear_young_each(cpu, start, &wanted, fast_only);
        let mut young = 0;
        let mut moves = Moves::default();
        for n in (primary | secondary).iter() {
            // The table's lock is held: only its accessed and dirty bits may
            // differ from what was read before.
            let pte = Pte(entries[n].load(Ordering::Acquire));
            if primary.has(n) {
                // Relaxed: the bit carries nothing but itself.
                entries[n].fetch_and(!ACCESSED, Ordering::Relaxed);
            }
            let mut pfn = pte.pfn();
            let mut word = words[n];
            if word.order() != 0 || word.has(TAIL) {
                // Another page of the folio may have moved it just now.
                let Some(folio) = self.folio_behind(cpu, pte) else {
                    continue;
                };
                (pfn, word) = folio;
            }
            young += 1;
            self.promote(cpu, pte, pfn, word, new_gen, &mut moves);
        }
        self.batch.note_all(moves, new_gen);
        self.stat(MmStat::LeafYoung, young);
        self.stat(MmStat::LeafOld, wanted.count() - young);
        young
    }
}

/// The PMD table on the way to `address`, if there is one.
fn find_pmd_table(mm: &Mm, address: u64) -> Option<TableId> {
    let mut table = mm.pgd;
    for level in (PUD..=LEVELS).rev() {
        let entry = &mm.tables.entries(table)[level_index(address, level)];
        // Acquire: pairs with the release that published the table.
        let value = Pte(entry.load(Ordering::Acquire));
        if !value.is_present() || value.is_leaf(level) {
            return None;
        }
        table = value.table_id();
    }
    Some(table)
}
