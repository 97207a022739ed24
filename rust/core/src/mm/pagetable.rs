//! Primary page tables: four levels of 512 atomic words.
//!
//! Entries are only ever read and written as whole 64-bit atomics; hardware
//! (a [`touch`](super::Mm::touch)) sets Accessed and Dirty behind everyone's
//! back. Each table has a spinlock, the split PTE lock: entries change under
//! it, except for those two bits.

use super::folio::Pfn;
use super::memory::PAGE_SHIFT;
use crate::sync::atomic::{AtomicU32, Ordering};
use crate::sync::lock::{SpinGuard, SpinLock};
use crate::table::{TABLE_ENTRIES, TABLE_SHIFT, TableId};

/// A page-table entry.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Pte(pub u64);

/// The entry maps something (`_PAGE_PRESENT`).
pub const PRESENT: u64 = 1 << 0;
/// Writable (`_PAGE_RW`).
pub const RW: u64 = 1 << 1;
/// A walk used the entry (`_PAGE_ACCESSED`).
pub const ACCESSED: u64 = 1 << 5;
/// A write went through the entry (`_PAGE_DIRTY`).
pub const DIRTY: u64 = 1 << 6;
/// A leaf above the lowest level (`_PAGE_PSE`).
pub const PSE: u64 = 1 << 7;
/// A leaf that maps the zero page: no folio behind it (`_PAGE_SPECIAL`).
pub const SPECIAL: u64 = 1 << 9;
/// A non-present entry that names a swap slot.
pub const SWAP: u64 = 1 << 10;
const FRAME_SHIFT: u32 = PAGE_SHIFT;

/// Levels of a primary page table; level 1 is the PTE table.
pub const LEVELS: u32 = 4;
/// The level whose leaf is a base page.
pub const PTE: u32 = 1;
/// The level whose leaf is 2 MiB.
pub const PMD: u32 = 2;
/// The level whose leaf is 1 GiB.
pub const PUD: u32 = 3;

/// log2 of the bytes that an entry of `level` spans.
#[inline]
pub const fn level_shift(level: u32) -> u32 {
    PAGE_SHIFT + TABLE_SHIFT * (level - 1)
}

/// Bytes that an entry of `level` spans.
#[inline]
pub const fn level_size(level: u32) -> u64 {
    1 << level_shift(level)
}

/// Index of `address` in a table of `level`.
#[inline]
pub const fn level_index(address: u64, level: u32) -> usize {
    (address >> level_shift(level)) as usize & (TABLE_ENTRIES - 1)
}

/// Highest address plus one: the lower half of 48 bits.
pub const TASK_SIZE: u64 = level_size(LEVELS + 1) / 2;

impl Pte {
    /// Nothing.
    pub const NONE: Pte = Pte(0);

    /// A leaf that maps `pfn`.
    #[inline]
    pub fn leaf(pfn: Pfn, level: u32, bits: u64) -> Self {
        let pse = if level > PTE { PSE } else { 0 };
        Pte(u64::from(pfn.0) << FRAME_SHIFT | PRESENT | pse | bits)
    }

    /// An entry that points to a table. It is born accessed (`_PAGE_TABLE`), so
    /// that a table which only a secondary MMU's faults fill is not passed over
    /// by an aging walk that looks at this bit.
    #[inline]
    pub fn table(id: TableId) -> Self {
        Pte(u64::from(id.0) << FRAME_SHIFT | PRESENT | RW | ACCESSED)
    }

    /// A swap slot.
    #[inline]
    pub fn swap(slot: u32) -> Self {
        Pte(u64::from(slot) << FRAME_SHIFT | SWAP)
    }

    /// Empty (`pte_none()`).
    #[inline]
    pub fn is_none(self) -> bool {
        self.0 == 0
    }

    /// Maps something.
    #[inline]
    pub fn is_present(self) -> bool {
        self.0 & PRESENT != 0
    }

    /// Whether it is a present leaf, in a table of `level`.
    #[inline]
    pub fn is_leaf(self, level: u32) -> bool {
        self.is_present() && (level == PTE || self.0 & PSE != 0)
    }

    /// Accessed.
    #[inline]
    pub fn is_young(self) -> bool {
        self.0 & ACCESSED != 0
    }

    /// Whether all of `bits` are set.
    #[inline]
    pub fn has(self, bits: u64) -> bool {
        self.0 & bits == bits
    }

    /// The frame of a leaf.
    #[inline]
    pub fn pfn(self) -> Pfn {
        Pfn((self.0 >> FRAME_SHIFT) as u32)
    }

    /// The table of a non-leaf entry.
    #[inline]
    pub fn table_id(self) -> TableId {
        TableId((self.0 >> FRAME_SHIFT) as u32)
    }

    /// The swap slot of a non-present entry, if it names one.
    #[inline]
    pub fn swap_slot(self) -> Option<u32> {
        (!self.is_present() && self.has(SWAP)).then_some((self.0 >> FRAME_SHIFT) as u32)
    }
}

/// What stands beside a primary table (`struct ptdesc`).
#[derive(Default)]
pub struct PtDesc {
    /// The table's lock (`pte_lockptr()`, `pmd_lock()`).
    pub ptl: PtLock,
}

/// The split page-table lock: a [`SpinLock`] that can tell its holder that
/// somebody waits.
#[derive(Default)]
pub struct PtLock {
    lock: SpinLock<()>,
    waiters: AtomicU32,
}

impl PtLock {
    /// Take it.
    #[inline]
    pub fn lock(&self) -> SpinGuard<'_, ()> {
        self.try_lock().unwrap_or_else(|| {
            // Relaxed: a hint to the holder, who may see it late.
            self.waiters.fetch_add(1, Ordering::Relaxed);
            let guard = self.lock.lock();
            self.waiters.fetch_sub(1, Ordering::Relaxed);
            guard
        })
    }

    /// Take it if it is free.
    #[inline]
    pub fn try_lock(&self) -> Option<SpinGuard<'_, ()>> {
        self.lock.try_lock()
    }

    /// Whether somebody waits for it (`spin_is_contended()`).
    #[inline]
    pub fn is_contended(&self) -> bool {
        self.waiters.load(Ordering::Relaxed) != 0
    }
}
