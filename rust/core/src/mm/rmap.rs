//! Reverse mapping: from a folio to every page-table entry that maps it.
//!
//! An address space knows the VMAs that show it; where a VMA would show the
//! folio, the page table is looked up, and the entry compared with the folio
//! under the table's lock.
//!
//! Reclaim walks many folios of one address space in a row, so it takes the
//! list of VMAs once for all of them ([`Rmap`]): one lock and one reference to
//! each mm for a batch, not for a page.
//!
//! Source: `mm/rmap.c`, `mm/page_vma_mapped.c`.

use super::address_space::{AddressSpace, Mapped};
use super::folio::{DIRTY as FOLIO_DIRTY, FolioWord};
use super::memory::{PAGE_SIZE, PMD_ORDER, PhysMem};
use super::pagetable::{DIRTY, PMD, PTE, Pte, RW, level_size};
use super::{Area, Entry, Mm, Pfn};
use crate::cpu::Cpu;
use crate::sync::atomic::Ordering;
use crate::sync::lock::RwLockReadGuard;
use std::cell::OnceCell;
use std::sync::Arc;

/// The VMAs of an address space, held for a batch of folios.
pub(crate) struct Rmap<'a> {
    maps: RwLockReadGuard<'a, Vec<Mapped>>,
    mms: Vec<OnceCell<Option<Arc<Mm>>>>,
}

impl<'a> Rmap<'a> {
    fn new(maps: RwLockReadGuard<'a, Vec<Mapped>>) -> Self {
        let mms = maps.iter().map(|_| OnceCell::new()).collect();
        Rmap { maps, mms }
    }

    /// The VMAs, unless they are being changed.
    pub(crate) fn try_new(space: &'a AddressSpace) -> Option<Self> {
        Some(Self::new(space.try_mapped()?))
    }

    /// The VMAs, waiting for a change to end.
    pub(crate) fn lock(space: &'a AddressSpace) -> Self {
        Self::new(space.mapped())
    }

    /// Call `visit(mm, vma, start, end)` for every VMA that shows some of the
    /// `nr_pages` pages from `index` on, until it returns false
    /// (`rmap_walk()`).
    pub(crate) fn walk(
        &self,
        index: u64,
        nr_pages: u64,
        mut visit: impl FnMut(&Arc<Mm>, &Area, u64, u64) -> bool,
    ) {
        for ((weak, vma), mm) in self.maps.iter().zip(&self.mms) {
            let Some((start, end)) = vma.addresses_of(index, nr_pages) else {
                continue;
            };
            if let Some(mm) = mm.get_or_init(|| weak.upgrade())
                && !visit(mm, vma, start, end)
            {
                return;
            }
        }
    }
}

/// Call `visit(address, place)` for every leaf in `[start, end)` that maps
/// pages of the folio at `head`, with the table's lock held; until it returns
/// false (`page_vma_mapped_walk()`).
pub(crate) fn mapped_walk(
    cpu: &Cpu,
    mm: &Mm,
    memory: &PhysMem,
    head: Pfn,
    start: u64,
    end: u64,
    mut visit: impl FnMut(u64, Entry, Pte) -> bool,
) {
    let _rcu = cpu.rcu.lock();
    let mut address = start;
    while address < end {
        let (at, pte) = mm.lookup(address);
        let size = level_size(at.level);
        if pte.is_leaf(at.level) && memory.head(pte.pfn()) == head {
            let _ptl = mm.tables.meta(at.table).ptl.lock();
            // Again, under the lock: only Accessed and Dirty still change.
            let pte = mm.read(at);
            if pte.is_leaf(at.level) && memory.head(pte.pfn()) == head && !visit(address, at, pte) {
                return;
            }
        }
        address = (address & !(size - 1)) + size;
    }
}

