//! Eviction: taking the oldest pages (`mm/vmscan.c`, "the eviction", and
//! `shrink_folio_list()`).
//!
//! A round isolates up to a batch of folios from the tail of the oldest
//! generation, checks each through its reverse mapping, and frees those that
//! nobody used: unmapped, written out if need be, and replaced by a shadow
//! entry. The others go back, to the youngest generation.
//!
//! An isolated folio is its isolator's: its LRU flag is clear, so that a thread
//! that drops the last mapping meanwhile leaves freeing it to
//! [`put_back`].

use super::aging::try_to_inc_min_seq;
use super::folio::{REFS_FLAGS, lru_refs};
use super::lookaround::LookAround;
use super::lruvec::{
    ANON, FILE, Lists, LruVec, MAX_LRU_BATCH, MIN_LRU_BATCH, MIN_NR_GENS, gen_from_seq,
    hist_from_seq, tier_from_refs,
};
use super::policy::{View, clamp};
use super::walk::Batch;
use super::workingset;
use crate::cpu::Cpu;
use crate::error::{Error, Result};
use crate::mm::address_space::Slot;
use crate::mm::folio::{
    ACTIVE, ANON as FOLIO_ANON, DIRTY, FolioWord, GEN_MASK, LOCKED, LRU, RECLAIM, REFERENCED,
    REFS_MASK, SWAPBACKED, SWAPCACHE, UNEVICTABLE, WORKINGSET, WRITEBACK,
};
use crate::mm::rmap::{self, Rmap};
use crate::mm::swap::{FolioLock, Swap};
use crate::mm::{AddressSpace, Memcg, Pfn, Word, release_if_unused};
use crate::sync::atomic::Ordering;
use crate::trace::Counter;

/// The priority that reclaim begins at: a 4096th of the pages a round.
pub(crate) const DEF_PRIORITY: u32 = 12;

/// How reclaim runs, and what it has done (`struct scan_control`).
pub(crate) struct ScanControl {
    /// The memory cgroup that is over its limit; `None` when the machine is.
    pub target: Option<u16>,
    /// How many pages are wanted.
    pub nr_to_reclaim: u64,
    /// How many were freed.
    pub nr_reclaimed: u64,
    /// How many were looked at.
    pub nr_scanned: u64,
    /// `total >> priority` pages are scanned a round.
    pub priority: u32,
    /// Overrides the host's swappiness.
    pub swappiness: Option<u32>,
    /// Whether anonymous pages may be evicted.
    pub may_swap: bool,
    /// Whether pages may be written (`__GFP_IO`).
    pub may_io: bool,
    /// Asked for by a user, not needed.
    pub proactive: bool,
    /// The background thread.
    pub kswapd: bool,
    /// The walk context; without one, promotions are made one by one.
    pub walk: Option<Batch>,
    /// Dirty file pages met that nobody writes yet.
    pub unqueued_dirty: u64,
    /// File pages taken.
    pub file_taken: u64,
    /// Isolated folios, in the order they were taken.
    list: Vec<Pfn>,
    /// Those of them to try once more.
    again: Vec<Pfn>,
    /// Neighbours found young without a walk context.
    activate: Vec<Pfn>,
}

impl ScanControl {
    /// For reclaim that wants `nr_to_reclaim` pages.
    pub(crate) fn new(nr_to_reclaim: u64) -> Self {
        ScanControl {
            target: None,
            nr_to_reclaim,
            nr_reclaimed: 0,
            nr_scanned: 0,
            priority: DEF_PRIORITY,
            swappiness: None,
            may_swap: true,
            may_io: true,
            proactive: false,
            kswapd: false,
            walk: None,
            unqueued_dirty: 0,
            file_taken: 0,
            list: Vec::with_capacity(MIN_LRU_BATCH),
            again: Vec::new(),
            activate: Vec::new(),
        }
    }
}

