//! An address space: mapping, faulting, touching and unmapping memory.

use super::address_space::{AddressSpace, Kind, Slot};
use super::folio::{
    ACTIVE, ANON, DIRTY as FOLIO_DIRTY, FolioWord, HUGETLB, LRU, Pfn, SWAPBACKED, SWAPCACHE, TAIL,
};
use super::memcg::Memcg;
use super::memory::{PAGE_SHIFT, PAGE_SIZE, PMD_ORDER, PhysMem};
use super::notifier::NotifierList;
use super::pagetable::{
    ACCESSED, DIRTY, LEVELS, PMD, PTE, PUD, PtDesc, Pte, RW, SPECIAL, TASK_SIZE, level_index,
    level_size,
};
use super::vma::{Area, VmFlags, Vma, Vmas};
use crate::cpu::Cpu;
use crate::error::{Errno, Error, Result};
use crate::host::Host;
use crate::lru_gen;
use crate::sync::CachePadded;
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::lock::{RwSem, SpinGuard};
use crate::table::{Arena, TABLE_ENTRIES, TableId};
use crate::trace::Counter;
use std::sync::Arc;

/// Where `mmap` without an address begins to look.
const MMAP_BASE: u64 = if cfg!(loom) { 0 } else { 1 << 32 };

/// An address space (`struct mm_struct`).
pub struct Mm {
    /// Its number on the host.
    pub id: u32,
    /// The memory cgroup that its faults are charged to.
    pub memcg: Arc<Memcg>,
    /// Guards the VMAs; walkers hold it for read, and only try. On a line of
    /// its own: each fault writes it, and what is beside it is read by the
    /// aging walk once a page.
    pub mmap_lock: CachePadded<RwSem<Vmas>>,
    /// Who else maps this memory.
    pub notifiers: NotifierList,
    /// The page-table pages.
    pub tables: Arena<PtDesc>,
    /// The root table.
    pub pgd: TableId,
    /// One bit a node: set when the mm runs, cleared when its aging walk of
    /// that node begins (`mm->lru_gen.bitmap`).
    pub ran: AtomicU64,
}

/// What [`Mm::gup`] found behind an address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct UserPage {
    /// The frame of the base page at the address.
    pub pfn: Pfn,
    /// Level of the primary mapping: 1, 2 or 3 (`host_pfn_mapping_level()`).
    pub level: u32,
    /// Whether the primary mapping is writable.
    pub writable: bool,
}

/// A place in the page tables.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// The table.
    pub table: TableId,
    /// The table's level.
    pub level: u32,
    /// Index in it.
    pub index: usize,
}

impl Mm {
    pub(crate) fn new(id: u32, memcg: Arc<Memcg>, notifiers: NotifierList) -> Self {
        let tables: Arena<PtDesc> = Arena::new();
        let pgd = tables.alloc().expect("a new arena has room");
        Mm {
            id,
            memcg,
            mmap_lock: CachePadded::new(RwSem::new(Vmas::default())),
            notifiers,
            tables,
            pgd,
            ran: AtomicU64::new(0),
        }
    }

    /// Note that a task of this mm ran (`lru_gen_use_mm()`).
    #[inline]
    pub fn note_ran(&self) {
        // A load first: the word is shared by all threads of the mm.
        if self.ran.load(Ordering::Relaxed) != u64::MAX {
            self.ran.store(u64::MAX, Ordering::Relaxed);
        }
    }

    /// Count an event of this mm, for its memory cgroup too
    /// (`count_memcg_event_mm()`).
    #[inline]
    pub(crate) fn count_event(&self, cpu: &Cpu, counter: Counter) {
        self.memcg.count(cpu, counter, 1);
    }

    /// The entry word at a place.
    #[inline]
    pub fn word(&self, at: Entry) -> &AtomicU64 {
        &self.tables.entries(at.table)[at.index]
    }

    /// The value of an entry.
    #[inline]
    pub fn read(&self, at: Entry) -> Pte {
        // Acquire: pairs with the release that published the table or folio.
        Pte(self.word(at).load(Ordering::Acquire))
    }

