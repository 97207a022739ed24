//! The swap device, its cache, and faults on swapped pages.
//!
//! A slot is one atomic word, for faults, zaps and reclaim meet on it: how many
//! page-table entries (or page-cache slots of shmem) name it, and either the
//! folio that is in the swap cache under it or the shadow entry of the one that
//! was evicted. One bit of the word is a lock. A folio enters the swap cache
//! through a fresh slot and leaves it only under the slot's lock, so whoever
//! holds the lock can use the cached folio: it stands for the reference that
//! the kernel takes.
//!
//! Writing out and reading in are synchronous, as on a RAM disk, so a fault on
//! a slot that is not cached skips the swap cache (`SWP_SYNCHRONOUS_IO`).
//!
//! Kernel: `mm/swapfile.c`, `mm/swap_state.c`, `do_swap_page()` in `mm/memory.c`.

use super::folio::{ACTIVE, ANON, DIRTY as FOLIO_DIRTY, FolioWord, LOCKED, SWAPBACKED, SWAPCACHE};
use super::memory::PhysMem;
use super::pagetable::{ACCESSED, DIRTY, PTE, RW};
use super::{Entry, Mm, Pfn, Pte, Vma, release_if_unused};
use crate::cpu::Cpu;
use crate::error::{Errno, Error, Result};
use crate::lru_gen::{self, workingset};
use crate::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering, zeroed};
use crate::sync::lock::Mutex;
use crate::sync::spin::Backoff;
use crate::trace::Counter;
use std::sync::Arc;

/// Bits of a slot's word that count who names the slot.
const COUNT: u64 = 0xffff;
/// The value is the folio in the swap cache.
const CACHED: u64 = 1 << 16;
/// The value is a shadow entry.
const SHADOW: u64 = 1 << 17;
/// Somebody works on the slot.
const LOCK: u64 = 1 << 18;
/// The slot is handed out.
const USED: u64 = 1 << 19;
const VALUE_SHIFT: u32 = 20;
/// Bits of a value, and so of a shadow entry.
pub(crate) const VALUE_BITS: u32 = 64 - VALUE_SHIFT;

/// The swap device.
pub struct Swap {
    slots: Box<[AtomicU64]>,
    content: Box<[AtomicU8]>,
    free: Mutex<FreeSlots>,
    nr_free: AtomicU64,
    failing_writes: AtomicU32,
}

#[derive(Default)]
struct FreeSlots {
    /// Slots from here on were never handed out.
    next: u32,
    returned: Vec<u32>,
}

/// A locked slot: its folio, if it has one, stays in the swap cache.
struct SlotGuard<'a> {
    swap: &'a Swap,
    slot: u32,
}

impl SlotGuard<'_> {
    fn word(&self) -> &AtomicU64 {
        &self.swap.slots[self.slot as usize]
    }

    fn value(&self) -> u64 {
        self.word().load(Ordering::Relaxed)
    }

    fn cached(&self) -> Option<Pfn> {
        let word = self.value();
        (word & CACHED != 0).then_some(Pfn((word >> VALUE_SHIFT) as u32))
    }

    fn shadow(&self) -> Option<u64> {
        let word = self.value();
        (word & SHADOW != 0).then_some(word >> VALUE_SHIFT)
    }

    /// Replace what the value is, keeping the count, which others change.
    fn set(&self, kind: u64, value: u64) {
        let mut seen = self.value();
        loop {
            let new = seen & (COUNT | LOCK | USED) | kind | value << VALUE_SHIFT;
            match self
                .word()
                .compare_exchange_weak(seen, new, Ordering::AcqRel, Ordering::Relaxed)
            {
                Ok(_) => return,
                Err(now) => seen = now,
            }
        }
    }
}

impl Drop for SlotGuard<'_> {
    fn drop(&mut self) {
        // Release: pairs with the acquire of the next holder.
        self.word().fetch_and(!LOCK, Ordering::Release);
        // Whoever dropped the last name meanwhile left the slot to this holder.
        self.swap.release(self.slot);
    }
}

