//! Accessed bits page by page, as somebody outside reclaim reads them: one
//! question to the primary page table and one to the secondary MMUs a leaf
//! (`ptep_clear_young_notify()` and `ptep_clear_flush_young_notify()`,
//! `include/linux/mmu_notifier.h`).

use super::mm::{Entry, Mm};
use super::pagetable::{ACCESSED, TASK_SIZE, level_size};
use super::{PAGE_SIZE, Pte};
use crate::cpu::Cpu;
use crate::error::{Errno, Error, Result};
use crate::sync::atomic::Ordering;

/// Pages asked between two looks at whether to go on.
const POLL_PAGES: u64 = 512;

/// What happens to translations of a page that was young.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Flush {
    /// They stay: accesses through them set no bit again.
    No,
    /// Each young page's are flushed.
    EachPage,
}

/// Was a leaf accessed, by the primary's bit or by a secondary MMU's? Clear
/// that, under the table's lock.
pub(super) fn clear_young_notify(
    cpu: &Cpu,
    mm: &Mm,
    entry: Entry,
    start: u64,
    size: u64,
    flush: Flush,
) -> bool {
    let _ptl = mm.tables.meta(entry.table).ptl.lock();
    let pte: Pte = mm.read(entry);
    if !pte.is_leaf(entry.level) {
        return false;
    }
    // Relaxed: the bit carries nothing but itself.
    let primary =
        pte.is_young() && mm.word(entry).fetch_and(!ACCESSED, Ordering::Relaxed) & ACCESSED != 0;
    let secondary = match flush {
        Flush::No => mm.notifiers.clear_young(cpu, start, start + size, false),
        Flush::EachPage => mm.notifiers.clear_flush_young(cpu, start, start + size),
    };
    primary | secondary
}

/// For each page of `[start, start + pages * PAGE_SIZE)` whether it was accessed
/// since the last time; that is cleared.
///
/// # Errors
/// `EINVAL` for a range that is none; what a notifier's callback raised; `EINTR`.
pub fn scan(cpu: &Cpu, mm: &Mm, start: u64, pages: u64, flush: Flush) -> Result<Vec<bool>> {
    let end = pages
        .checked_mul(PAGE_SIZE)
        .and_then(|length| start.checked_add(length))
        .filter(|&end| end <= TASK_SIZE && start.is_multiple_of(PAGE_SIZE))
        .ok_or_else(|| {
            Error::invalid(format!(
                "{pages} pages at {start:#x}: expected whole pages below {TASK_SIZE:#x}"
            ))
        })?;
    let mut young = vec![false; pages as usize];
    let mut address = start;
    while address < end {
        let stop = end.min(address + POLL_PAGES * PAGE_SIZE);
        let _section = cpu.rcu.lock();
        while address < stop {
            let (entry, pte) = mm.lookup(address);
            let size = level_size(entry.level);
            let first = address & !(size - 1);
            if pte.is_leaf(entry.level) && clear_young_notify(cpu, mm, entry, first, size, flush) {
                let at = |address: u64| ((address - start) / PAGE_SIZE) as usize;
                young[at(address)..at(end.min(first + size))].fill(true);
            }
            address = first + size;
        }
        if cpu.poll() {
            cpu.check_error()?;
            return Err(Error::new(Errno::EINTR, "the scan was interrupted"));
        }
    }
    cpu.check_error()?;
    Ok(young)
}