    /// The lowest entry on the way to `address`: a leaf, or where the tables
    /// end. The caller is in an RCU section or holds `mmap_lock`.
    #[inline]
    pub fn lookup(&self, address: u64) -> (Entry, Pte) {
        let mut table = self.pgd;
        let mut level = LEVELS;
        loop {
            let at = Entry {
                table,
                level,
                index: level_index(address, level),
            };
            let pte = self.read(at);
            if level == PTE || !pte.is_present() || pte.is_leaf(level) {
                return (at, pte);
            }
            table = pte.table_id();
            level -= 1;
        }
    }

    /// The place of `address` in a table of `level`, made if need be; `None`
    /// when a larger leaf is in the way.
    fn ensure(&self, address: u64, level: u32) -> Result<Option<Entry>> {
        let mut at = Entry {
            table: self.pgd,
            level: LEVELS,
            index: level_index(address, LEVELS),
        };
        while at.level > level {
            let mut pte = self.read(at);
            if pte.is_none() {
                let new = self
                    .tables
                    .alloc()
                    .ok_or_else(|| Error::new(Errno::ENOMEM, "out of primary page-table pages"))?;
                // Release: publishes the zeroed table; pairs with `read`.
                match self.word(at).compare_exchange(
                    0,
                    Pte::table(new).0,
                    Ordering::AcqRel,
                    Ordering::Acquire,
                ) {
                    Ok(_) => pte = Pte::table(new),
                    Err(now) => {
                        // Never published: no grace period needed.
                        self.tables.free(new);
                        pte = Pte(now);
                    }
                }
            }
            if pte.is_leaf(at.level) {
                return Ok(None);
            }
            let below = at.level - 1;
            at = Entry {
                table: pte.table_id(),
                level: below,
                index: level_index(address, below),
            };
        }
        Ok(Some(at))
    }

    /// Map pages `[pgoff, ..)` of `space` over `len` bytes at `address`, or
    /// anywhere.
    ///
    /// # Errors
    /// `EINVAL` for a misaligned or empty range, `EEXIST` for an overlap,
    /// `ENOMEM` when no gap is left.
    pub fn mmap(
        self: &Arc<Self>,
        address: Option<u64>,
        len: u64,
        space: &Arc<AddressSpace>,
        pgoff: u64,
        flags: VmFlags,
    ) -> Result<u64> {
        let unit = PAGE_SIZE << flags.hugetlb_order;
        if len == 0 || !len.is_multiple_of(unit) || address.is_some_and(|a| a % unit != 0) {
            return Err(Error::invalid(format!(
                "mmap of {len:#x} bytes at {address:#x?}: expected a multiple of {unit:#x}, not 0"
            )));
        }
        let mut vmas = self.mmap_lock.write();
        let start = match address {
            Some(start) => {
                let end = start.checked_add(len).filter(|&end| end <= TASK_SIZE);
                let end = end.ok_or_else(|| {
                    Error::invalid(format!(
                        "mmap of {len:#x} bytes at {start:#x} ends beyond {TASK_SIZE:#x}"
                    ))
                })?;
                if let Some(other) = vmas.overlapping(start, end).next() {
                    return Err(Error::new(
                        Errno::EEXIST,
                        format!(
                            "mmap of [{start:#x}, {end:#x}) overlaps [{:#x}, {:#x})",
                            other.start, other.end
                        ),
                    ));
                }
                start
            }
            // Aligned so that huge mappings of every size are possible.
            None => vmas
                .gap(
                    MMAP_BASE,
                    len,
                    level_size(PUD)
                        .min(len.next_power_of_two())
                        .max(level_size(PMD)),
                    TASK_SIZE,
                )
                .ok_or_else(|| Error::new(Errno::ENOMEM, format!("no gap of {len:#x} bytes")))?,
        };
        let area = Area {
            start,
            end: start + len,
            pgoff,
            flags,
        };
        let vma = Vma {
            area,
            mapping: Arc::clone(space),
        };
        space.link(self, &vma);
        vmas.insert(vma);
        Ok(start)
    }