/// Evict from a lruvec until the generations up to `seq` are gone, or
/// `nr_to_reclaim` pages are reclaimed, or nothing more can be had
/// (`run_eviction()`, the debugfs command `-`). Returns the pages reclaimed.
///
/// # Errors
/// `EINVAL` when `seq` is one of the two youngest generations; `EINTR` when the
/// run was interrupted; what a notifier raised.
pub fn run_eviction(
    cpu: &Cpu,
    memcg: &Memcg,
    lruvec: &LruVec,
    seq: u64,
    swappiness: u32,
    nr_to_reclaim: u64,
) -> Result<u64> {
    let max_seq = lruvec.max_seq();
    if seq.saturating_add(MIN_NR_GENS as u64) > max_seq {
        return Err(Error::invalid(format!(
            "generation {seq} cannot be evicted: the two youngest end at {max_seq}"
        )));
    }
    let mut sc = ScanControl::new(nr_to_reclaim);
    sc.walk = Some(Batch::default());
    let oldest_type = if swappiness == 0 { FILE } else { ANON };
    let was = cpu.set_reclaiming(true);
    while seq >= lruvec.min_seq(oldest_type)
        && sc.nr_reclaimed < nr_to_reclaim
        && !cpu.poll()
        && !cpu.has_error()
        && evict_folios(cpu, memcg, lruvec, &mut sc, swappiness) != 0
    {}
    cpu.set_reclaiming(was);
    cpu.finish()?;
    Ok(sc.nr_reclaimed)
}

/// One round (`evict_folios()`). Returns how much was scanned, 0 when there is
/// no progress to be had.
pub(crate) fn evict_folios(
    cpu: &Cpu,
    memcg: &Memcg,
    lruvec: &LruVec,
    sc: &mut ScanControl,
    swappiness: u32,
) -> u64 {
    let scanned = isolate_folios(cpu, memcg, lruvec, sc, swappiness);
    if sc.list.is_empty() {
        return scanned;
    }
    let mut reclaimed = shrink_folio_list(cpu, memcg, lruvec, sc);
    put_back(cpu, lruvec, sc, true);
    if !sc.again.is_empty() {
        // They may have become clean and unused since they were rejected.
        std::mem::swap(&mut sc.list, &mut sc.again);
        let again: u64 = sc.list.len() as u64;
        sc.nr_scanned = sc.nr_scanned.saturating_sub(again);
        reclaimed += shrink_folio_list(cpu, memcg, lruvec, sc);
        put_back(cpu, lruvec, sc, false);
    }
    if reclaimed != 0 {
        memcg.count(cpu, Counter::PgSteal, reclaimed);
        sc.nr_reclaimed += reclaimed;
    }
    // Nothing is left isolated.
    debug_assert!(sc.list.is_empty() && sc.again.is_empty());
    scanned
}

/// Fill the list from one type, else from the other (`isolate_folios()`), and
/// retire empty generations. Returns how much was scanned.
fn isolate_folios(
    cpu: &Cpu,
    memcg: &Memcg,
    lruvec: &LruVec,
    sc: &mut ScanControl,
    swappiness: u32,
) -> u64 {
    let policy = &cpu.host().lru_gen.policy;
    let can_swap = swappiness != 0;
    let view = View::new(cpu, lruvec);
    // Asked before the lock is taken: a policy may be slow.
    let (ty, first, second) = policy.ask(|policy| {
        let choice = if can_swap {
            clamp(policy.choose(&view, swappiness, sc.may_io))
        } else {
            super::policy::Choice {
                ty: FILE,
                tier: None,
            }
        };
        let first = choice.tier.unwrap_or_else(|| policy.tier(&view, choice.ty));
        let second = can_swap.then(|| policy.tier(&view, 1 - choice.ty));
        (choice.ty, first, second)
    });
    let mut lists = lruvec.lru_lock.lock();
    let mut scanned = scan_folios(cpu, memcg, lruvec, &mut lists, sc, ty, first);
    if let Some(second) = second
        && scanned == 0
    {
        scanned = scan_folios(cpu, memcg, lruvec, &mut lists, sc, 1 - ty, second);
    }
    scanned += u64::from(try_to_inc_min_seq(lruvec, &mut lists, can_swap));
    let bound = if can_swap { ANON } else { FILE };
    if lruvec.nr_gens(bound) == MIN_NR_GENS {
        scanned = 0;
    }
    scanned
}

