//! Folios between generations: where they enter, how they leave, how walkers
//! and eviction move them (`include/linux/mm_inline.h`, and
//! `folio_update_gen()`, `folio_inc_gen()` of `mm/vmscan.c`).

use super::lruvec::{
    ANON, FILE, Lists, LruVec, MAX_NR_GENS, MIN_NR_GENS, NR_TYPES, gen_from_seq, type_of,
};
use crate::cpu::{Cpu, KeptForLru};
use crate::mm::folio::{
    ACTIVE, ANON as FOLIO_ANON, DIRTY, FolioWord, GEN_MASK, LRU, MEMCG_MASK, NODE_MASK, ORDER_MASK,
    Pfn, RECLAIM, REFERENCED, REFS_MASK, SWAPBACKED, SWAPCACHE, TAIL, UNEVICTABLE, WORKINGSET,
    WRITEBACK, Word,
};
use crate::mm::pagetable::{self, Pte};
use crate::mm::{Memcg, PhysMem, release_if_unused};
use crate::mutant::{self, Mutant};
use crate::table::prefetch;
use crate::trace::Counter;

/// Referenced and workingset (`LRU_REFS_FLAGS`).
pub const REFS_FLAGS: u64 = REFERENCED | WORKINGSET;

/// References beyond the first: the field plus workingset
/// (`folio_lru_refs()`).
#[inline]
pub fn lru_refs(word: Word) -> u64 {
    word.refs() + u64::from(word.has(WORKINGSET))
}

/// The memory cgroup that a folio is charged to.
pub(crate) fn memcg_of(cpu: &Cpu, word: Word) -> &Memcg {
    cpu.host()
        .memcg_ref(word.memcg())
        .expect("a charged folio's memory cgroup exists")
}

/// The generations of a lruvec while its lock is held, which keeps them.
#[derive(Clone, Copy)]
struct Seqs {
    max: u64,
    min: [u64; NR_TYPES],
}

impl Seqs {
    /// The generation that a folio enters (`lru_gen_add_folio()`):
    ///
    /// 1. asked to be active, as one just faulted in: the youngest;
    /// 2. not evictable at once (anonymous outside the swap cache; under
    ///    writeback for reclaim): the second youngest;
    /// 3. being rotated for reclaim, or few generations: the oldest;
    /// 4. else the second oldest.
    #[inline]
    fn entry(self, word: Word, reclaiming: bool) -> u64 {
        let ty = type_of(word);
        let min = self.min[ty];
        if word.has(ACTIVE) {
            self.max
        } else if (ty == ANON && !word.has(SWAPCACHE))
            || (word.has(RECLAIM) && word.any(DIRTY | WRITEBACK))
        {
            self.max - 1
        } else if reclaiming || min + MIN_NR_GENS as u64 >= self.max {
            min
        } else {
            min + 1
        }
    }

    /// How the word of a folio that is on no list changes when it enters its
    /// generation, which is the second value; not at all for an unevictable
    /// one. Words that agree in [`ENTRY_BITS`] change alike.
    #[inline]
    fn change(self, word: Word, reclaiming: bool) -> (Change, Option<usize>) {
        if word.has(UNEVICTABLE) {
            return (Change { clear: 0, set: 0 }, None);
        }
        let generation = Some(gen_from_seq(self.entry(word, reclaiming)));
        // Workingset stays: pressure accounting of a refault reads it.
        let clear = if word.has(ACTIVE) {
            REFS_MASK | REFERENCED | ACTIVE
        } else {
            0
        };
        let set = Word(0).with_generation(generation).0;
        (Change { clear, set }, generation)
    }
}

/// What of a word decides which list a folio enters, and as how many pages.
const ENTRY_BITS: u64 = UNEVICTABLE
    | ACTIVE
    | SWAPBACKED
    | SWAPCACHE
    | RECLAIM
    | DIRTY
    | WRITEBACK
    | ORDER_MASK
    | NODE_MASK
    | MEMCG_MASK;

/// A change of a word.
#[derive(Clone, Copy)]
struct Change {
    clear: u64,
    set: u64,
}

