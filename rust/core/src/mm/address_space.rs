//! What pages belong to, and where they are mapped.
//!
//! A folio names an address space and a page index in it. The address space
//! knows every VMA that maps it, which makes the reverse mapping: from a folio
//! to each of its page-table entries (`mm/rmap.c`). Files and shmem also keep
//! their pages here (the page cache, `mm/filemap.c`); anonymous memory has one
//! address space per mapping (an `anon_vma`) and no page cache.

use super::Mm;
use super::folio::Pfn;
use super::vma::{Area, Vma};
use crate::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering, zeroed};
use crate::sync::lock::{Mutex, RwLockReadGuard, RwSem};
use std::sync::{Arc, Weak};

/// What kind of memory an address space is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Private anonymous memory, backed by swap.
    Anon,
    /// Shared memory: page cache, backed by swap.
    Shmem,
    /// A file: page cache, backed by its own store.
    File,
}

/// What the page cache holds for one page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Slot {
    /// Nothing.
    Empty,
    /// A folio.
    Page(Pfn),
    /// An evicted page's shadow entry, or for shmem a swap slot.
    Value(u64),
}

impl Slot {
    fn decode(raw: u64) -> Self {
        match raw {
            0 => Slot::Empty,
            n if n & 1 == 0 => Slot::Page(Pfn((n >> 1) as u32 - 1)),
            n => Slot::Value(n >> 1),
        }
    }

    fn encode(self) -> u64 {
        match self {
            Slot::Empty => 0,
            Slot::Page(pfn) => (u64::from(pfn.0) + 1) << 1,
            Slot::Value(value) => value << 1 | 1,
        }
    }
}

/// One VMA of one mm that maps an address space. Mms own their VMAs and VMAs
/// what they map; from here upward nothing is owned.
pub(crate) type Mapped = (Weak<Mm>, Area);

/// An anon_vma or an inode's mapping.
pub struct AddressSpace {
    /// Its number, which folios carry; never 0.
    pub id: u32,
    /// What it is.
    pub kind: Kind,
    /// Every VMA that maps it (`i_mmap`, or the anon_vma's tree).
    i_mmap: RwSem<Vec<Mapped>>,
    /// The page cache (`i_pages`), by page index; empty for anonymous memory.
    pages: Mutex<Vec<u64>>,
    /// Content of a file on its device, one byte a page.
    store: Box<[AtomicU8]>,
    /// Pages whose writeback failed since somebody was told (`AS_EIO`).
    failed: AtomicU64,
}

impl AddressSpace {
    pub(crate) fn new(id: u32, kind: Kind, nr_pages: usize) -> Self {
        let cached = if kind == Kind::Anon { 0 } else { nr_pages };
        let stored = if kind == Kind::File { nr_pages } else { 0 };
        AddressSpace {
            id,
            kind,
            i_mmap: RwSem::new(Vec::new()),
            pages: Mutex::new(vec![0; cached]),
            store: zeroed(stored),
            failed: AtomicU64::new(0),
        }
    }

    /// Writeback of a page failed (`mapping_set_error()`).
    pub(crate) fn set_error(&self) {
        // Relaxed: a count that is read on its own.
        self.failed.fetch_add(1, Ordering::Relaxed);
    }

    /// How many failed since this was last asked (`filemap_check_errors()`).
    pub(crate) fn take_errors(&self) -> u64 {
        self.failed.swap(0, Ordering::Relaxed)
    }

    /// Pages of a file or of shmem.
    pub fn nr_pages(&self) -> u64 {
        self.pages.lock().len() as u64
    }

    /// The page cache's slot of page `index`.
    pub fn slot(&self, index: u64) -> Slot {
        Slot::decode(self.pages.lock()[index as usize])
    }

    /// Change the slot of page `index` under the cache's lock
    /// (`xa_lock(&mapping->i_pages)`); returns what it was.
    pub fn update_slot(&self, index: u64, change: impl FnOnce(Slot) -> Slot) -> Slot {
        let mut pages = self.pages.lock();
        let raw = &mut pages[index as usize];
        let old = Slot::decode(*raw);
        *raw = change(old).encode();
        old
    }

    /// The byte that the file's device holds for page `index`.
    pub fn store(&self, index: u64) -> &AtomicU8 {
        &self.store[index as usize]
    }

    /// Whether the LRU counts its pages as file memory.
    pub fn is_file_lru(&self) -> bool {
        self.kind == Kind::File
    }