    /// Change the properties of `[start, start + len)` (`mprotect()`,
    /// `madvise()`, `mlock()`), splitting VMAs as needed.
    ///
    /// # Errors
    /// `EINVAL` for a misaligned range, `ENOMEM` for one that is not mapped.
    pub fn change_flags(
        self: &Arc<Self>,
        start: u64,
        len: u64,
        change: impl Fn(&mut VmFlags),
    ) -> Result<()> {
        let end = self.check_range(start, len)?;
        let mut vmas = self.mmap_lock.write();
        self.split_at(&mut vmas, start);
        self.split_at(&mut vmas, end);
        let starts: Vec<u64> = vmas.overlapping(start, end).map(|v| v.start).collect();
        if starts.is_empty() {
            return Err(Error::new(
                Errno::ENOMEM,
                format!("[{start:#x}, {end:#x}) is not mapped"),
            ));
        }
        for at in starts {
            let Some(mut vma) = vmas.remove(at) else {
                continue;
            };
            change(&mut vma.area.flags);
            vma.mapping.unlink(self, at);
            vma.mapping.link(self, &vma);
            vmas.insert(vma);
        }
        Ok(())
    }

    fn check_range(&self, start: u64, len: u64) -> Result<u64> {
        let end = start.checked_add(len).filter(|&end| end <= TASK_SIZE);
        match end {
            Some(end)
                if len > 0 && start.is_multiple_of(PAGE_SIZE) && len.is_multiple_of(PAGE_SIZE) =>
            {
                Ok(end)
            }
            _ => Err(Error::invalid(format!(
                "range of {len:#x} bytes at {start:#x}: expected whole pages below {TASK_SIZE:#x}"
            ))),
        }
    }

    fn split_at(self: &Arc<Self>, vmas: &mut Vmas, at: u64) {
        if let Some((low, high)) = vmas.split(at) {
            low.mapping.unlink(self, low.start);
            low.mapping.link(self, &low);
            high.mapping.link(self, &high);
        }
    }

    /// Unmap `[start, start + len)`: secondary MMUs lose it first, then the
    /// page tables, then the pages themselves when nothing else maps them.
    ///
    /// # Errors
    /// `EINVAL` for a misaligned range, or one that cuts a hugetlb page.
    pub fn munmap(self: &Arc<Self>, cpu: &Cpu, start: u64, len: u64) -> Result<()> {
        let end = self.check_range(start, len)?;
        let mut vmas = self.mmap_lock.write();
        for vma in vmas.overlapping(start, end) {
            let unit = PAGE_SIZE << vma.flags.hugetlb_order;
            if start.max(vma.start) % unit != 0 || end.min(vma.end) % unit != 0 {
                return Err(Error::invalid(format!(
                    "munmap of [{start:#x}, {end:#x}) cuts a hugetlb page of {unit:#x} bytes"
                )));
            }
        }
        self.split_at(&mut vmas, start);
        self.split_at(&mut vmas, end);
        let gone: Vec<Vma> = vmas.overlapping(start, end).cloned().collect();
        for vma in gone {
            {
                let _told = self.notifiers.invalidate(cpu, vma.start, vma.end);
                self.zap_range(cpu, vma.start, vma.end)?;
            }
            vma.mapping.unlink(self, vma.start);
            vmas.remove(vma.start);
        }
        cpu.check_error()
    }

    /// Clear every entry of the range and drop what it mapped. The caller has
    /// told the notifiers and holds `mmap_lock` for write.
    fn zap_range(&self, cpu: &Cpu, start: u64, end: u64) -> Result<()> {
        let mut address = start;
        while address < end {
            let (at, pte) = self.lookup(address);
            let size = level_size(at.level);
            let next = (address & !(size - 1)) + size;
            if pte.is_leaf(at.level)
                && at.level > PTE
                && (!address.is_multiple_of(size) || next > end)
            {
                self.split_huge(cpu, at)?;
                continue;
            }
            if !pte.is_none() {
                let old = {
                    let _ptl = self.tables.meta(at.table).ptl.lock();
                    Pte(self.word(at).swap(0, Ordering::AcqRel))
                };
                self.drop_entry(cpu, old);
            }
            address = next;
        }
        Ok(())
    }

