//! Virtual memory areas.

use super::address_space::AddressSpace;
use super::memory::PAGE_SHIFT;
use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::Arc;

/// Properties of a VMA that aging and faults ask about.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct VmFlags {
    /// `VM_LOCKED`: never aged, never evicted.
    pub locked: bool,
    /// `VM_PFNMAP`, `VM_MIXEDMAP`, `VM_IO`: not ordinary memory.
    pub special: bool,
    /// `PROT_NONE`.
    pub inaccessible: bool,
    /// Not writable.
    pub read_only: bool,
    /// `VM_SEQ_READ` or `VM_RAND_READ`: accesses say nothing about recency.
    pub no_recency: bool,
    /// Transparent huge pages on fault.
    pub thp: bool,
    /// log2 of the pages in a hugetlb page; 0 is not hugetlb.
    pub hugetlb_order: u32,
}

/// Where an mm shows which pages of an address space, and how: a VMA without
/// what it maps, as the address space itself keeps it.
#[derive(Clone, Copy, Debug)]
pub struct Area {
    /// First byte.
    pub start: u64,
    /// One past the last byte.
    pub end: u64,
    /// Page of the address space that `start` shows.
    pub pgoff: u64,
    /// Properties.
    pub flags: VmFlags,
}

/// One mapping `[start, end)` of an address space's pages from `pgoff` on.
#[derive(Clone)]
pub struct Vma {
    /// Where and how.
    pub area: Area,
    /// What is mapped.
    pub mapping: Arc<AddressSpace>,
}

impl Deref for Vma {
    type Target = Area;

    #[inline]
    fn deref(&self) -> &Area {
        &self.area
    }
}

impl Area {
    /// The address space's page at `address` (`linear_page_index()`).
    #[inline]
    pub fn page_index(&self, address: u64) -> u64 {
        ((address - self.start) >> PAGE_SHIFT) + self.pgoff
    }

    /// Where the VMA shows page `index`, if it does (`vma_address()`).
    #[inline]
    pub fn address_of(&self, index: u64) -> Option<u64> {
        let offset = index.checked_sub(self.pgoff)?;
        let address = self.start + (offset << PAGE_SHIFT);
        (address < self.end).then_some(address)
    }

    /// Where the VMA shows pages `[index, index + nr_pages)`, as `[start, end)`.
    #[inline]
    pub fn addresses_of(&self, index: u64, nr_pages: u64) -> Option<(u64, u64)> {
        let first = index.max(self.pgoff);
        let start = self.address_of(first)?;
        let left = (index + nr_pages).checked_sub(first).filter(|&n| n > 0)?;
        Some((start, self.end.min(start + (left << PAGE_SHIFT))))
    }

    /// Whether a fault through this VMA says that the page is in use
    /// (`vma_has_recency()`).
    #[inline]
    pub fn has_recency(&self) -> bool {
        !self.flags.no_recency
    }
}

/// The VMAs of an mm, by start (`mm->mm_mt`).
#[derive(Default)]
pub struct Vmas {
    by_start: BTreeMap<u64, Vma>,
}

impl Vmas {
    /// The VMA that contains `address`.
    #[inline]
    pub fn find(&self, address: u64) -> Option<&Vma> {
        let (_, vma) = self.by_start.range(..=address).next_back()?;
        (address < vma.end).then_some(vma)
    }

    /// VMAs that overlap `[start, end)`, in order of address.
    pub fn overlapping(&self, start: u64, end: u64) -> impl Iterator<Item = &Vma> {
        let first = self.find(start).map_or(start, |vma| vma.start);
        self.by_start.range(first..end).map(|(_, vma)| vma)
    }

    /// Every VMA, in order of address.
    pub fn iter(&self) -> impl Iterator<Item = &Vma> {
        self.by_start.values()
    }

    /// A gap of `len` bytes at or above `from`, `align`ed, or `None`.
    pub fn gap(&self, from: u64, len: u64, align: u64, limit: u64) -> Option<u64> {
        let mut start = from.next_multiple_of(align);
        for vma in self.overlapping(start, limit) {
            if vma.start >= start.checked_add(len)? {
                break;
            }
            start = vma.end.checked_next_multiple_of(align)?;
        }
        (start.checked_add(len)? <= limit).then_some(start)
    }

    pub(crate) fn insert(&mut self, vma: Vma) {
        self.by_start.insert(vma.start, vma);
    }

    pub(crate) fn remove(&mut self, start: u64) -> Option<Vma> {
        self.by_start.remove(&start)
    }

    /// Split the VMA that has `at` strictly inside, so that one begins there.
    pub(crate) fn split(&mut self, at: u64) -> Option<(Vma, Vma)> {
        let vma = self.find(at).filter(|vma| vma.start < at)?.clone();
        let mut low = vma.clone();
        let mut high = vma;
        high.area.pgoff = high.page_index(at);
        high.area.start = at;
        low.area.end = at;
        self.insert(low.clone());
        self.insert(high.clone());
        Some((low, high))
    }
}