/// Take folios from the tail of a type's oldest generation
/// (`scan_folios()`). Returns how many pages were scanned, 0 for no progress.
fn scan_folios(
    cpu: &Cpu,
    memcg: &Memcg,
    lruvec: &LruVec,
    lists: &mut Lists,
    sc: &mut ScanControl,
    ty: usize,
    tier: usize,
) -> u64 {
    if lruvec.nr_gens(ty) == MIN_NR_GENS {
        return 0;
    }
    let memory = &cpu.host().memory;
    let oldest = gen_from_seq(lruvec.min_seq(ty));
    let (mut scanned, mut sorted, mut isolated, mut skipped) = (0, 0, 0, 0);
    let mut remaining = MAX_LRU_BATCH;
    // Folios that cannot be taken now.
    let mut passed = Vec::new();
    while let Some(pfn) = lists.last(oldest, ty) {
        let pages = memory.word(pfn).get().nr_pages();
        scanned += pages;
        if sort_folio(cpu, lruvec, lists, pfn, ty, tier) {
            sorted += pages;
        } else if isolate_folio(cpu, lruvec, lists, sc, pfn) {
            sc.list.push(pfn);
            isolated += pages;
        } else {
            lists.remove(memory, pfn);
            passed.push(pfn);
            skipped += pages;
        }
        remaining -= 1;
        if remaining == 0 || isolated.max(skipped) >= MIN_LRU_BATCH as u64 {
            break;
        }
    }
    for pfn in passed {
        // To the head, as the kernel splices them: the tail would be met again.
        lists.add_head(memory, oldest, ty, pfn);
    }
    memcg.count(cpu, Counter::PgScan, isolated);
    memcg.count(cpu, Counter::PgRefill, sorted);
    if ty == FILE {
        sc.file_taken += isolated;
    }
    if isolated > 0 || remaining == 0 {
        scanned
    } else {
        0
    }
}

/// Put a folio where its word says, if that is not "take it"
/// (`sort_folio()`).
fn sort_folio(
    cpu: &Cpu,
    lruvec: &LruVec,
    lists: &mut Lists,
    pfn: Pfn,
    ty: usize,
    tier_limit: usize,
) -> bool {
    let memory = &cpu.host().memory;
    let word = memory.word(pfn).get();
    let Some(generation) = word.generation() else {
        return false;
    };
    let min_seq = lruvec.min_seq(ty);
    // Promoted by a walker, lazily sorted now.
    if generation != gen_from_seq(min_seq) {
        lists.move_head(memory, generation, ty, pfn);
        return true;
    }
    // In a tier that refaults more than it should, or used as often as counts.
    let refs = lru_refs(word);
    let tier = tier_from_refs(refs);
    if tier > tier_limit || refs == 4 {
        let generation = lruvec.inc_gen(lists, memory, pfn, false);
        lists.move_tail(memory, generation, ty, pfn);
        lruvec.protected[hist_from_seq(min_seq)][ty][tier]
            .fetch_add(word.nr_pages(), Ordering::Relaxed);
        return true;
    }
    // To be reclaimed once it is clean.
    if word.any(LOCKED | WRITEBACK) || (ty == FILE && word.has(DIRTY)) {
        let generation = lruvec.inc_gen(lists, memory, pfn, true);
        lists.move_head(memory, generation, ty, pfn);
        return true;
    }
    false
}