    /// Drop what a cleared leaf or swap entry referred to.
    fn drop_entry(&self, cpu: &Cpu, old: Pte) {
        let memory = &cpu.host().memory;
        if let Some(slot) = old.swap_slot() {
            cpu.host().swap.free(cpu, slot);
        } else if old.is_present() && !old.has(SPECIAL) {
            let head = memory.head(old.pfn());
            if old.has(DIRTY) {
                memory.word(head).set(FOLIO_DIRTY);
            }
            let left = memory.unmap(head);
            if !memory.word(head).get().has(HUGETLB) {
                release_if_unused(cpu, head);
            } else if left == 0 {
                cpu.host().free_folio(head);
            }
        }
    }

    /// Replace a huge leaf by a table of smaller ones that map the same pages
    /// (`__split_huge_pmd()`).
    pub(crate) fn split_huge(&self, cpu: &Cpu, at: Entry) -> Result<()> {
        let table = self
            .tables
            .alloc()
            .ok_or_else(|| Error::new(Errno::ENOMEM, "out of primary page-table pages"))?;
        let _ptl = self.tables.meta(at.table).ptl.lock();
        let pte = self.read(at);
        if !pte.is_leaf(at.level) {
            self.tables.free(table);
            return Ok(());
        }
        let below = at.level - 1;
        let bits = pte.0 & (RW | ACCESSED | DIRTY);
        let step = 1u32 << ((below - 1) * crate::table::TABLE_SHIFT);
        for (n, entry) in self.tables.entries(table).iter().enumerate() {
            let small = Pte::leaf(Pfn(pte.pfn().0 + n as u32 * step), below, bits);
            entry.store(small.0, Ordering::Relaxed);
        }
        let memory = &cpu.host().memory;
        // One mapping becomes one per entry of the new table.
        memory.map_more(memory.head(pte.pfn()), TABLE_ENTRIES as u32 - 1);
        // Release: publishes the entries just written; pairs with `read`.
        self.word(at).store(Pte::table(table).0, Ordering::Release);
        Ok(())
    }

    /// One access by a task of this mm, as its processor makes it: walks the
    /// tables, sets Accessed (and Dirty), faults where it must. `byte` is
    /// stored as the page's content when the access is a write.
    ///
    /// # Errors
    /// `EFAULT` outside every VMA or against its protection, `ENOMEM`.
    pub fn touch(
        self: &Arc<Self>,
        cpu: &Cpu,
        address: u64,
        write: bool,
        byte: Option<u8>,
    ) -> Result<()> {
        self.note_ran();
        let memory = &cpu.host().memory;
        loop {
            let hit = {
                let _rcu = cpu.rcu.lock();
                self.walk_as_hardware(memory, address, write, byte)
            };
            if hit {
                return Ok(());
            }
            self.fault(cpu, address, write)?;
        }
    }

    /// Set the bits that a processor's walk sets; false where it would fault.
    fn walk_as_hardware(
        &self,
        memory: &PhysMem,
        address: u64,
        write: bool,
        byte: Option<u8>,
    ) -> bool {
        let mut table = self.pgd;
        let mut level = LEVELS;
        loop {
            let at = Entry {
                table,
                level,
                index: level_index(address, level),
            };
            let pte = self.read(at);
            if !pte.is_present() {
                return false;
            }
            let leaf = pte.is_leaf(level);
            if leaf && write && !pte.has(RW) {
                return false;
            }
            let wanted = if leaf && write {
                ACCESSED | DIRTY
            } else {
                ACCESSED
            };
            // A processor sets the bits with a locked operation that fails if
            // the entry changed; then it walks again.
            let set = |pte: Pte| {
                pte.has(wanted)
                    || self
                        .word(at)
                        .compare_exchange(
                            pte.0,
                            pte.0 | wanted,
                            Ordering::AcqRel,
                            Ordering::Relaxed,
                        )
                        .is_ok()
            };
            if leaf {
                let Some(byte) = byte.filter(|_| write) else {
                    return set(pte);
                };
                // The store to the page must not outlive its mapping; where
                // hardware relies on TLB flushes, this takes the table's lock.
                let _ptl = self.tables.meta(table).ptl.lock();
                let now = self.read(at);
                if now.0 & !wanted != pte.0 & !wanted || !set(now) {
                    return false;
                }
                let offset = (address & (level_size(level) - 1)) >> PAGE_SHIFT;
                let page = Pfn(now.pfn().0 + offset as u32);
                memory.content(page).store(byte, Ordering::Relaxed);
                return true;
            }
            if !set(pte) {
                continue;
            }
            table = pte.table_id();
            level -= 1;
        }
    }