impl Change {
    #[inline]
    fn of(self, pfn: Pfn, word: Word) -> Word {
        debug_assert!(
            word.generation().is_none(),
            "an isolated folio was given a generation: {pfn:?} {word:?}"
        );
        Word(word.0 & !self.clear | self.set)
    }
}

impl LruVec {
    #[inline]
    fn seqs(&self, _held: &mut Lists) -> Seqs {
        Seqs {
            max: self.max_seq(),
            min: [self.min_seq(ANON), self.min_seq(FILE)],
        }
    }

    /// Put a folio that is on no list on the list of the generation that it
    /// enters; at the head, or with `reclaiming` at the tail. False, and
    /// nothing done, for an unevictable one.
    pub fn add_folio(
        &self,
        lists: &mut Lists,
        memory: &PhysMem,
        pfn: Pfn,
        reclaiming: bool,
    ) -> bool {
        let seqs = self.seqs(lists);
        let mut entered = None;
        let (old, added) = memory.word(pfn).modify(|word| {
            let (change, generation) = seqs.change(word, reclaiming);
            entered = generation;
            generation.map(|_| change.of(pfn, word))
        });
        if let (Some(generation), true) = (entered, added) {
            self.update_size(lists, old, None, entered);
            if reclaiming {
                lists.add_tail(memory, generation, type_of(old), pfn);
            } else {
                lists.add_head(memory, generation, type_of(old), pfn);
            }
        }
        added
    }

    /// Give folios that are on no list their LRU flag, and put those that are
    /// evictable on their lists; those from the first on that is of another
    /// lruvec are left, and returned. As [`add_folio`](Self::add_folio) of each,
    /// but those that follow each other into one list are linked and counted
    /// together, after the exchanges on their words: an exchange waits for
    /// every store before it.
    fn add_new_folios<'a>(
        &self,
        lists: &mut Lists,
        memory: &PhysMem,
        folios: &'a [Pfn],
    ) -> &'a [Pfn] {
        let seqs = self.seqs(lists);
        let mut rest = folios;
        while let Some(&first) = rest.first() {
            let like = memory.word(first).get();
            if (like.node(), like.memcg()) != (self.node, self.memcg) {
                break;
            }
            let (mut change, entered) = seqs.change(like, false);
            // Set under the lock: whoever then clears the flag, and so owns the
            // folio, finds it on the list once it gets the lock.
            change.set |= LRU;
            let (alike, others) = rest.split_at(change_alike(memory, rest, like, change));
            if let Some(generation) = entered {
                let pages = like.nr_pages() as i64 * alike.len() as i64;
                self.add_pages(lists, generation, type_of(like), pages);
                lists.add_all_head(memory, generation, type_of(like), alike);
            }
            rest = others;
        }
        rest
    }

    /// Take a folio off its list (`lru_gen_del_folio()`); false if it is on
    /// none. One of an active generation that is not being reclaimed keeps
    /// that as a flag, for when it is added again.
    pub fn del_folio(
        &self,
        lists: &mut Lists,
        memory: &PhysMem,
        pfn: Pfn,
        reclaiming: bool,
    ) -> bool {
        let (old, deleted) = memory.word(pfn).modify(|word| {
            let generation = word.generation()?;
            let keep = if !reclaiming && self.is_active(generation) {
                ACTIVE
            } else {
                0
            };
            Some(Word(word.with_generation(None).0 | keep))
        });
        if deleted {
            self.update_size(lists, old, old.generation(), None);
            lists.remove(memory, pfn);
        }
        deleted
    }

    /// Let a folio of the oldest generation of its type grow one generation
    /// younger, unless a walker has promoted it (`folio_inc_gen()`). Returns
    /// its generation; the caller moves it to that list.
    pub fn inc_gen(
        &self,
        lists: &mut Lists,
        memory: &PhysMem,
        pfn: Pfn,
        reclaiming: bool,
    ) -> usize {
        let ty = type_of(memory.word(pfn).get());
        let oldest = gen_from_seq(self.min_seq(ty));
        let (old, generation) = inc_gen_word(memory, pfn, oldest, reclaiming);
        if let Some(old) = old {
            self.update_size(lists, old, Some(oldest), Some(generation));
        }
        generation
    }
}

