//! Idle page tracking: mark pages idle, and ask later whether they still are
//! (`mm/page_idle.c`).
//!
//! Marking clears the accessed bits of every mapping of the page, primary and
//! secondary, by way of the reverse mapping and the *accurate* notifier; an
//! access sets one again, and the next question finds it. A bit cleared here
//! is remembered in the folio as `YOUNG`, so that reclaim does not take the
//! page for cold.

use super::folio::{ANON, FolioWord, IDLE, LOCKED, LRU, Pfn, TAIL, YOUNG};
use super::mm::{Entry, Mm};
use super::pagetable::level_size;
use super::young::{Flush, clear_young_notify};
use super::{Area, PAGE_SIZE, Pte, Word};
use crate::cpu::Cpu;
use crate::error::{Errno, Error, Result};
use crate::sync::atomic::Ordering;
use std::sync::Arc;

/// Pages marked or asked between two looks at whether to go on.
const POLL_PAGES: u64 = 512;

/// What a range of memory was found to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Idle {
    /// Pages mapped.
    pub present: u64,
    /// Of them idle.
    pub idle: u64,
}

/// The folio of a frame, if it is user memory: on the LRU, and `pfn` its first
/// page (`page_idle_get_folio()`).
fn user_folio(cpu: &Cpu, pfn: Pfn) -> Option<Word> {
    let memory = &cpu.host().memory;
    if u64::from(pfn.0) >= memory.nr_pages() {
        return None;
    }
    let word = memory.word(pfn).get();
    (word.has(LRU) && !word.has(TAIL)).then_some(word)
}

/// Mark a frame's folio idle; false if it is none of the user's.
pub fn mark(cpu: &Cpu, pfn: Pfn) -> bool {
    let Some(word) = user_folio(cpu, pfn) else {
        return false;
    };
    clear_refs(cpu, pfn, word);
    // Only while it is on the LRU: it may have been freed meanwhile.
    let (word, _) = cpu
        .host()
        .memory
        .word(pfn)
        .modify(|word| (word.has(LRU) && !word.has(IDLE)).then_some(Word(word.0 | IDLE)));
    word.has(LRU)
}

/// Whether a frame's folio is marked idle and was not accessed since.
pub fn is_idle(cpu: &Cpu, pfn: Pfn) -> bool {
    let Some(word) = user_folio(cpu, pfn) else {
        return false;
    };
    if !word.has(IDLE) {
        return false;
    }
    clear_refs(cpu, pfn, word);
    cpu.host().memory.word(pfn).get().has(IDLE)
}

/// Clear the accessed bits of every mapping; if any was set the folio is not
/// idle (`page_idle_clear_pte_refs()`).
fn clear_refs(cpu: &Cpu, pfn: Pfn, word: Word) {
    let memory = &cpu.host().memory;
    if memory.mapcount(pfn) == 0 {
        return;
    }
    let Some(space) = cpu
        .host()
        .spaces
        .get(memory.mapping(pfn).load(Ordering::Relaxed))
    else {
        return;
    };
    let locks = !word.has(ANON);
    if locks && memory.word(pfn).set(LOCKED).has(LOCKED) {
        return;
    }
    let index = u64::from(memory.pgoff(pfn).load(Ordering::Relaxed));
    space.rmap_walk(index, |mm, vma, address| {
        if clear_mapping(cpu, mm, vma, address, pfn, word) {
            memory.word(pfn).modify(|word| {
                let new = Word(word.0 & !IDLE | YOUNG);
                (word.has(LRU) && new != word).then_some(new)
            });
        }
        true
    });
    if locks {
        memory.word(pfn).clear(LOCKED);
    }
}

/// Clear the accessed bits of a folio where one VMA maps it, and ask the
/// secondary MMUs of its mm (`page_idle_clear_pte_refs_one()`).
fn clear_mapping(cpu: &Cpu, mm: &Arc<Mm>, vma: &Area, address: u64, pfn: Pfn, word: Word) -> bool {
    let _rcu = cpu.rcu.lock();
    let frames = pfn.0..pfn.0 + word.nr_pages() as u32;
    let end = (address + word.nr_pages() * PAGE_SIZE).min(vma.end);
    let mut referenced = false;
    let mut at = address;
    while at < end {
        let (entry, _) = mm.lookup(at);
        let size = level_size(entry.level);
        let start = at & !(size - 1);
        if maps(mm, entry, &frames) {
            referenced |= clear_young_notify(cpu, mm, entry, start, size, Flush::No);
        }
        at = start + size;
    }
    referenced
}

/// Whether an entry is a present leaf that maps one of `frames`.
fn maps(mm: &Mm, entry: Entry, frames: &std::ops::Range<u32>) -> bool {
    let pte: Pte = mm.read(entry);
    pte.is_leaf(entry.level) && frames.contains(&pte.pfn().0)
}

/// Call `visit` for the first page of every leaf in `[start, end)` that maps
/// user memory, with the leaf's pages in the range.
fn for_range(
    cpu: &Cpu,
    mm: &Mm,
    start: u64,
    end: u64,
    mut visit: impl FnMut(Pfn, u64),
) -> Result<()> {
    if start > end || end > super::pagetable::TASK_SIZE {
        return Err(Error::invalid(format!(
            "range [{start:#x}, {end:#x}): expected one below {:#x}",
            super::pagetable::TASK_SIZE
        )));
    }
    let memory = &cpu.host().memory;
    let mut at = start;
    while at < end {
        let stop = end.min(at + POLL_PAGES * PAGE_SIZE);
        let mut found = Vec::new();
        // A hole is left behind at once, however large.
        let next = mm.for_each_leaf(at, stop, |address, entry, pte| {
            let size = level_size(entry.level);
            let leaf_end = (address & !(size - 1)) + size;
            let pages = (leaf_end.min(end) - address).div_ceil(PAGE_SIZE);
            found.push((memory.head(pte.pfn()), pages));
        });
        for (pfn, pages) in found {
            visit(pfn, pages);
        }
        at = next;
        if cpu.poll() {
            cpu.check_error()?;
            return Err(Error::new(
                Errno::EINTR,
                "idle page tracking was interrupted",
            ));
        }
    }
    cpu.check_error()
}

/// Mark every page that an mm maps in `[start, end)` idle; returns how many
/// are.
///
/// # Errors
/// `EINVAL` for a range that is none; what a notifier's callback raised;
/// `EINTR`.
pub fn mark_range(cpu: &Cpu, mm: &Mm, start: u64, end: u64) -> Result<Idle> {
    let mut idle = Idle::default();
    for_range(cpu, mm, start, end, |pfn, pages| {
        idle.present += pages;
        idle.idle += if mark(cpu, pfn) { pages } else { 0 };
    })?;
    Ok(idle)
}

/// Ask of every page that an mm maps in `[start, end)` whether it is still
/// idle.
///
/// # Errors
/// As [`mark_range`].
pub fn test_range(cpu: &Cpu, mm: &Mm, start: u64, end: u64) -> Result<Idle> {
    let mut idle = Idle::default();
    for_range(cpu, mm, start, end, |pfn, pages| {
        idle.present += pages;
        idle.idle += if is_idle(cpu, pfn) { pages } else { 0 };
    })?;
    Ok(idle)
}