    /// Handle a fault at `address` (`handle_mm_fault()`).
    ///
    /// # Errors
    /// `EFAULT` outside every VMA or against its protection; `ENOMEM`.
    pub fn fault(self: &Arc<Self>, cpu: &Cpu, address: u64, write: bool) -> Result<()> {
        let vmas = self.mmap_lock.read();
        let vma = vmas.find(address).filter(|vma| {
            let barred = write && vma.flags.read_only;
            !(vma.flags.inaccessible || vma.flags.special || barred)
        });
        let Some(vma) = vma else {
            let kind = if write { "write" } else { "read" };
            return Err(Error::new(
                Errno::EFAULT,
                format!(
                    "{kind} at {address:#x}: no mapping of mm {} allows it",
                    self.id
                ),
            ));
        };
        self.count_event(cpu, Counter::PgFault);
        if vma.flags.hugetlb_order != 0 {
            return self.fault_huge(cpu, vma, address, vma.flags.hugetlb_order, true);
        }
        if vma.flags.thp && vma.mapping.kind == Kind::Anon && self.fits_huge(vma, address) {
            let (at, pte) = self.lookup(address);
            if at.level >= PMD && pte.is_none() {
                match self.fault_huge(cpu, vma, address, PMD_ORDER, false) {
                    // No huge page to be had: fall back to a base page.
                    Err(e) if e.errno() == Errno::ENOMEM => {}
                    done => return done,
                }
            }
        }
        let Some(at) = self.ensure(address, PTE)? else {
            // A huge leaf: present, so the fault was for its permission.
            let (at, _) = self.lookup(address);
            return self.make_writable(cpu, at, write);
        };
        let pte = self.read(at);
        if pte.is_present() {
            if write && pte.has(SPECIAL) {
                return self.fault_anon_write(cpu, vma, address, at);
            }
            return self.make_writable(cpu, at, write);
        }
        if let Some(slot) = pte.swap_slot() {
            return self.fault_swap(cpu, vma, address, at, slot, write);
        }
        match vma.mapping.kind {
            Kind::Anon if write => self.fault_anon_write(cpu, vma, address, at),
            Kind::Anon => self.fault_anon_read(at),
            Kind::File | Kind::Shmem => self.fault_cached(cpu, vma, address, at, write),
        }
    }

    fn fits_huge(&self, vma: &Vma, address: u64) -> bool {
        let start = address & !(level_size(PMD) - 1);
        start >= vma.start && start + level_size(PMD) <= vma.end
    }

    /// A present entry that did not allow the access: another thread has
    /// fixed it, or it only lacks the permission that its VMA gives.
    fn make_writable(&self, cpu: &Cpu, at: Entry, write: bool) -> Result<()> {
        let _ptl = self.tables.meta(at.table).ptl.lock();
        let pte = self.read(at);
        if write && pte.is_leaf(at.level) && !pte.has(RW) && !pte.has(SPECIAL) {
            // Dirty before it can be written, as `page_mkwrite()` does.
            let memory = &cpu.host().memory;
            memory.word(memory.head(pte.pfn())).set(FOLIO_DIRTY);
            self.word(at).fetch_or(RW, Ordering::AcqRel);
        }
        Ok(())
    }

    /// Map the zero page (`do_anonymous_page()`, read).
    fn fault_anon_read(&self, at: Entry) -> Result<()> {
        let _ptl = self.tables.meta(at.table).ptl.lock();
        if self.read(at).is_none() {
            let zero = Pte::leaf(PhysMem::ZERO_PAGE, PTE, SPECIAL | ACCESSED);
            // Release: as for every entry that is published.
            self.word(at).store(zero.0, Ordering::Release);
        }
        Ok(())
    }