/// Change the words of folios up to the first that is not like `like` in
/// [`ENTRY_BITS`]; returns of how many. Each word is read before the exchange
/// on the one before, for a load that follows an exchange waits for it.
fn change_alike(memory: &PhysMem, folios: &[Pfn], like: Word, change: Change) -> usize {
    let mut next = like;
    for (n, &pfn) in folios.iter().enumerate() {
        let seen = next;
        if let Some(&following) = folios.get(n + 1) {
            next = memory.word(following).get();
        }
        let (_, changed) = memory.word(pfn).modify_from(seen, |word| {
            ((word.0 ^ like.0) & ENTRY_BITS == 0).then(|| change.of(pfn, word))
        });
        if !changed {
            return n;
        }
    }
    folios.len()
}

/// [`LruVec::inc_gen`] without the sizes: the folio's word if it was moved out
/// of generation `oldest`, and the generation that it is in.
#[inline]
pub(super) fn inc_gen_word(
    memory: &PhysMem,
    pfn: Pfn,
    oldest: usize,
    reclaiming: bool,
) -> (Option<Word>, usize) {
    let next = (oldest + 1) % MAX_NR_GENS;
    let flag = if reclaiming { RECLAIM } else { 0 };
    let (old, moved) = memory.word(pfn).modify(|word| {
        (word.generation() == Some(oldest)).then(|| {
            let word = Word(word.0 & !(REFS_MASK | REFS_FLAGS) | flag);
            word.with_generation(Some(next))
        })
    });
    if moved {
        return (Some(old), next);
    }
    let generation = old.generation();
    (
        None,
        generation.expect("a folio on a list has a generation"),
    )
}

/// The folio that a present leaf maps, if it is one of this lruvec
/// (`get_pfn_folio()`).
// Always inlined, and what follows too: the aging walk calls them once a page.
#[inline(always)]
pub(super) fn folio_behind(memory: &PhysMem, lruvec: &LruVec, pte: Pte) -> Option<(Pfn, Word)> {
    let mut pfn = pte.pfn();
    let mut word = memory.word(pfn).get();
    if word.has(TAIL) {
        pfn = memory.head(pfn);
        word = memory.word(pfn).get();
    }
    (word.node() == lruvec.node && word.memcg() == lruvec.memcg).then_some((pfn, word))
}

/// Hand the dirty bit of a leaf, which loses its accessed bit, to the folio;
/// returns the folio's word.
#[inline(always)]
pub(super) fn hand_over_dirty(memory: &PhysMem, pte: Pte, pfn: Pfn, word: Word) -> Word {
    // An anonymous page outside the swap cache is dirty by nature.
    let backed = word.has(SWAPCACHE) || !word.has(FOLIO_ANON | SWAPBACKED);
    if backed && pte.has(pagetable::DIRTY) && !word.has(DIRTY) {
        Word(memory.word(pfn).set(DIRTY).0 | DIRTY)
    } else {
        word
    }
}

/// Promote a folio that a walk found young (`folio_update_gen()`), by its word
/// alone. Returns the generation it was in; an isolated one gets *referenced*
/// instead and `None` is returned.
#[inline]
pub fn update_gen(cpu: &Cpu, memory: &PhysMem, pfn: Pfn, generation: usize) -> Option<usize> {
    let seen = memory.word(pfn).get();
    update_gen_from(cpu, memory, pfn, seen, generation)
}