/// Unmap a locked folio from every page table (`try_to_unmap()`): secondary
/// MMUs lose the range first; then each entry is replaced by `slot`'s, or by
/// nothing, and its dirty bit goes to the folio. Stops at a VMA that is locked
/// in memory, or at an entry that maps the folio as part of a huge page.
pub(crate) fn try_to_unmap(cpu: &Cpu, rmap: &Rmap<'_>, head: Pfn, slot: Option<u32>) {
    let host = cpu.host();
    let memory = &host.memory;
    let index = u64::from(memory.pgoff(head).load(Ordering::Relaxed));
    let nr_pages = memory.word(head).get().nr_pages();
    rmap.walk(index, nr_pages, |mm, vma, start, end| {
        if vma.flags.locked {
            return false;
        }
        let _told = mm.notifiers.invalidate(cpu, start, end);
        let mut go_on = true;
        mapped_walk(cpu, mm, memory, head, start, end, |_, at, _| {
            if at.level != PTE {
                go_on = false;
                return false;
            }
            let new = slot.map_or(Pte::NONE, |slot| {
                host.swap.duplicate(slot);
                Pte::swap(slot)
            });
            // An exchange: the processor may set Dirty until this moment.
            let old = Pte(mm.word(at).swap(new.0, Ordering::AcqRel));
            if old.has(DIRTY) {
                memory.word(head).set(FOLIO_DIRTY);
            }
            memory.unmap(head) != 0
        });
        go_on && memory.mapcount(head) != 0
    });
}

/// Make base pages of a locked, isolated huge folio that one mm maps
/// (`split_folio_to_list()`): secondary MMUs lose it, and a leaf that maps all
/// of it becomes a table. False when that cannot be done now.
pub(crate) fn split_folio(cpu: &Cpu, rmap: &Rmap<'_>, head: Pfn) -> bool {
    let memory = &cpu.host().memory;
    let word = memory.word(head).get();
    let index = u64::from(memory.pgoff(head).load(Ordering::Relaxed));
    if word.order() != PMD_ORDER {
        return false;
    }
    let mut split = false;
    rmap.walk(index, word.nr_pages(), |mm, vma, first, _| {
        // Keeps out those who clear an entry first and count it as unmapped
        // later. Tried only: the caller may be far down in a fault.
        let Some(_vmas) = mm.mmap_lock.try_read() else {
            return false;
        };
        // Where the folio begins, whether or not this VMA shows that part.
        let skipped = vma.page_index(first) - index;
        let Some(start) = first.checked_sub(skipped * PAGE_SIZE) else {
            return false;
        };
        let end = start + level_size(PMD);
        let _told = mm.notifiers.invalidate(cpu, start, end);
        let _rcu = cpu.rcu.lock();
        let (at, pte) = mm.lookup(first);
        if at.level == PMD && pte.is_leaf(PMD) && mm.split_huge(cpu, at).is_err() {
            return false;
        }
        let (at, _) = mm.lookup(first);
        if at.level != PTE || !start.is_multiple_of(level_size(PMD)) {
            return false;
        }
        let _ptl = mm.tables.meta(at.table).ptl.lock();
        let maps = |n: u32| {
            let place = Entry {
                index: n as usize,
                ..at
            };
            let pte = mm.read(place);
            u32::from(pte.is_leaf(PTE) && pte.pfn() == Pfn(head.0 + n))
        };
        let mapped: u32 = (0..word.nr_pages() as u32).map(maps).sum();
        if mapped == memory.mapcount(head) {
            memory.split(head, maps);
            split = true;
        }
        false
    });
    split
}

/// Write-protect and clean every entry that maps a locked folio, so that the
/// next write to it faults (`folio_mkclean()`). Returns whether one was dirty.
pub(crate) fn mkclean(cpu: &Cpu, rmap: &Rmap<'_>, head: Pfn) -> bool {
    let memory = &cpu.host().memory;
    let index = u64::from(memory.pgoff(head).load(Ordering::Relaxed));
    let nr_pages = memory.word(head).get().nr_pages();
    let mut dirty = false;
    rmap.walk(index, nr_pages, |mm, _, start, end| {
        let _told = mm.notifiers.invalidate(cpu, start, end);
        mapped_walk(cpu, mm, memory, head, start, end, |_, at, pte| {
            if pte.0 & (RW | DIRTY) != 0 {
                let old = Pte(mm.word(at).fetch_and(!(RW | DIRTY), Ordering::AcqRel));
                dirty |= old.has(DIRTY);
            }
            true
        });
        true
    });
    dirty
}

const _: () = assert!(PAGE_SIZE == level_size(PTE));