/// Take a folio off its list (`isolate_folio()`); false if another thread has
/// it, or it would have to be written and must not be.
fn isolate_folio(
    cpu: &Cpu,
    lruvec: &LruVec,
    lists: &mut Lists,
    sc: &ScanControl,
    pfn: Pfn,
) -> bool {
    let memory = &cpu.host().memory;
    let word = memory.word(pfn);
    let seen = word.get();
    if !sc.may_io
        && ((seen.has(DIRTY) && !seen.is_file_lru())
            || (seen.has(FOLIO_ANON) && !seen.has(SWAPCACHE)))
    {
        return false;
    }
    if !word.clear(LRU).has(LRU) {
        return false;
    }
    // A folio referenced through descriptors keeps its count for the shadow
    // entry; the mark itself is what the rmap check looks for next.
    word.modify(|word| {
        let clear = if word.has(REFERENCED) {
            REFERENCED
        } else {
            REFS_MASK | REFS_FLAGS
        };
        (word.0 & clear != 0).then_some(Word(word.0 & !clear))
    });
    lruvec.del_folio(lists, memory, pfn, true)
}

/// What becomes of an isolated folio.
enum Fate {
    /// Freed.
    Freed,
    /// It stays, as it is.
    Keep,
    /// It stays, in the youngest generation.
    Activate,
    /// It was a huge page, and is many small ones now.
    Split,
}

/// Free the folios of the list that nobody uses (`shrink_folio_list()`);
/// those that stay are left in it, in order. Returns the pages freed.
fn shrink_folio_list(cpu: &Cpu, memcg: &Memcg, lruvec: &LruVec, sc: &mut ScanControl) -> u64 {
    let host = cpu.host();
    let memory = &host.memory;
    let mut list = std::mem::take(&mut sc.list);
    let mut walk = sc.walk.take();
    let mut activate = std::mem::take(&mut sc.activate);
    let mut freed = 0;
    let mut kept = 0;
    let mut at = 0;
    // One section for the whole batch: those that each notifier call enters
    // nest in it and cost a counter.
    let srcu = cpu.srcu.lock();
    let mut around = LookAround::new(cpu, lruvec, sc.target, walk.as_mut(), &mut activate);
    while at < list.len() {
        // Folios of one address space share its reverse mapping.
        let id = memory.mapping(list[at]).load(Ordering::Relaxed);
        let space = host.spaces.get(id);
        let rmap = space.as_deref().and_then(Rmap::try_new);
        while at < list.len() && memory.mapping(list[at]).load(Ordering::Relaxed) == id {
            let pfn = list[at];
            at += 1;
            let pages = memory.word(pfn).get().nr_pages();
            let fate = shrink_folio(
                cpu,
                lruvec,
                sc,
                &mut around,
                space.as_deref(),
                rmap.as_ref(),
                pfn,
            );
            match fate {
                Fate::Freed => {
                    freed += pages;
                    memory.mapping(pfn).store(0, Ordering::Relaxed);
                    memory.free(pfn);
                    continue;
                }
                Fate::Keep => {}
                Fate::Activate => {
                    memory.word(pfn).set(ACTIVE);
                }
                Fate::Split => {
                    // Each page is looked at by itself, the first one again.
                    list.extend((pfn.0..pfn.0 + pages as u32).map(Pfn));
                    sc.nr_scanned = sc.nr_scanned.saturating_sub(pages);
                    continue;
                }
            }
            list[kept] = pfn;
            kept += 1;
        }
    }
    drop(srcu);
    list.truncate(kept);
    memcg.uncharge(freed);
    sc.list = list;
    sc.walk = walk;
    activate_folios(cpu, lruvec, &mut activate);
    sc.activate = activate;
    freed
}

/// Decide about one folio, and free it if nobody uses it. A freed one is in no
/// cache and unmapped; its frame is the caller's.
fn shrink_folio(
    cpu: &Cpu,
    lruvec: &LruVec,
    sc: &mut ScanControl,
    around: &mut LookAround<'_>,
    space: Option<&AddressSpace>,
    rmap: Option<&Rmap<'_>>,
    pfn: Pfn,
) -> Fate {
    let Some(_locked) = FolioLock::try_new(cpu.host().memory.word(pfn)) else {
        return Fate::Keep;
    };
    let fate = shrink_locked_folio(cpu, lruvec, sc, around, space, rmap, pfn);
    if matches!(fate, Fate::Activate) {
        give_back_slot(cpu, pfn);
    }
    fate
}