/// [`update_gen`] that tries a value of the word that was read before first: a
/// load that follows an atomic operation waits for it, and a walk makes one
/// after another.
#[inline]
pub(super) fn update_gen_from(
    cpu: &Cpu,
    memory: &PhysMem,
    pfn: Pfn,
    seen: Word,
    generation: usize,
) -> Option<usize> {
    let promoted = |word: Word| {
        let isolated = word.0 & GEN_MASK == 0 && !mutant::active(Mutant::PromoteIsolated);
        if isolated {
            Word(word.0 | REFERENCED)
        } else {
            Word(word.0 & !(REFS_MASK | REFS_FLAGS)).with_generation(Some(generation))
        }
    };
    let word = memory.word(pfn);
    // An old value may decide what to try, but not that nothing need be done.
    let seen = if promoted(seen) == seen {
        word.get()
    } else {
        seen
    };
    let mut tries = 0;
    let (old, _) = word.modify_from(seen, |word| {
        tries += 1;
        // Nothing to write when the folio is there already, unreferenced.
        let new = promoted(word);
        (new != word).then_some(new)
    });
    if tries > 1 {
        cpu.count_n(Counter::FolioCasFailed, tries - 1);
    }
    old.generation()
}

/// Put a new folio on its list, or keep it with others for later if the thread
/// batches them (`folio_add_lru()`).
pub(crate) fn add_folio(cpu: &Cpu, pfn: Pfn) {
    // The fault has the rest of the folio in its cache, and in a kernel the
    // links too, which are on one line with its flags.
    prefetch(cpu.host().memory.link(pfn, 0));
    match cpu.keep_for_lru(pfn) {
        KeptForLru::No => add_folios(cpu, &[pfn]),
        KeptForLru::Yes => {}
        KeptForLru::Full => lru_add_drain(cpu),
    }
}

/// Put the folios that this thread keeps on their lists (`lru_add_drain()`).
pub(crate) fn lru_add_drain(cpu: &Cpu) {
    let kept = cpu.take_kept_for_lru();
    let kept = kept.folios();
    add_folios(cpu, kept);
    let memory = &cpu.host().memory;
    for &pfn in kept {
        // Unmapped while it waited: whoever did that left it to this thread,
        // since the folio was on no list.
        if memory.mapcount(pfn) == 0 {
            release_if_unused(cpu, pfn);
        }
    }
}

/// Put folios on their lists, under one lock hold where they share a lruvec
/// (`folio_batch_move_lru()`).
fn add_folios(cpu: &Cpu, folios: &[Pfn]) {
    let memory = &cpu.host().memory;
    let mut rest = folios;
    while let Some(&first) = rest.first() {
        let word = memory.word(first).get();
        let lruvec = &memcg_of(cpu, word).lruvecs[word.node()];
        let (mut lists, wait) = lruvec.lru_lock.lock_timed();
        rest = lruvec.add_new_folios(&mut lists, memory, rest);
        drop(lists);
        cpu.waited_for_lru_lock(wait);
    }
}

/// Take a folio whose LRU flag this thread has cleared off its list
/// (`lruvec_del_folio()`).
pub(crate) fn del_folio(cpu: &Cpu, pfn: Pfn) {
    let memory = &cpu.host().memory;
    let word = memory.word(pfn).get();
    let memcg = memcg_of(cpu, word);
    let lruvec = &memcg.lruvecs[word.node()];
    let mut lists = lruvec.lru_lock.lock();
    lruvec.del_folio(&mut lists, memory, pfn, false);
}