impl Swap {
    /// A device of `nr_slots` pages.
    ///
    /// # Errors
    /// `EINVAL` for more slots than an entry can name.
    pub fn new(nr_slots: u64) -> Result<Self> {
        if nr_slots >= u64::from(u32::MAX) {
            return Err(Error::invalid(format!(
                "{nr_slots} swap slots: expected fewer than {}",
                u32::MAX
            )));
        }
        Ok(Swap {
            slots: zeroed(nr_slots as usize),
            content: zeroed(nr_slots as usize),
            free: Mutex::new(FreeSlots::default()),
            nr_free: AtomicU64::new(nr_slots),
            failing_writes: AtomicU32::new(0),
        })
    }

    /// Slots on the device.
    pub fn nr_slots(&self) -> u64 {
        self.slots.len() as u64
    }

    /// Slots that are free (`get_nr_swap_pages()`).
    pub fn nr_free(&self) -> u64 {
        self.nr_free.load(Ordering::Relaxed)
    }

    /// More than half of the device is used: slots of folios that are in
    /// memory again are given back early (`vm_swap_full()`).
    pub fn is_full(&self) -> bool {
        self.nr_free() * 2 < self.nr_slots()
    }

    /// Let the next `n` writes fail with an input/output error.
    pub fn fail_writes(&self, n: u32) {
        self.failing_writes.store(n, Ordering::Relaxed);
    }

    /// How many entries name a slot, and whether a folio is cached under it.
    pub fn slot_state(&self, slot: u32) -> (u64, bool) {
        let word = self.slots[slot as usize].load(Ordering::Acquire);
        (word & COUNT, word & CACHED != 0)
    }

    /// Call `visit(slot, count, cached folio)` for every used slot.
    pub fn for_each_used(&self, mut visit: impl FnMut(u32, u64, Option<Pfn>)) {
        for (slot, word) in self.slots.iter().enumerate() {
            let word = word.load(Ordering::Acquire);
            if word & USED != 0 {
                let cached = (word & CACHED != 0).then_some(Pfn((word >> VALUE_SHIFT) as u32));
                visit(slot as u32, word & COUNT, cached);
            }
        }
    }