/// A locked folio that is activated will not be swapped out soon: give its slot
/// back if swap is scarce, or the folio cannot be evicted at all.
fn give_back_slot(cpu: &Cpu, pfn: Pfn) {
    let host = cpu.host();
    let word = host.memory.word(pfn).get();
    // One that is being written needs its slot.
    if word.has(SWAPCACHE) && !word.has(WRITEBACK) && (host.swap.is_full() || word.has(UNEVICTABLE))
    {
        host.swap.free_folio_slot(&host.memory, pfn);
    }
}

/// [`shrink_folio`] of a locked folio.
fn shrink_locked_folio(
    cpu: &Cpu,
    lruvec: &LruVec,
    sc: &mut ScanControl,
    around: &mut LookAround<'_>,
    space: Option<&AddressSpace>,
    rmap: Option<&Rmap<'_>>,
    pfn: Pfn,
) -> Fate {
    let host = cpu.host();
    let memory = &host.memory;
    let word = memory.word(pfn);
    let seen = word.get();
    sc.nr_scanned += seen.nr_pages();
    if seen.has(UNEVICTABLE) {
        return Fate::Activate;
    }
    let mapped = || memory.mapcount(pfn) != 0;
    // A walker met it while it was isolated.
    if mapped() && seen.has(REFERENCED) {
        return Fate::Keep;
    }
    if seen.is_file_lru() && seen.has(DIRTY) && !seen.has(WRITEBACK) {
        sc.unqueued_dirty += seen.nr_pages();
    }
    if seen.has(WRITEBACK) {
        word.set(RECLAIM);
        return Fate::Activate;
    }
    let mut reclaim_clean = false;
    if mapped() {
        let Some(rmap) = rmap else {
            // The mappings are being changed.
            return Fate::Keep;
        };
        let referenced = around.folio_referenced(rmap, pfn);
        let marked = word.clear(REFERENCED).has(REFERENCED);
        if referenced.locked {
            return Fate::Activate;
        }
        if referenced.vmas > 0 {
            word.set(REFERENCED);
            return if marked || referenced.vmas > 1 {
                Fate::Activate
            } else {
                Fate::Keep
            };
        }
        reclaim_clean = marked && seen.is_file_lru();
    } else if word.clear(REFERENCED).has(REFERENCED) {
        reclaim_clean = seen.is_file_lru();
    }
    if seen.has(FOLIO_ANON) && seen.has(SWAPBACKED) && !seen.has(SWAPCACHE) {
        // Unmapped meanwhile: freed when it is put back.
        if !sc.may_io || !mapped() {
            return Fate::Keep;
        }
        if seen.order() > 0 {
            // In base pages: the model's swap has no runs of slots.
            let split = rmap.is_some_and(|rmap| rmap::split_folio(cpu, rmap, pfn));
            return if split { Fate::Split } else { Fate::Activate };
        }
        if host.swap.add_folio(memory, pfn).is_none() {
            return Fate::Activate;
        }
    }
    if mapped() {
        if let Some(rmap) = rmap {
            let slot = seen
                .has(FOLIO_ANON)
                .then(|| Swap::slot_of(memory, pfn))
                .flatten();
            rmap::try_to_unmap(cpu, rmap, pfn, slot);
        }
        if mapped() {
            return Fate::Activate;
        }
    }
    if word.get().has(DIRTY) {
        if seen.is_file_lru() {
            // Left to writeback; reclaimed as soon as it is clean.
            word.set(RECLAIM);
            return Fate::Activate;
        }
        if reclaim_clean || !sc.may_io {
            return Fate::Keep;
        }
        if let Err(fate) = pageout(cpu, space, pfn) {
            return fate;
        }
    }
    if remove_mapping(cpu, lruvec, space, pfn) {
        Fate::Freed
    } else {
        Fate::Keep
    }
}