/// Count a reference through a file descriptor (`folio_mark_accessed()`,
/// `folio_inc_refs()`): referenced first, then workingset, then the references
/// field up to its limit.
pub fn mark_accessed(memory: &PhysMem, pfn: Pfn) {
    memory.word(pfn).modify(|word| {
        if word.has(UNEVICTABLE) {
            None
        } else if !word.has(REFERENCED) {
            Some(Word(word.0 | REFERENCED))
        } else if !word.has(WORKINGSET) {
            Some(Word(word.0 | WORKINGSET))
        } else if word.refs() < 3 {
            Some(word.with_refs(word.refs() + 1))
        } else {
            None
        }
    });
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::host::{Host, HostConfig, ROOT_MEMCG};
    use crate::mm::folio::{DIRTY, SWAPBACKED};
    use crate::sync::atomic::Ordering;
    use std::sync::Arc;

    fn host() -> Arc<Host> {
        Host::new(&HostConfig {
            nodes: vec![64],
            swap_pages: 0,
            virtual_clock: true,
        })
        .expect("a valid host")
    }

    #[test]
    fn folios_enter_where_the_rules_say() {
        let host = host();
        let memcg = host.create_memcg("test").expect("memcg");
        let lruvec = &memcg.lruvecs[0];
        let pfn = Pfn(7);
        let enter = |flags, reclaiming, min_seq: u64| {
            let mut lists = lruvec.lru_lock.lock();
            for ty in [ANON, FILE] {
                lruvec.set_min_seq(&mut lists, ty, min_seq);
            }
            let word = Word::new(0, 0, LRU | flags).with_memcg(memcg.id);
            host.memory.word(pfn).store(word.0, Ordering::Relaxed);
            assert!(lruvec.add_folio(&mut lists, &host.memory, pfn, reclaiming));
            let generation = host.memory.word(pfn).get().generation().expect("listed");
            assert!(lruvec.del_folio(&mut lists, &host.memory, pfn, true));
            generation
        };
        // The youngest is 3. File pages, then anonymous ones.
        assert_eq!(enter(ACTIVE, false, 0), 3, "just faulted in");
        assert_eq!(enter(0, false, 0), 1, "the second oldest");
        assert_eq!(enter(0, false, 1), 1, "the oldest, where few exist");
        assert_eq!(enter(0, true, 0), 0, "rotated for reclaim");
        assert_eq!(enter(RECLAIM | WRITEBACK, true, 0), 2, "on its way out");
        assert_eq!(enter(RECLAIM | DIRTY, false, 0), 2);
        assert_eq!(enter(RECLAIM, true, 0), 0, "written: first to go");
        assert_eq!(enter(SWAPBACKED, false, 0), 2, "not in the swap cache");
        assert_eq!(enter(SWAPBACKED | SWAPCACHE, false, 0), 1);
        assert_eq!(enter(SWAPBACKED | SWAPCACHE | ACTIVE, false, 0), 3);
    }

    #[test]
    fn additions_go_to_the_head_except_rotation() {
        let host = host();
        let memcg = host.create_memcg("test").expect("memcg");
        let lruvec = &memcg.lruvecs[0];
        let mut lists = lruvec.lru_lock.lock();
        for (n, reclaiming) in [(1, true), (2, true), (3, true)] {
            let word = Word::new(0, 0, LRU).with_memcg(memcg.id);
            host.memory.word(Pfn(n)).store(word.0, Ordering::Relaxed);
            lruvec.add_folio(&mut lists, &host.memory, Pfn(n), reclaiming);
        }
        let order: Vec<u32> = lists
            .from_tail(&host.memory, 0, FILE)
            .map(|p| p.0)
            .collect();
        assert_eq!(order, [3, 2, 1]);
        for n in [4, 5] {
            let word = Word::new(0, 0, LRU).with_memcg(memcg.id);
            host.memory.word(Pfn(n)).store(word.0, Ordering::Relaxed);
            lruvec.add_folio(&mut lists, &host.memory, Pfn(n), false);
        }
        let order: Vec<u32> = lists
            .from_tail(&host.memory, 1, FILE)
            .map(|p| p.0)
            .collect();
        assert_eq!(order, [4, 5]);
        // One that a walker moved by its word is still unlinked from its list.
        let cpu = Cpu::new(&host);
        assert_eq!(update_gen(&cpu, &host.memory, Pfn(2), 3), Some(0));
        assert!(lruvec.del_folio(&mut lists, &host.memory, Pfn(2), true));
        let order: Vec<u32> = lists
            .from_tail(&host.memory, 0, FILE)
            .map(|p| p.0)
            .collect();
        assert_eq!(order, [3, 1]);
    }

    #[test]
    fn folios_listed_together_end_where_they_would_one_by_one() {
        // Folios of several lists, owners, nodes and sizes, in runs and not.
        let kinds = [
            (0, 0, ACTIVE | SWAPBACKED),
            (0, 0, ACTIVE | SWAPBACKED),
            (0, 0, ACTIVE | SWAPBACKED | UNEVICTABLE),
            (0, 9, ACTIVE | SWAPBACKED),
            (0, 0, SWAPBACKED),
            (0, 0, 0),
            (0, 0, 0),
            (1, 0, 0),
            (1, 0, ACTIVE | REFERENCED),
            (0, 0, ACTIVE | SWAPBACKED),
            (0, 0, UNEVICTABLE),
        ];
        let listed = |together: bool| {
            let host = Host::new(&HostConfig {
                nodes: vec![64, 64],
                swap_pages: 0,
                virtual_clock: true,
            })
            .expect("a valid host");
            let memory = &host.memory;
            let other = host.create_memcg("other").expect("memcg");
            let pfns: Vec<Pfn> = (0..2 * kinds.len() as u32).map(|n| Pfn(n + 1)).collect();
            for (&pfn, (n, &(node, order, flags))) in
                pfns.iter().zip(kinds.iter().cycle().enumerate())
            {
                // Owners change between folios that are else alike, too.
                let owner = if n % 6 < 3 { ROOT_MEMCG } else { other.id };
                let word = Word::new(node, order, flags).with_memcg(owner);
                memory.word(pfn).store(word.0, Ordering::Relaxed);
            }
            let cpu = Cpu::new(&host);
            if together {
                add_folios(&cpu, &pfns);
            } else {
                for &pfn in &pfns {
                    let word = memory.word(pfn).set(LRU);
                    let lruvec = &memcg_of(&cpu, word).lruvecs[word.node()];
                    lruvec.add_folio(&mut lruvec.lru_lock.lock(), memory, pfn, false);
                }
            }
            let mut seen = Vec::new();
            for &pfn in &pfns {
                seen.push(memory.word(pfn).get().0);
                assert!(memory.word(pfn).get().has(LRU));
            }
            for memcg in host.memcgs() {
                for (lruvec, ty) in memcg.lruvecs.iter().flat_map(|l| [(l, ANON), (l, FILE)]) {
                    let lists = lruvec.lru_lock.lock();
                    for generation in 0..MAX_NR_GENS {
                        seen.push(lruvec.nr_pages(generation, ty) as u64);
                        let folios = lists.from_tail(memory, generation, ty);
                        seen.extend(folios.map(|pfn| u64::from(pfn.0)));
                    }
                    seen.extend([false, true].map(|active| lruvec.lru_size(ty, active)));
                }
            }
            // Unlinking reads both links of each.
            for &pfn in &pfns {
                let word = memory.word(pfn).get();
                if word.generation().is_some() {
                    let lruvec = &memcg_of(&cpu, word).lruvecs[word.node()];
                    let mut lists = lruvec.lru_lock.lock();
                    assert!(lruvec.del_folio(&mut lists, memory, pfn, false));
                    for generation in 0..MAX_NR_GENS {
                        let left = [ANON, FILE].map(|ty| lists.from_tail(memory, generation, ty));
                        seen.push(left.into_iter().flatten().count() as u64);
                    }
                }
            }
            seen
        };
        assert_eq!(listed(true), listed(false));
    }

    #[test]
    fn an_isolated_folio_is_only_marked_referenced() {
        let host = host();
        let cpu = Cpu::new(&host);
        let word = Word::new(0, 0, WORKINGSET).with_refs(2);
        host.memory.word(Pfn(9)).store(word.0, Ordering::Relaxed);
        assert_eq!(update_gen(&cpu, &host.memory, Pfn(9), 1), None);
        let now = host.memory.word(Pfn(9)).get();
        assert_eq!(now, Word(word.0 | REFERENCED));
    }

    #[test]
    fn references_through_descriptors_count_up_to_the_limit() {
        let host = host();
        let word = || host.memory.word(Pfn(9)).get();
        let mut seen = Vec::new();
        for _ in 0..6 {
            mark_accessed(&host.memory, Pfn(9));
            let now = word();
            seen.push((now.has(REFERENCED), now.has(WORKINGSET), now.refs()));
        }
        let counted = [(0, 0), (1, 0), (1, 1), (1, 2), (1, 3), (1, 3)];
        assert_eq!(
            seen,
            counted.map(|(workingset, refs)| (true, workingset == 1, refs))
        );
    }
}