    /// Lock a slot; `None` when it is free, and so not what the caller meant.
    fn lock(&self, slot: u32) -> Option<SlotGuard<'_>> {
        let word = &self.slots[slot as usize];
        let backoff = Backoff::new();
        loop {
            let seen = word.load(Ordering::Relaxed);
            if seen & USED == 0 {
                return None;
            }
            // Acquire: pairs with the release of the last holder.
            if seen & LOCK == 0
                && word
                    .compare_exchange_weak(seen, seen | LOCK, Ordering::Acquire, Ordering::Relaxed)
                    .is_ok()
            {
                return Some(SlotGuard { swap: self, slot });
            }
            backoff.wait();
        }
    }

    /// Take a slot for a folio, which is thereby in the swap cache, and dirty:
    /// its content is not on the device yet (`add_to_swap()`). The caller has
    /// locked the folio.
    pub fn add_folio(&self, memory: &PhysMem, pfn: Pfn) -> Option<u32> {
        let slot = {
            let mut free = self.free.lock();
            match free.returned.pop() {
                Some(slot) => slot,
                None if (free.next as usize) < self.slots.len() => {
                    free.next += 1;
                    free.next - 1
                }
                None => return None,
            }
        };
        self.nr_free.fetch_sub(1, Ordering::Relaxed);
        debug_assert_eq!(self.slots[slot as usize].load(Ordering::Relaxed), 0);
        memory.swap(pfn).store(slot + 1, Ordering::Relaxed);
        memory.word(pfn).set(SWAPCACHE | FOLIO_DIRTY);
        let word = USED | CACHED | u64::from(pfn.0) << VALUE_SHIFT;
        // Release: publishes the folio's fields to whoever locks the slot.
        self.slots[slot as usize].store(word, Ordering::Release);
        Some(slot)
    }

    /// One more entry names the slot (`swap_duplicate()`).
    pub(crate) fn duplicate(&self, slot: u32) {
        let before = self.slots[slot as usize].fetch_add(1, Ordering::AcqRel);
        debug_assert!(before & USED != 0, "slot {slot} named while free");
    }

    /// One entry less names the slot. Without any, and without a cached folio,
    /// it is free again; a cached folio that nothing maps either goes with it
    /// (`free_swap_and_cache()`).
    pub fn free(&self, cpu: &Cpu, slot: u32) {
        if let Some(pfn) = self.put(slot) {
            release_if_unused(cpu, pfn);
        }
    }

    /// Drop one name; returns the folio that is left alone in the cache.
    fn put(&self, slot: u32) -> Option<Pfn> {
        // AcqRel: what was done through the entry happens before reuse.
        let before = self.slots[slot as usize].fetch_sub(1, Ordering::AcqRel);
        debug_assert!(before & COUNT > 0, "slot {slot} freed once too often");
        if before & COUNT != 1 {
            return None;
        }
        if before & CACHED != 0 {
            return Some(Pfn((before >> VALUE_SHIFT) as u32));
        }
        self.release(slot);
        None
    }

    /// Hand a slot back if nobody names it and no folio is cached under it.
    fn release(&self, slot: u32) {
        let word = &self.slots[slot as usize];
        let mut seen = word.load(Ordering::Relaxed);
        loop {
            // A lock's holder releases the slot itself if it is left unused.
            if seen & (COUNT | CACHED | LOCK) != 0 || seen & USED == 0 {
                return;
            }
            match word.compare_exchange_weak(seen, 0, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => break,
                Err(now) => seen = now,
            }
        }
        self.free.lock().returned.push(slot);
        self.nr_free.fetch_add(1, Ordering::Relaxed);
    }

    /// The slot of a folio in the swap cache.
    #[inline]
    pub(crate) fn slot_of(memory: &PhysMem, pfn: Pfn) -> Option<u32> {
        memory.swap(pfn).load(Ordering::Relaxed).checked_sub(1)
    }

    /// Whether page-table entries or shmem still name a folio's slot
    /// (`folio_swapped()`).
    pub(crate) fn is_named(&self, memory: &PhysMem, pfn: Pfn) -> bool {
        // Acquire: pairs with `put`, before which a fault has mapped the folio.
        Self::slot_of(memory, pfn)
            .is_some_and(|slot| self.slots[slot as usize].load(Ordering::Acquire) & COUNT != 0)
    }

    /// Write a folio to its slot (`swap_writepage()`); the caller has locked
    /// it and cleared its dirty flag.
    ///
    /// # Errors
    /// `EIO` when the device fails; the caller marks the folio dirty again.
    pub(crate) fn write(&self, cpu: &Cpu, memory: &PhysMem, pfn: Pfn, slot: u32) -> Result<()> {
        if self.failing_writes.load(Ordering::Relaxed) != 0 {
            self.failing_writes.fetch_sub(1, Ordering::Relaxed);
            return Err(Error::new(
                Errno::EIO,
                format!("writing {pfn:?} to swap slot {slot} failed"),
            ));
        }
        let byte = memory.content(pfn).load(Ordering::Relaxed);
        self.content[slot as usize].store(byte, Ordering::Relaxed);
        cpu.count(Counter::SwapOut);
        Ok(())
    }

    /// Take an unused, clean folio out of the swap cache and leave a shadow
    /// entry (`__remove_mapping()`); false when it was mapped, named by
    /// someone who looks it up, or dirtied meanwhile. `shadow` is asked only
    /// when it goes. The caller has locked and isolated the folio.
    pub(crate) fn remove_folio(
        &self,
        memory: &PhysMem,
        pfn: Pfn,
        slot: u32,
        shadow: impl FnOnce() -> u64,
    ) -> bool {
        let Some(guard) = self.lock(slot) else {
            return false;
        };
        debug_assert_eq!(guard.cached(), Some(pfn));
        if memory.mapcount(pfn) != 0 || memory.word(pfn).get().has(FOLIO_DIRTY) {
            return false;
        }
        Self::leave_cache(memory, pfn);
        guard.set(SHADOW, shadow());
        true
    }

    fn leave_cache(memory: &PhysMem, pfn: Pfn) {
        memory.word(pfn).clear(SWAPCACHE);
        memory.swap(pfn).store(0, Ordering::Relaxed);
    }

    /// Give back the slot of a folio that is in memory, if nothing else names
    /// it; the folio is dirty then, for it is nowhere else
    /// (`folio_free_swap()`). The caller has locked the folio.
    pub(crate) fn free_folio_slot(&self, memory: &PhysMem, pfn: Pfn) -> bool {
        let Some(slot) = Self::slot_of(memory, pfn) else {
            return false;
        };
        let Some(guard) = self.lock(slot) else {
            return false;
        };
        if guard.value() & COUNT != 0 {
            return false;
        }
        memory.word(pfn).set(FOLIO_DIRTY);
        Self::leave_cache(memory, pfn);
        guard.set(0, 0);
        true
    }
}