/// Write a locked, unmapped folio to swap (`pageout()`), where shmem leaves the
/// page cache first. `Err` when it stays.
fn pageout(cpu: &Cpu, space: Option<&AddressSpace>, pfn: Pfn) -> std::result::Result<(), Fate> {
    let host = cpu.host();
    let memory = &host.memory;
    let word = memory.word(pfn);
    let slot = match Swap::slot_of(memory, pfn) {
        Some(slot) => slot,
        None => shmem_writepage(cpu, space, pfn)?,
    };
    // Cleared before the content is read: a write that comes later sets it.
    word.clear(DIRTY);
    if host.swap.write(cpu, memory, pfn, slot).is_err() {
        // As after a failed write in the kernel: dirty, and in the cache still.
        word.set(DIRTY);
        return Err(Fate::Keep);
    }
    if word.get().any(DIRTY | WRITEBACK) {
        return Err(Fate::Keep);
    }
    Ok(())
}

/// Move a locked shmem folio from the page cache to the swap cache
/// (`shmem_writepage()`); the page cache names its slot then.
fn shmem_writepage(
    cpu: &Cpu,
    space: Option<&AddressSpace>,
    pfn: Pfn,
) -> std::result::Result<u32, Fate> {
    let host = cpu.host();
    let memory = &host.memory;
    let Some(space) = space else {
        // Truncated: freed when it is put back.
        return Err(Fate::Keep);
    };
    let Some(slot) = host.swap.add_folio(memory, pfn) else {
        return Err(Fate::Activate);
    };
    let index = u64::from(memory.pgoff(pfn).load(Ordering::Relaxed));
    let mut moved = false;
    space.update_slot(index, |entry| {
        // Mapped again since: then it stays.
        if entry == Slot::Page(pfn) && memory.mapcount(pfn) == 0 {
            moved = true;
            host.swap.duplicate(slot);
            Slot::Value(u64::from(slot))
        } else {
            entry
        }
    });
    if moved {
        return Ok(slot);
    }
    host.swap.free_folio_slot(memory, pfn);
    Err(Fate::Activate)
}

/// Take a clean, unmapped, locked folio out of its cache and leave a shadow
/// entry (`__remove_mapping()`); false if it came into use again.
fn remove_mapping(cpu: &Cpu, lruvec: &LruVec, space: Option<&AddressSpace>, pfn: Pfn) -> bool {
    let host = cpu.host();
    let memory = &host.memory;
    let word = memory.word(pfn).get();
    let shadow = || workingset::eviction(lruvec, word);
    if let Some(slot) = Swap::slot_of(memory, pfn) {
        return host.swap.remove_folio(memory, pfn, slot, shadow);
    }
    let Some(space) = space else {
        return false;
    };
    let index = u64::from(memory.pgoff(pfn).load(Ordering::Relaxed));
    let mut removed = false;
    // Mapping a cached page and writing to it by descriptor happen under the
    // cache's lock, so this decides.
    space.update_slot(index, |entry| {
        if entry != Slot::Page(pfn)
            || memory.mapcount(pfn) != 0
            || memory.word(pfn).get().has(DIRTY)
        {
            return entry;
        }
        removed = true;
        if word.is_file_lru() {
            Slot::Value(shadow())
        } else {
            // Shmem that was never written: zeros.
            Slot::Empty
        }
    });
    removed
}