    /// Map a page of its own (`do_anonymous_page()`, write; `wp_page_copy()`
    /// when the zero page was there).
    fn fault_anon_write(&self, cpu: &Cpu, vma: &Vma, address: u64, at: Entry) -> Result<()> {
        let pfn = self.new_folio(cpu, vma, 0, ANON | SWAPBACKED)?;
        let page = address & !(PAGE_SIZE - 1);
        let was_zero = self.read(at).has(SPECIAL);
        let _told = was_zero.then(|| self.notifiers.invalidate(cpu, page, page + PAGE_SIZE));
        let ptl = self.tables.meta(at.table).ptl.lock();
        let now = self.read(at);
        let expected = if was_zero {
            now.is_present() && now.has(SPECIAL)
        } else {
            now.is_none()
        };
        if !expected {
            drop(ptl);
            self.discard_new(cpu, pfn);
            return Ok(());
        }
        Self::attach(&cpu.host().memory, vma, address, pfn);
        lru_gen::add_folio(cpu, pfn);
        let pte = Pte::leaf(pfn, PTE, RW | DIRTY | ACCESSED);
        // Release: publishes the folio's fields; pairs with `read`.
        self.word(at).store(pte.0, Ordering::Release);
        Ok(())
    }

    /// Map a huge page: transparent, or of hugetlb.
    fn fault_huge(
        &self,
        cpu: &Cpu,
        vma: &Vma,
        address: u64,
        order: u32,
        hugetlb: bool,
    ) -> Result<()> {
        let level = order / PMD_ORDER + 1;
        let start = address & !(level_size(level) - 1);
        let Some(at) = self.ensure(address, level)? else {
            return Ok(());
        };
        let kind = if hugetlb { HUGETLB } else { ANON | SWAPBACKED };
        let pfn = self.new_folio(cpu, vma, order, kind)?;
        let ptl = self.tables.meta(at.table).ptl.lock();
        if !self.read(at).is_none() {
            drop(ptl);
            self.discard_new(cpu, pfn);
            return Ok(());
        }
        Self::attach(&cpu.host().memory, vma, start, pfn);
        if !hugetlb {
            lru_gen::add_folio(cpu, pfn);
        }
        let pte = Pte::leaf(pfn, level, RW | DIRTY | ACCESSED);
        // Release: publishes the folio's fields; pairs with `read`.
        self.word(at).store(pte.0, Ordering::Release);
        Ok(())
    }

    /// Map a page of the page cache, read in if need be (`do_fault()`).
    fn fault_cached(
        &self,
        cpu: &Cpu,
        vma: &Vma,
        address: u64,
        at: Entry,
        write: bool,
    ) -> Result<()> {
        let index = vma.page_index(address);
        if index >= vma.mapping.nr_pages() {
            return Err(Error::new(
                Errno::EFAULT,
                format!("access at {address:#x}: page {index} is beyond the end of the file"),
            ));
        }
        let active = vma.has_recency() && !cpu.is_reclaiming();
        let (pfn, major) = self.cached_page(cpu, &vma.mapping, index, active)?;
        if major {
            self.count_event(cpu, Counter::PgMajFault);
        }
        let memory = &cpu.host().memory;
        let _ptl = self.tables.meta(at.table).ptl.lock();
        if !self.read(at).is_none() {
            return Ok(());
        }
        // Under the cache's lock, which reclaim takes to remove the page if
        // nothing maps it.
        let mut cached = false;
        vma.mapping.update_slot(index, |slot| {
            if slot == Slot::Page(pfn) {
                memory.map(pfn);
                cached = true;
            }
            slot
        });
        if !cached {
            return Ok(());
        }
        let bits = if write {
            // As `page_mkwrite()`: a page that can be written is dirty.
            memory.word(pfn).set(FOLIO_DIRTY);
            RW | DIRTY | ACCESSED
        } else {
            ACCESSED
        };
        // Release: publishes the folio's fields; pairs with `read`.
        self.word(at)
            .store(Pte::leaf(pfn, PTE, bits).0, Ordering::Release);
        Ok(())
    }