/// A folio is being freed by its last owner: give back its slot if it has one.
pub(crate) fn forget(cpu: &Cpu, pfn: Pfn) {
    let (swap, memory) = (&cpu.host().swap, &cpu.host().memory);
    if let Some(slot) = Swap::slot_of(memory, pfn)
        && let Some(guard) = swap.lock(slot)
    {
        Swap::leave_cache(memory, pfn);
        guard.set(0, 0);
    }
}

/// Lock a folio for as long as the value lives (`folio_trylock()`).
pub(crate) struct FolioLock<'a>(&'a AtomicU64);

impl<'a> FolioLock<'a> {
    /// `None` when somebody else has it.
    pub(crate) fn try_new(word: &'a AtomicU64) -> Option<Self> {
        if word.get().has(LOCKED) || word.set(LOCKED).has(LOCKED) {
            return None;
        }
        Some(FolioLock(word))
    }
}

impl Drop for FolioLock<'_> {
    fn drop(&mut self) {
        self.0.clear(LOCKED);
    }
}

/// Bring a swapped page back (`do_swap_page()`).
///
/// # Errors
/// `ENOMEM`.
pub(crate) fn fault(
    mm: &Arc<Mm>,
    cpu: &Cpu,
    vma: &Vma,
    address: u64,
    at: Entry,
    slot: u32,
    write: bool,
) -> Result<()> {
    let (swap, memory) = (&cpu.host().swap, &cpu.host().memory);
    let named = Pte::swap(slot);
    let backoff = Backoff::new();
    let mut fresh = None;
    loop {
        if mm.read(at) != named {
            break;
        }
        let Some(guard) = swap.lock(slot) else {
            continue;
        };
        // The entry is read under the slot's lock again: it names this slot,
        // so the slot was not given to somebody else.
        if mm.read(at) != named {
            break;
        }
        if let Some(pfn) = guard.cached() {
            let Some(_locked) = FolioLock::try_new(memory.word(pfn)) else {
                // Reclaim is writing it out; the folio stays or its slot does.
                drop(guard);
                backoff.wait();
                continue;
            };
            map_cached(mm, cpu, vma, at, slot, write, guard, pfn);
            break;
        }
        let Some(pfn) = fresh else {
            drop(guard);
            fresh = Some(mm.new_folio(cpu, vma, 0, ANON | SWAPBACKED)?);
            continue;
        };
        let byte = swap.content[slot as usize].load(Ordering::Relaxed);
        memory.content(pfn).store(byte, Ordering::Relaxed);
        let shadow = guard.shadow();
        {
            let _ptl = mm.tables.meta(at.table).ptl.lock();
            if mm.read(at) != named {
                break;
            }
            Mm::attach(memory, vma, address, pfn);
            // In no page table and no cache but this one.
            memory.word(pfn).set(FOLIO_DIRTY);
            if let Some(shadow) = shadow {
                let in_fault = memory.word(pfn).get().has(ACTIVE);
                workingset::refault(cpu, pfn, shadow, in_fault);
            }
            lru_gen::add_folio(cpu, pfn);
            let dirty = if write { DIRTY } else { 0 };
            let rw = if vma.flags.read_only { 0 } else { RW };
            let pte = Pte::leaf(pfn, PTE, rw | dirty | ACCESSED);
            // Release: publishes the folio's fields; pairs with `read`.
            mm.word(at).store(pte.0, Ordering::Release);
        }
        guard.set(0, 0);
        drop(guard);
        swap.put(slot);
        cpu.count(Counter::SwapIn);
        mm.count_event(cpu, Counter::PgMajFault);
        return Ok(());
    }
    if let Some(pfn) = fresh {
        mm.discard_new(cpu, pfn);
    }
    Ok(())
}