/// Put what is left of the list back on the LRU: rejected folios in the
/// youngest generation, those under writeback where their flags say
/// (`evict_folios()`, `move_folios_to_lru()`). With `retry`, clean unmapped
/// ones are set aside to be tried again.
fn put_back(cpu: &Cpu, lruvec: &LruVec, sc: &mut ScanControl, retry: bool) {
    let memory = &cpu.host().memory;
    let again = &mut sc.again;
    again.clear();
    sc.list.retain(|&pfn| {
        let word = memory.word(pfn);
        let seen = word.get();
        if seen.has(UNEVICTABLE) {
            return true;
        }
        if seen.has(RECLAIM) && seen.any(DIRTY | WRITEBACK) {
            if seen.has(WORKINGSET) {
                word.set(REFERENCED);
            }
            return true;
        }
        let in_use = seen.any(ACTIVE | REFERENCED | LOCKED | DIRTY | WRITEBACK);
        if retry && !in_use && memory.mapcount(pfn) == 0 {
            again.push(pfn);
            return false;
        }
        word.modify(|word| Some(Word(word.0 & !(REFS_MASK | REFS_FLAGS) | ACTIVE)));
        true
    });
    if !sc.list.is_empty() {
        let mut lists = lruvec.lru_lock.lock();
        for &pfn in &sc.list {
            // Under the lock, as for every folio that enters a list.
            memory.word(pfn).set(LRU);
            lruvec.add_folio(&mut lists, memory, pfn, false);
        }
    }
    for &pfn in &sc.list {
        // Whoever dropped the last mapping meanwhile could not free it.
        release_if_unused(cpu, pfn);
    }
    sc.list.clear();
    if let Some(walk) = &mut sc.walk {
        walk.apply(cpu, lruvec);
    }
}

/// Move young folios to the youngest generation (`folio_activate()`).
fn activate_folios(cpu: &Cpu, lruvec: &LruVec, folios: &mut Vec<Pfn>) {
    if folios.is_empty() {
        return;
    }
    let memory = &cpu.host().memory;
    for &pfn in folios.iter() {
        let word = memory.word(pfn);
        // Taken like any isolation. It may be another folio by now, for no
        // reference was kept; then it is put back untouched.
        if !word.get().has(LRU) || !word.clear(LRU).has(LRU) {
            continue;
        }
        let seen = word.get();
        let ours = (seen.memcg(), seen.node()) == (lruvec.memcg, lruvec.node);
        {
            let mut lists = lruvec.lru_lock.lock();
            if ours && seen.0 & GEN_MASK != 0 && !seen.any(ACTIVE | UNEVICTABLE) {
                lruvec.del_folio(&mut lists, memory, pfn, false);
                word.set(ACTIVE);
                lruvec.add_folio(&mut lists, memory, pfn, false);
            }
            word.set(LRU);
        }
        release_if_unused(cpu, pfn);
    }
    folios.clear();
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::host::{Host, HostConfig};

    #[test]
    fn an_activated_folio_gives_its_slot_back_when_swap_is_over_half_full_or_it_is_locked() {
        let host = Host::new(&HostConfig {
            nodes: vec![64],
            swap_pages: 4,
            virtual_clock: true,
        })
        .expect("a valid host");
        let cpu = Cpu::new(&host);
        let memcg = host.create_memcg("test").expect("memcg");
        let cached = || {
            let pfn = host
                .alloc_folio(&cpu, &memcg, 0, FOLIO_ANON | SWAPBACKED)
                .expect("a folio");
            host.swap.add_folio(&host.memory, pfn).expect("a slot");
            pfn
        };
        let has_slot = |pfn| Swap::slot_of(&host.memory, pfn).is_some();

        let [first, second] = [cached(), cached()];
        give_back_slot(&cpu, first);
        assert!(has_slot(first), "half of the device is free");
        host.memory.word(second).set(UNEVICTABLE);
        give_back_slot(&cpu, second);
        assert!(!has_slot(second), "it is locked in memory");
        let [third, _] = [cached(), cached()];
        host.memory.word(third).set(WRITEBACK);
        give_back_slot(&cpu, third);
        assert!(has_slot(third), "it is being written");
        give_back_slot(&cpu, first);
        assert!(!has_slot(first), "three of four are used");
        let word = host.memory.word(first).get();
        assert!(
            word.has(DIRTY) && !word.has(SWAPCACHE),
            "it is nowhere else"
        );
    }
}