    /// The frame of page `index` of a cached address space, and whether it had
    /// to be read in (`filemap_fault()`, `shmem_fault()`).
    fn cached_page(
        &self,
        cpu: &Cpu,
        space: &Arc<AddressSpace>,
        index: u64,
        active: bool,
    ) -> Result<(Pfn, bool)> {
        super::filemap::get(cpu, &self.memcg, space, index, active)
    }

    /// Bring a swapped page back (`do_swap_page()`).
    fn fault_swap(
        self: &Arc<Self>,
        cpu: &Cpu,
        vma: &Vma,
        address: u64,
        at: Entry,
        slot: u32,
        write: bool,
    ) -> Result<()> {
        super::swap::fault(self, cpu, vma, address, at, slot, write)
    }

    /// A charged folio for a fault in `vma`, on no list yet. It asks for the
    /// youngest generation where accesses tell something (`lru_gen_in_fault()`).
    pub(crate) fn new_folio(&self, cpu: &Cpu, vma: &Vma, order: u32, flags: u64) -> Result<Pfn> {
        let active = if vma.has_recency() && !cpu.is_reclaiming() {
            ACTIVE
        } else {
            0
        };
        cpu.host()
            .alloc_folio(cpu, &self.memcg, order, flags | active)
    }

    /// Give back a folio that lost a race and was never published.
    pub(crate) fn discard_new(&self, cpu: &Cpu, pfn: Pfn) {
        cpu.host().free_folio(pfn);
    }

    /// Say what a folio of [`new_folio`](Self::new_folio) is: page of which
    /// address space, and that the caller is about to map it.
    pub(crate) fn attach(memory: &PhysMem, vma: &Vma, address: u64, pfn: Pfn) {
        let index = vma.page_index(address);
        memory.mapping(pfn).store(vma.mapping.id, Ordering::Relaxed);
        memory.pgoff(pfn).store(index as u32, Ordering::Relaxed);
        memory.map_new(pfn);
    }

    /// The leaf that maps `address`, with its table's lock. It stands for the
    /// reference that the kernel takes and checks: the folio cannot be freed
    /// while its entry is seen present under it. Where nothing is mapped there
    /// is nothing to hold on to, and no need to wait for a walker. The caller
    /// is in an RCU section.
    #[inline]
    fn lock_leaf(&self, address: u64) -> Option<(Entry, Pte, SpinGuard<'_, ()>)> {
        let (at, seen) = self.lookup(address);
        if !seen.is_leaf(at.level) {
            return None;
        }
        let ptl = self.tables.meta(at.table).ptl.lock();
        let pte = self.read(at);
        pte.is_leaf(at.level).then_some((at, pte, ptl))
    }

    /// The page at `address` without faulting (`get_user_pages_fast_only()`);
    /// with `write`, only through a writable mapping.
    pub fn gup_fast(&self, cpu: &Cpu, address: u64, write: bool) -> Option<UserPage> {
        let _rcu = cpu.rcu.lock();
        let (at, pte, _ptl) = self.lock_leaf(address)?;
        if pte.has(SPECIAL) || (write && !pte.has(RW)) {
            return None;
        }
        let memory = &cpu.host().memory;
        memory
            .word(memory.head(pte.pfn()))
            .set(super::folio::REFERENCED);
        Some(Self::user_page(at, pte, address))
    }

    /// The page at `address`, faulted in if need be
    /// (`get_user_pages_unlocked()` with `FOLL_TOUCH`).
    ///
    /// # Errors
    /// As [`Mm::fault`].
    pub fn gup(self: &Arc<Self>, cpu: &Cpu, address: u64, write: bool) -> Result<UserPage> {
        self.note_ran();
        loop {
            {
                let _rcu = cpu.rcu.lock();
                if let Some((at, pte, _ptl)) = self.lock_leaf(address)
                    && (!write || pte.has(RW))
                {
                    if !pte.has(SPECIAL) {
                        let memory = &cpu.host().memory;
                        let head = memory.head(pte.pfn());
                        if write && !pte.has(DIRTY) {
                            memory.word(head).set(FOLIO_DIRTY);
                        }
                        lru_gen::mark_accessed(memory, head);
                    }
                    return Ok(Self::user_page(at, pte, address));
                }
            }
            self.fault(cpu, address, write)?;
        }
    }