    pub(crate) fn link(&self, mm: &Arc<Mm>, vma: &Vma) {
        self.i_mmap.write().push((Arc::downgrade(mm), vma.area));
    }

    pub(crate) fn unlink(&self, mm: &Mm, start: u64) {
        self.i_mmap
            .write()
            .retain(|(m, vma)| vma.start != start || !std::ptr::eq(m.as_ptr(), mm));
    }

    pub(crate) fn mapped(&self) -> RwLockReadGuard<'_, Vec<Mapped>> {
        self.i_mmap.read()
    }

    pub(crate) fn try_mapped(&self) -> Option<RwLockReadGuard<'_, Vec<Mapped>>> {
        self.i_mmap.try_read()
    }

    /// Call `visit(mm, vma, address)` for every place that page `index` is
    /// mapped at, until it returns false (`rmap_walk()`).
    pub fn rmap_walk(&self, index: u64, mut visit: impl FnMut(&Arc<Mm>, &Area, u64) -> bool) {
        for (mm, vma) in self.i_mmap.read().iter() {
            if let (Some(mm), Some(address)) = (mm.upgrade(), vma.address_of(index))
                && !visit(&mm, vma, address)
            {
                return;
            }
        }
    }
}

/// Every address space of a host, by number.
///
/// Files and shmem stay until they are removed, as inodes do, for their pages
/// are cached whether or not something maps them. An anonymous one goes with
/// its last VMA.
#[derive(Default)]
pub struct AddressSpaces {
    list: RwSem<Vec<Entry>>,
    /// How many writes to files fail from now on.
    failing_writes: AtomicU32,
}

enum Entry {
    Anon(Weak<AddressSpace>),
    Inode(Arc<AddressSpace>),
    Free,
}

impl Entry {
    fn get(&self) -> Option<Arc<AddressSpace>> {
        match self {
            Entry::Anon(space) => space.upgrade(),
            Entry::Inode(space) => Some(Arc::clone(space)),
            Entry::Free => None,
        }
    }

    fn is_free(&self) -> bool {
        match self {
            Entry::Anon(space) => space.strong_count() == 0,
            Entry::Inode(_) => false,
            Entry::Free => true,
        }
    }
}

impl AddressSpaces {
    /// Let the next `n` pages written back to files fail with an input/output
    /// error.
    pub fn fail_writes(&self, n: u32) {
        self.failing_writes.store(n, Ordering::Relaxed);
    }

    /// Whether a write fails now.
    pub(crate) fn write_fails(&self) -> bool {
        // Read first: no write is to pay for a fault that nobody injects.
        self.failing_writes.load(Ordering::Relaxed) != 0
            && self
                .failing_writes
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1))
                .is_ok()
    }

    /// A new one of `nr_pages` pages (0 for anonymous memory).
    pub fn create(&self, kind: Kind, nr_pages: u64) -> Arc<AddressSpace> {
        let mut list = self.list.write();
        // A number whose address space is gone is named by no folio that is
        // mapped: the last VMA held it.
        let at = list.iter().position(Entry::is_free).unwrap_or(list.len());
        let space = Arc::new(AddressSpace::new(at as u32 + 1, kind, nr_pages as usize));
        let entry = match kind {
            Kind::Anon => Entry::Anon(Arc::downgrade(&space)),
            Kind::Shmem | Kind::File => Entry::Inode(Arc::clone(&space)),
        };
        match list.get_mut(at) {
            Some(free) => *free = entry,
            None => list.push(entry),
        }
        space
    }

    /// Forget one whose pages are gone.
    pub(crate) fn remove(&self, space: &AddressSpace) {
        let mut list = self.list.write();
        if let Some(entry) = list.get_mut(space.id as usize - 1) {
            *entry = Entry::Free;
        }
    }

    /// Every file and shmem.
    pub fn all(&self) -> Vec<Arc<AddressSpace>> {
        self.list
            .read()
            .iter()
            .filter_map(|entry| match entry {
                Entry::Inode(space) => Some(Arc::clone(space)),
                Entry::Anon(_) | Entry::Free => None,
            })
            .collect()
    }

    /// The one that a folio's mapping field names.
    pub fn get(&self, id: u32) -> Option<Arc<AddressSpace>> {
        let list = self.list.read();
        list.get((id as usize).checked_sub(1)?)?.get()
    }
}