/// Map a folio that is still in the swap cache under a locked slot.
#[expect(clippy::too_many_arguments)]
fn map_cached(
    mm: &Arc<Mm>,
    cpu: &Cpu,
    vma: &Vma,
    at: Entry,
    slot: u32,
    write: bool,
    guard: SlotGuard<'_>,
    pfn: Pfn,
) {
    let (swap, memory) = (&cpu.host().swap, &cpu.host().memory);
    {
        let _ptl = mm.tables.meta(at.table).ptl.lock();
        if mm.read(at) != Pte::swap(slot) {
            return;
        }
        // Mapped before the slot loses a name: at no moment is the folio
        // neither mapped nor named.
        memory.map(pfn);
        let dirty = if write { DIRTY } else { 0 };
        let rw = if vma.flags.read_only { 0 } else { RW };
        let pte = Pte::leaf(pfn, PTE, rw | dirty | ACCESSED);
        mm.word(at).store(pte.0, Ordering::Release);
    }
    drop(guard);
    swap.put(slot);
    if write || swap.is_full() {
        swap.free_folio_slot(memory, pfn);
    }
}

/// Find the folio of a shmem page whose slot the page cache holds: `place` is
/// called under the slot's lock and puts the folio where the slot was named;
/// false from it means that the page cache changed (`shmem_swapin_folio()`).
/// Returns whether it was placed, and whether the device was read.
///
/// # Errors
/// `ENOMEM`, from `fresh`.
pub(crate) fn swapin_shmem(
    cpu: &Cpu,
    slot: u32,
    in_fault: bool,
    is_current: impl Fn() -> bool,
    mut fresh: impl FnMut() -> Result<Pfn>,
    place: impl Fn(Pfn) -> bool,
) -> Result<Option<(Pfn, bool)>> {
    let (swap, memory) = (&cpu.host().swap, &cpu.host().memory);
    let backoff = Backoff::new();
    let mut new = None;
    let placed = loop {
        if !is_current() {
            break None;
        }
        let Some(guard) = swap.lock(slot) else {
            continue;
        };
        if !is_current() {
            break None;
        }
        if let Some(pfn) = guard.cached() {
            let Some(_locked) = FolioLock::try_new(memory.word(pfn)) else {
                drop(guard);
                backoff.wait();
                continue;
            };
            if !place(pfn) {
                break None;
            }
            memory.word(pfn).set(FOLIO_DIRTY);
            Swap::leave_cache(memory, pfn);
            guard.set(0, 0);
            drop(guard);
            swap.put(slot);
            break Some((pfn, false));
        }
        let Some(pfn) = new else {
            drop(guard);
            new = Some(fresh()?);
            continue;
        };
        let byte = swap.content[slot as usize].load(Ordering::Relaxed);
        memory.content(pfn).store(byte, Ordering::Relaxed);
        memory.word(pfn).set(FOLIO_DIRTY);
        let shadow = guard.shadow();
        // Locked until it is on its list, so that nobody reclaims it halfway.
        let _locked = FolioLock::try_new(memory.word(pfn));
        if !place(pfn) {
            break None;
        }
        new = None;
        if let Some(shadow) = shadow {
            workingset::refault(cpu, pfn, shadow, in_fault);
        }
        if in_fault {
            memory.word(pfn).set(ACTIVE);
        }
        lru_gen::add_folio(cpu, pfn);
        guard.set(0, 0);
        drop(guard);
        swap.put(slot);
        cpu.count(Counter::SwapIn);
        break Some((pfn, true));
    };
    if let Some(pfn) = new {
        cpu.host().free_folio(pfn);
    }
    Ok(placed)
}