    fn user_page(at: Entry, pte: Pte, address: u64) -> UserPage {
        let offset = (address & (level_size(at.level) - 1)) >> PAGE_SHIFT;
        UserPage {
            pfn: Pfn(pte.pfn().0 + offset as u32),
            level: at.level,
            writable: pte.has(RW),
        }
    }

    /// Level of the leaf that maps `address`, 1 when nothing does
    /// (`host_pfn_mapping_level()`).
    pub fn mapping_level(&self, cpu: &Cpu, address: u64) -> u32 {
        let _rcu = cpu.rcu.lock();
        let (at, pte) = self.lookup(address);
        if pte.is_leaf(at.level) { at.level } else { PTE }
    }

    /// Call `visit(address, entry)` for every present leaf of the range; returns
    /// where the last leaf or hole ends, at `end` or beyond. Not locked: for
    /// inspection and tests.
    pub fn for_each_leaf(
        &self,
        start: u64,
        end: u64,
        mut visit: impl FnMut(u64, Entry, Pte),
    ) -> u64 {
        let mut address = start;
        while address < end {
            let (at, pte) = self.lookup(address);
            if pte.is_leaf(at.level) {
                visit(address, at, pte);
            }
            let size = level_size(at.level);
            address = (address & !(size - 1)) + size;
        }
        address
    }

    /// Unmap everything and end every subscription (`exit_mmap()`).
    pub fn exit(self: &Arc<Self>, cpu: &Cpu) {
        self.release_notifiers(cpu);
        let all: Vec<(u64, u64)> = self
            .mmap_lock
            .read()
            .iter()
            .map(|vma| (vma.start, vma.end - vma.start))
            .collect();
        for (start, len) in all {
            self.munmap(cpu, start, len)
                .expect("unmapping whole VMAs cannot fail without notifiers");
        }
    }
}

/// Free a folio that nothing maps and that no cache holds, if this thread can
/// take it off its list.
///
/// The LRU flag decides who frees: whoever clears it owns the folio. A thread
/// that has the folio isolated finds it unused when it puts it back. Either
/// that thread sees the map count this one lowered, or this one sees the flag
/// that thread set: both exchange the folio's word, this one after it has
/// lowered the count, that one before it looks.
///
/// Not for hugetlb pages, which are on no list. `head` may be stale: the caller
/// may hold nothing that keeps the folio. What is decided here is true of
/// whatever folio is there now.
pub fn release_if_unused(cpu: &Cpu, head: Pfn) {
    let host = cpu.host();
    let memory = &host.memory;
    loop {
        // Pairs with itself in the thread that drops the other reference, or
        // puts the folio back: the later of the two sees what the earlier did
        // before it, and not, say, the names that its swap slot had while it
        // was another folio's.
        crate::sync::atomic::fence(Ordering::SeqCst);
        if !is_unused(host, head) {
            return;
        }
        if !memory.word(head).clear(LRU).has(LRU) {
            return;
        }
        // Again, as the owner: reclaim may have unmapped the folio and put it
        // back, still named by its swap slot, between two of the reads above.
        if is_unused(host, head) {
            lru_gen::del_folio(cpu, head);
            super::swap::forget(cpu, head);
            host.free_folio(head);
            return;
        }
        memory.word(head).set(LRU);
    }
}

/// Whether nothing maps a folio and nothing could: no page-cache entry, no name
/// of its swap slot.
fn is_unused(host: &Host, head: Pfn) -> bool {
    let memory = &host.memory;
    let word = memory.word(head).get();
    if word.any(TAIL | HUGETLB) {
        return false;
    }
    // The slot's names before the map count: a fault maps the folio before it
    // drops the name, so that not both are seen gone.
    if word.has(SWAPCACHE) {
        if host.swap.is_named(memory, head) {
            return false;
        }
    } else if !word.has(ANON) && memory.mapping(head).load(Ordering::Acquire) != 0 {
        return false;
    }
    memory.mapcount(head) == 0
}
