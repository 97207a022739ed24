//! The TDP MMU: two-dimensional paging (`arch/x86/kvm/mmu/tdp_mmu.c`).
//!
//! Who writes an SPTE of this MMU, and how:
//!
//! | writer | holds | how |
//! |---|---|---|
//! | fault: link a table, split or set a leaf | `mmu_lock` read, RCU | compare-and-exchange |
//! | fast page fault: W back, R and X restored | RCU | compare-and-exchange |
//! | vCPU walk: accessed, dirty | guest mode | compare-and-exchange, if clear |
//! | aging | RCU (or `mmu_lock` write: `baseline`) | `fetch_and`, or one compare-and-exchange |
//! | zap of leaves, dirty-log harvest | `mmu_lock` write | exchange, `fetch_and` |
//! | zap of invalid roots, write protection | `mmu_lock` read, RCU | compare-and-exchange, exchange with FROZEN |
//!
//! A table that is unlinked is freed after every vCPU has flushed (so that no
//! page walk is inside) and after an RCU grace period (so that no ager is).

use super::fault::{self, LiveFault, Outcome};
use super::spte::{
    self, ACC_ALL, ACC_WRITE_MASK, LEVEL_2M, LEVEL_4K, Leaf, SpteFormat, WRITABLE, gfn_index,
    is_frozen, is_last, is_present, is_present_leaf, is_writable, pages_per, round_gfn,
};
use super::walk::{lookup, walk_as_hardware};
use super::{GuestMmu, Walk};
use crate::access::AccessKind;
use crate::cpu::Cpu;
use crate::error::{Errno, Error, Result};
use crate::kvm::memslot::{GfnRange, Memslot};
use crate::kvm::protocol::TdpAging;
use crate::kvm::vcpu::Vcpu;
use crate::kvm::vm::Vm;
use crate::mm::{PageMask, Pfn};
use crate::mutant::{self, Mutant};
use crate::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use crate::sync::lock::SpinLock;
use crate::sync::rcu::{Guard, RcuCell};
use crate::sync::spin::Backoff;
use crate::sync::thread;
use crate::table::{Arena, POISON, TABLE_SHIFT, TableId, prefetch};
use crate::trace::{Counter, Event};
use std::sync::Arc;

/// What stands beside a table (`struct kvm_mmu_page`). Written before the table
/// is linked, and by whoever took it back; root fields by the root's holders.
#[derive(Default)]
pub struct TdpPage {
    gfn: AtomicU64,
    level: AtomicU32,
    as_id: AtomicU32,
    /// References to a root (`tdp_mmu_root_count`).
    root_count: AtomicU32,
    /// The root must not be used by vCPUs any more (`role.invalid`).
    invalid: AtomicBool,
    /// The TDP MMU's own reference to an invalid root is still to be put
    /// (`tdp_mmu_scheduled_root_to_zap`).
    to_zap: AtomicBool,
}

impl TdpPage {
    fn init(&self, gfn: u64, level: u32, as_id: u32) {
        // Relaxed: published by whoever links the table.
        self.gfn.store(gfn, Ordering::Relaxed);
        self.level.store(level, Ordering::Relaxed);
        self.as_id.store(as_id, Ordering::Relaxed);
        self.root_count.store(0, Ordering::Relaxed);
        self.invalid.store(false, Ordering::Relaxed);
        self.to_zap.store(false, Ordering::Relaxed);
    }

    fn level(&self) -> u32 {
        self.level.load(Ordering::Relaxed)
    }

    fn as_id(&self) -> u32 {
        self.as_id.load(Ordering::Relaxed)
    }

    #[inline]
    fn is_invalid(&self) -> bool {
        // Acquire: pairs with the release in `invalidate_all_roots`.
        self.invalid.load(Ordering::Acquire)
    }
}

/// A root, for inspection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Root {
    /// Its table.
    pub table: TableId,
    /// Its address space.
    pub as_id: u32,
    /// Its level, 4 or 5.
    pub level: u32,
    /// Whether it was invalidated.
    pub invalid: bool,
    /// Who refers to it: the TDP MMU until it is invalidated, and vCPUs.
    pub references: u32,
}

/// Tables unlinked by one operation, to be freed together.
#[derive(Default)]
struct Gather(Vec<TableId>);

/// Entries in a cache line.
const LINE: usize = 8;

/// The TDP MMU of one VM.
pub struct TdpMmu {
    /// Its tables.
    pub tables: Arc<Arena<TdpPage>>,
    /// Every root, valid or not (`tdp_mmu_roots`).
    roots: RcuCell<Vec<TableId>>,
    /// Guards changes of `roots` (`tdp_mmu_pages_lock`).
    pages_lock: SpinLock<()>,
}

impl TdpMmu {
    pub(crate) fn new(cpu: &Cpu) -> Self {
        TdpMmu {
            tables: Arc::new(Arena::new()),
            roots: RcuCell::new(&cpu.host().rcu, Vec::new()),
            pages_lock: SpinLock::new(()),
        }
    }

    // ---- roots ----

    /// Every root now.
    pub fn roots(&self, cpu: &Cpu) -> Vec<Root> {
        let guard = cpu.rcu.lock();
        let roots = self.roots.load(&guard).iter();
        roots
            .map(|&table| {
                let page = self.tables.meta(table);
                Root {
                    table,
                    as_id: page.as_id(),
                    level: page.level(),
                    invalid: page.is_invalid(),
                    references: page.root_count.load(Ordering::Relaxed),
                }
            })
            .collect()
    }

    /// Whether vCPUs must leave a root.
    #[inline]
    pub fn is_root_invalid(&self, root: TableId) -> bool {
        self.tables.meta(root).is_invalid()
    }

    /// One more reference, unless the last one is gone
    /// (`kvm_tdp_mmu_get_root()`).
    fn get_root(&self, root: TableId) -> bool {
        let count = &self.tables.meta(root).root_count;
        let mut seen = count.load(Ordering::Relaxed);
        while seen != 0 {
            match count.compare_exchange(seen, seen + 1, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => return true,
                Err(now) => seen = now,
            }
        }
        false
    }

    /// A reference to a valid root of the address space with that many levels,
    /// made if there is none (`kvm_tdp_mmu_alloc_root()`).
    ///
    /// # Errors
    /// `ENOMEM` when the arena is full, `EIO` when the VM is gone.
    pub fn alloc_root(&self, vm: &Vm, cpu: &Cpu, as_id: u32, level: u32) -> Result<TableId> {
        let _shared = cpu.read_lock(&vm.mmu_lock);
        // Under `mmu_lock`, which `Vm::destroy` holds while it invalidates.
        if vm.is_dead() {
            return Err(Error::new(Errno::EIO, "the VM was destroyed"));
        }
        let guard = cpu.rcu.lock();
        let usable = |root: TableId| {
            let page = self.tables.meta(root);
            page.as_id() == as_id && page.level() == level && !page.is_invalid()
        };
        let find = || {
            let mut roots = self.roots.load(&guard).iter().copied();
            roots.find(|&root| usable(root) && self.get_root(root))
        };
        if let Some(root) = find() {
            return Ok(root);
        }
        let _pages = self.pages_lock.lock();
        if let Some(root) = find() {
            return Ok(root);
        }
        let root = self.alloc_table(cpu, 0, level, as_id)?;
        // One for the caller, one for the TDP MMU until the root is invalid.
        self.tables
            .meta(root)
            .root_count
            .store(2, Ordering::Relaxed);
        let mut next = self.roots.load(&guard).clone();
        next.push(root);
        self.roots.replace(next, &guard);
        Ok(root)
    }

    /// One reference less; the last one frees the root (`kvm_tdp_mmu_put_root()`).
    pub fn put_root(&self, cpu: &Cpu, root: TableId) {
        // AcqRel: who frees sees what all others did with the root.
        let before = self
            .tables
            .meta(root)
            .root_count
            .fetch_sub(1, Ordering::AcqRel);
        debug_assert!(before > 0, "root {root:?} was put once too often");
        let last = if mutant::active(Mutant::FreeByLoser) {
            self.tables.meta(root).root_count.load(Ordering::Relaxed) == 0
        } else {
            before == 1
        };
        if !last {
            return;
        }
        debug_assert!(self.is_root_invalid(root));
        {
            let _pages = self.pages_lock.lock();
            let guard = cpu.rcu.lock();
            let mut next = self.roots.load(&guard).clone();
            next.retain(|&other| other != root);
            self.roots.replace(next, &guard);
        }
        cpu.count(Counter::TablesFreed);
        self.free_deferred(cpu, vec![root]);
    }

    /// No vCPU may enter with a present root any more
    /// (`kvm_tdp_mmu_invalidate_all_roots()`). `mmu_lock` is held for write,
    /// and the caller makes vCPUs reload ([`Vm::flush_remote_tlbs`]).
    pub fn invalidate_all_roots(&self, vm: &Vm, cpu: &Cpu) {
        debug_assert!(vm.mmu_lock.is_write_locked());
        let guard = cpu.rcu.lock();
        for &root in self.roots.load(&guard) {
            let page = self.tables.meta(root);
            if !page.is_invalid() {
                page.to_zap.store(true, Ordering::Relaxed);
                // Release: pairs with the acquire in `is_invalid`.
                page.invalid.store(true, Ordering::Release);
            }
        }
    }

    /// Zap every root that was invalidated, and put the TDP MMU's own
    /// reference (`kvm_tdp_mmu_zap_invalidated_roots()`).
    pub fn zap_invalidated_roots(&self, vm: &Vm, cpu: &Cpu) {
        let roots: Vec<TableId> = {
            let guard = cpu.rcu.lock();
            self.roots.load(&guard).clone()
        };
        for root in roots {
            // Whoever clears the flag owns the reference, so the root stays
            // until it is put below. A root that another thread freed since
            // has a table of its own purpose here, whose flag is clear.
            if !self.tables.meta(root).to_zap.swap(false, Ordering::AcqRel) {
                continue;
            }
            {
                let _shared = cpu.read_lock(&vm.mmu_lock);
                self.zap_root(vm, cpu, root);
            }
            self.put_root(cpu, root);
        }
    }

    /// Unlink everything below a root (`tdp_mmu_zap_root()`). `mmu_lock` is held for read.
    fn zap_root(&self, vm: &Vm, cpu: &Cpu, root: TableId) {
        let mut gather = Gather::default();
        let guard = cpu.rcu.lock();
        let (level, as_id) = {
            let page = self.tables.meta(root);
            (page.level(), page.as_id())
        };
        for (i, word) in self.tables.entries(root).iter().enumerate() {
            let gfn = (i as u64) << spte::gfn_shift(level);
            let backoff = Backoff::new();
            loop {
                let old = word.load(Ordering::Acquire);
                if is_frozen(old) {
                    backoff.wait();
                    continue;
                }
                if !is_present(old) {
                    break;
                }
                let change = Change {
                    as_id,
                    gfn,
                    level,
                    shared: true,
                };
                if self.set_atomic(vm, cpu, &mut gather, word, old, 0, change) {
                    break;
                }
            }
        }
        drop(guard);
        self.finish(vm, cpu, gather, false);
    }

    // ---- tables ----

    fn alloc_table(&self, cpu: &Cpu, gfn: u64, level: u32, as_id: u32) -> Result<TableId> {
        let table = self
            .tables
            .alloc()
            .ok_or_else(|| Error::new(Errno::ENOMEM, "out of secondary page-table pages"))?;
        self.tables.meta(table).init(gfn, level, as_id);
        cpu.count(Counter::TablesAllocated);
        Ok(table)
    }

    /// Give back a table that was never linked.
    fn discard_table(&self, cpu: &Cpu, table: TableId) {
        cpu.count(Counter::TablesFreed);
        self.tables.free(table);
    }

    /// Free tables after a grace period (`tdp_mmu_free_sp_rcu_callback()`).
    fn free_deferred(&self, cpu: &Cpu, tables: Vec<TableId>) {
        let arena = Arc::clone(&self.tables);
        if mutant::active(Mutant::NoRcuDelay) {
            return tables.into_iter().for_each(|table| arena.free(table));
        }
        cpu.rcu.lock().defer(move || {
            for table in tables {
                debug_assert!(
                    (arena.entries(table).iter()).all(|e| !is_present(e.load(Ordering::Relaxed))),
                    "a mapping was put into {table:?}, which was unlinked"
                );
                arena.free(table);
            }
        });
    }

    /// Flush if tables were unlinked or the caller wants it, then hand the
    /// tables to RCU.
    fn finish(&self, vm: &Vm, cpu: &Cpu, gather: Gather, flush: bool) {
        if flush || !gather.0.is_empty() {
            // Before they are freed: a vCPU's walk may be inside.
            vm.flush_remote_tlbs(cpu);
        }
        if !gather.0.is_empty() {
            cpu.count_n(Counter::TablesFreed, gather.0.len() as u64);
            self.free_deferred(cpu, gather.0);
        }
    }

    // ---- changes ----

    /// What follows from a change of an SPTE (`handle_changed_spte()`): the
    /// trace event, accessed and dirty passed on, a subtree taken apart.
    fn handle_changed(
        &self,
        vm: &Vm,
        cpu: &Cpu,
        gather: &mut Gather,
        old: u64,
        new: u64,
        at: Change,
    ) {
        if old == new {
            return;
        }
        let format = vm.format();
        let Change {
            as_id, gfn, level, ..
        } = at;
        cpu.trace(
            Event::KvmTdpMmuSpteChanged,
            &[u64::from(as_id), gfn, u64::from(level), old, new],
        );
        let was_leaf = is_present_leaf(old, level);
        let stays_leaf = is_present_leaf(new, level);
        let pfn_changed = spte::pfn(old) != spte::pfn(new);
        debug_assert!(
            !(was_leaf && stays_leaf && pfn_changed),
            "a leaf of gfn {gfn:#x} was replaced by one of another frame: {old:#x} -> {new:#x}"
        );
        if was_leaf {
            let gone = !is_present(new) || pfn_changed;
            let passed_on = !mutant::active(Mutant::ZapDropsDirty);
            if format.is_dirty(old) && passed_on && (gone || !format.is_dirty(new)) {
                vm.set_pfn_dirty(cpu, spte::pfn(old));
            }
            if format.is_accessed(old) && (gone || !format.is_accessed(new)) {
                vm.set_pfn_accessed(cpu, spte::pfn(old));
            }
            if !is_present(new) {
                cpu.count(Counter::SptesZapped);
            }
        } else if is_present(old) && (stays_leaf || !is_present(new) || pfn_changed) {
            self.handle_removed(vm, cpu, gather, spte::table(old), at.shared);
        }
    }

    /// Take apart a table that was unlinked (`handle_removed_pt()`): freeze its
    /// entries one by one, so that no fault puts anything there and everything
    /// that hardware set is passed on; it is freed later.
    fn handle_removed(
        &self,
        vm: &Vm,
        cpu: &Cpu,
        gather: &mut Gather,
        table: TableId,
        shared: bool,
    ) {
        let (first, level, as_id) = {
            let page = self.tables.meta(table);
            let first = page.gfn.load(Ordering::Relaxed);
            (first, page.level(), page.as_id())
        };
        for (i, word) in self.tables.entries(table).iter().enumerate() {
            // AcqRel, below: everything that was done through the entry
            // happens before what is done with its frame.
            let old = if shared {
                // Others may be about to set the entry: freeze it whatever it
                // is. One that is frozen already is being set by another
                // thread, which will be quick.
                let backoff = Backoff::new();
                loop {
                    let old = word.swap(spte::frozen(), Ordering::AcqRel);
                    if !is_frozen(old) {
                        break old;
                    }
                    backoff.wait();
                }
            } else {
                // Nobody sets entries; hardware still sets bits in present
                // ones, and agers clear them: exchange, never store.
                if !is_present(word.load(Ordering::Relaxed)) {
                    continue;
                }
                word.swap(spte::frozen(), Ordering::AcqRel)
            };
            let at = Change {
                as_id,
                gfn: first + ((i as u64) << spte::gfn_shift(level)),
                level,
                shared,
            };
            if is_present(old) {
                self.handle_changed(vm, cpu, gather, old, spte::frozen(), at);
            }
        }
        gather.0.push(table);
    }

    /// Set an SPTE while others may set it too (`tdp_mmu_set_spte_atomic()`);
    /// false if it is no longer `old`.
    #[allow(clippy::too_many_arguments)]
    fn set_atomic(
        &self,
        vm: &Vm,
        cpu: &Cpu,
        gather: &mut Gather,
        word: &AtomicU64,
        old: u64,
        new: u64,
        at: Change,
    ) -> bool {
        debug_assert!(!is_frozen(old));
        cpu.count(Counter::SpteCas);
        // Release: publishes a table's contents; pairs with the acquire of
        // walks. Acquire: as in `handle_removed`.
        if mutant::active(Mutant::FaultByStore) && !is_present(old) {
            word.store(new, Ordering::Release);
        } else if word
            .compare_exchange(old, new, Ordering::AcqRel, Ordering::Relaxed)
            .is_err()
        {
            cpu.count(Counter::SpteCasFailed);
            return false;
        }
        self.handle_changed(vm, cpu, gather, old, new, at);
        true
    }

    // ---- the walk ----

    /// Levels of a root, and one past the last GFN it reaches.
    #[inline]
    fn reach(&self, root: TableId) -> (u32, u64) {
        let level = self.tables.meta(root).level();
        (level, 1 << (TABLE_SHIFT * level))
    }

    /// Call `visit(level, gfn, entries)` with every run of neighbouring entries
    /// of `[start, end)` that may hold leaves: the part of a lowest-level table
    /// that is in the range, or one huge leaf. Stops when it returns false.
    /// The caller is in an RCU section.
    #[inline]
    fn for_each_run<F>(&self, cpu: &Cpu, root: TableId, start: u64, end: u64, mut visit: F) -> bool
    where
        F: FnMut(u32, u64, &[AtomicU64]) -> bool,
    {
        self.for_each_run_ahead(cpu, root, start, end, |level, gfn, words, _| {
            visit(level, gfn, words)
        })
    }

    /// [`for_each_run`](Self::for_each_run) that also passes the table that
    /// `visit` gets two tables later, or nothing, so that it can fetch that as
    /// it goes: processors fetch ahead only within a page, and a page is a
    /// table (`tdp_root_for_each_leaf_pte()`).
    #[inline]
    fn for_each_run_ahead<F>(
        &self,
        cpu: &Cpu,
        root: TableId,
        start: u64,
        end: u64,
        mut visit: F,
    ) -> bool
    where
        F: FnMut(u32, u64, &[AtomicU64], &[AtomicU64]) -> bool,
    {
        let (mut level, limit) = self.reach(root);
        let end = end.min(limit);
        if start >= end {
            return true;
        }
        if end - start > 1 {
            return self.walk_table(cpu, root, level, start, end, &[], &mut visit);
        }
        // One page: straight down.
        let mut table = root;
        loop {
            let index = gfn_index(start, level);
            let word = &self.tables.entries(table)[index];
            if level == LEVEL_4K {
                return visit(level, start, std::slice::from_ref(word), &[]);
            }
            // Acquire: pairs with the release that linked the table.
            let spte = word.load(Ordering::Acquire);
            if !is_present(spte) {
                if spte == POISON {
                    cpu.count(Counter::PoisonReads);
                }
                return true;
            }
            if is_last(spte, level) {
                return visit(
                    level,
                    round_gfn(start, level),
                    std::slice::from_ref(word),
                    &[],
                );
            }
            table = spte::table(spte);
            level -= 1;
        }
    }

    #[allow(clippy::too_many_arguments)]
    fn walk_table<F>(
        &self,
        cpu: &Cpu,
        table: TableId,
        level: u32,
        start: u64,
        end: u64,
        ahead: &[AtomicU64],
        visit: &mut F,
    ) -> bool
    where
        F: FnMut(u32, u64, &[AtomicU64], &[AtomicU64]) -> bool,
    {
        let entries = self.tables.entries(table);
        let first = gfn_index(start, level);
        let last = gfn_index(end - 1, level);
        if level == LEVEL_4K {
            if entries[first].load(Ordering::Relaxed) == POISON {
                cpu.count(Counter::PoisonReads);
            }
            return visit(level, start, &entries[first..=last], ahead);
        }
        let mut gfn = start;
        for i in first..=last {
            // Acquire: pairs with the release that linked the table.
            let spte = entries[i].load(Ordering::Acquire);
            let next = (round_gfn(gfn, level) + pages_per(level)).min(end);
            if !is_present(spte) {
                if spte == POISON {
                    cpu.count(Counter::PoisonReads);
                }
            } else if is_last(spte, level) {
                let run = std::slice::from_ref(&entries[i]);
                if !visit(level, round_gfn(gfn, level), run, &[]) {
                    return false;
                }
            } else {
                let mut ahead: &[AtomicU64] = &[];
                if level == LEVEL_2M && i + 2 <= last {
                    // Acquire: pairs with the release that linked the table.
                    let later = entries[i + 2].load(Ordering::Acquire);
                    if is_present(later) && !is_last(later, level) {
                        ahead = self.tables.entries(spte::table(later));
                    }
                }
                let below = spte::table(spte);
                if !self.walk_table(cpu, below, level - 1, gfn, next, ahead, visit) {
                    return false;
                }
            }
            gfn = next;
        }
        true
    }

    /// The lowest entry on the way to `gfn`: its level and word. The caller is
    /// in an RCU section or in guest mode.
    #[inline]
    fn lookup(&self, root: TableId, gfn: u64) -> Option<(u32, &AtomicU64)> {
        let (level, limit) = self.reach(root);
        (gfn < limit).then(|| lookup(&self.tables, (root, level), gfn))
    }

    /// The entry at which a walk for `gfn` ends, in every root of the address
    /// space, valid or not.
    pub(super) fn for_each_root_leaf(
        &self,
        cpu: &Cpu,
        as_id: usize,
        gfn: u64,
        mut visit: impl FnMut(u32, &AtomicU64),
    ) {
        let guard = cpu.rcu.lock();
        for &root in self.roots.load(&guard) {
            if self.tables.meta(root).as_id() as usize == as_id
                && let Some((level, word)) = self.lookup(root, gfn)
            {
                visit(level, word);
            }
        }
    }

    /// The SPTE that maps `gfn` in some valid root, and its level: for
    /// inspection and tests.
    pub fn leaf(&self, cpu: &Cpu, as_id: u32, gfn: u64) -> Option<(u32, u64)> {
        let guard = cpu.rcu.lock();
        self.roots_of(&guard, as_id, false).find_map(|root| {
            let (level, word) = self.lookup(root, gfn)?;
            let spte = word.load(Ordering::Acquire);
            is_present_leaf(spte, level).then_some((level, spte))
        })
    }

    /// Call `visit(gfn, level, spte)` with every present leaf of `[start, end)`
    /// in valid roots: for inspection and tests.
    pub fn for_each_leaf(
        &self,
        cpu: &Cpu,
        as_id: u32,
        start: u64,
        end: u64,
        mut visit: impl FnMut(u64, u32, u64),
    ) {
        let guard = cpu.rcu.lock();
        for root in self.roots_of(&guard, as_id, false) {
            self.for_each_run(cpu, root, start, end, |level, first, words| {
                for (i, word) in words.iter().enumerate() {
                    let spte = word.load(Ordering::Relaxed);
                    if is_present_leaf(spte, level) {
                        visit(first + i as u64, level, spte);
                    }
                }
                true
            });
        }
    }

    /// Roots of an address space, in an RCU section; invalid ones too if asked.
    #[inline]
    fn roots_of<'g>(
        &'g self,
        guard: &'g Guard<'_>,
        as_id: u32,
        invalid_too: bool,
    ) -> impl Iterator<Item = TableId> + 'g {
        self.roots.load(guard).iter().copied().filter(move |&root| {
            let page = self.tables.meta(root);
            page.as_id() == as_id && (invalid_too || !page.is_invalid())
        })
    }

    // ---- aging ----

    /// Age the range (`kvm_tdp_mmu_age_gfn_range()`): whether anything was
    /// young. Locked and lockless differ in how an entry is written and in
    /// which roots are visited, by the VM's protocol.
    // Always inlined: an aging walk of the primary gets here once a page.
    #[inline(always)]
    pub fn age_gfn_range(&self, vm: &Vm, cpu: &Cpu, range: &GfnRange<'_>) -> bool {
        let locked = vm.protocol().tdp_aging == TdpAging::Locked;
        if range.end - range.start != 1 || (locked && range.lockless) {
            return self.age_gfn_range_slow(vm, cpu, range);
        }
        let as_id = range.slot.as_id as u32;
        let all_roots = vm.protocol().all_roots;
        let guard = cpu.rcu.lock();
        let mut young = false;
        for &root in self.roots.load(&guard) {
            let page = self.tables.meta(root);
            if page.as_id() == as_id && (all_roots || !page.is_invalid()) {
                let level = page.level();
                young |= self.age_page(vm, cpu, (root, level), as_id, range.start, locked);
            }
        }
        young
    }

    /// [`age_gfn_range`](Self::age_gfn_range) of more than one page, or where
    /// it has to take `mmu_lock`.
    #[inline(never)]
    fn age_gfn_range_slow(&self, vm: &Vm, cpu: &Cpu, range: &GfnRange<'_>) -> bool {
        let locked = vm.protocol().tdp_aging == TdpAging::Locked;
        let _exclusive = (locked && range.lockless).then(|| cpu.write_lock(&vm.mmu_lock));
        let as_id = range.slot.as_id as u32;
        let all_roots = vm.protocol().all_roots;
        let guard = cpu.rcu.lock();
        let mut young = false;
        for root in self.roots_of(&guard, as_id, all_roots) {
            let (start, end) = (range.start, range.end);
            self.for_each_run_ahead(cpu, root, start, end, |level, gfn, words, ahead| {
                young |= Self::age_run(vm, cpu, as_id, level, gfn, words, ahead, locked);
                true
            });
        }
        young
    }

    /// Age single pages of a range: those of `wanted`, in which the first of
    /// the range is page `first`. A huge leaf is aged for the first of its pages
    /// that is wanted, as it is where pages are aged one by one.
    pub fn age_gfns(
        &self,
        vm: &Vm,
        cpu: &Cpu,
        range: &GfnRange<'_>,
        wanted: &PageMask,
        first: usize,
        young: &mut PageMask,
    ) {
        let locked = vm.protocol().tdp_aging == TdpAging::Locked;
        let _exclusive = (locked && range.lockless).then(|| cpu.write_lock(&vm.mmu_lock));
        let as_id = range.slot.as_id as u32;
        let page = |gfn: u64| first + (gfn - range.start) as usize;
        let guard = cpu.rcu.lock();
        for root in self.roots_of(&guard, as_id, vm.protocol().all_roots) {
            self.for_each_run(cpu, root, range.start, range.end, |level, gfn, words| {
                if level == LEVEL_4K {
                    let at = (gfn, page(gfn));
                    Self::age_run_pages(vm, cpu, as_id, at, words, locked, wanted, young);
                    return true;
                }
                let end = range.end.min(gfn + pages_per(level));
                let mut pages = page(range.start.max(gfn))..page(end);
                if let Some(n) = pages.find(|&n| wanted.has(n))
                    && Self::age_run(vm, cpu, as_id, level, gfn, words, &[], locked)
                {
                    young.set(n);
                }
                true
            });
        }
    }

    /// Age the wanted entries of a run at the lowest level, whose first is GFN
    /// and page `at`.
    #[allow(clippy::too_many_arguments)]
    #[inline]
    fn age_run_pages(
        vm: &Vm,
        cpu: &Cpu,
        as_id: u32,
        at: (u64, usize),
        words: &[AtomicU64],
        locked: bool,
        wanted: &PageMask,
        young: &mut PageMask,
    ) {
        let format = vm.format();
        let (gfn, page) = at;
        let traced = cpu.is_traced(Event::KvmTdpMmuSpteChanged);
        let (lines, rest) = if locked || traced || !format.ad_bits {
            (&[][..], words)
        } else {
            words.as_chunks::<LINE>()
        };
        let mut aged = 0;
        for (line, page) in lines.iter().zip((page..).step_by(LINE)) {
            let wanted = wanted.byte(page);
            // A cache line is read before any of it is written, as in `age_run`.
            let seen: [u64; LINE] = std::array::from_fn(|i| line[i].load(Ordering::Relaxed));
            if wanted == 0 || seen.iter().fold(0, |all, seen| all | seen) & format.accessed == 0 {
                continue;
            }
            let found = Self::age_line(format, line, &seen, wanted);
            aged += u64::from(found.count_ones());
            young.add_byte(page, found);
        }
        cpu.count_n(Counter::SpteLoads, (lines.len() * LINE) as u64);
        cpu.count_n(Counter::SpteFetchAnd, aged);
        cpu.count_n(Counter::SptesAged, aged);
        let done = lines.len() * LINE;
        for (word, n) in rest.iter().zip(done..) {
            let run = std::slice::from_ref(word);
            let gfn = gfn + n as u64;
            if wanted.has(page + n)
                && Self::age_run(vm, cpu, as_id, LEVEL_4K, gfn, run, &[], locked)
            {
                young.set(page + n);
            }
        }
    }

    /// Age what maps one page, by one walk from the root
    /// (`kvm_tdp_mmu_age_gfn_range()`).
    #[inline(always)]
    fn age_page(
        &self,
        vm: &Vm,
        cpu: &Cpu,
        (root, level): (TableId, u32),
        as_id: u32,
        gfn: u64,
        locked: bool,
    ) -> bool {
        if gfn >> (TABLE_SHIFT * level) != 0 {
            return false;
        }
        let (level, word) = lookup(&self.tables, (root, level), gfn);
        // Relaxed: as in `SpteFormat::age`.
        let seen = word.load(Ordering::Relaxed);
        let format = vm.format();
        if !format.is_young_leaf(seen, level) {
            cpu.count(Counter::SpteLoads);
            if seen == POISON {
                cpu.count(Counter::PoisonReads);
            }
            format.leave(word, seen);
            return false;
        }
        cpu.count(Counter::SpteLoads);
        if !spte::ad_enabled(seen) || locked || cpu.is_traced(Event::KvmTdpMmuSpteChanged) {
            let at = (level, round_gfn(gfn, level));
            if !Self::age_young_entry(vm, cpu, as_id, at, word, seen, locked) {
                return true;
            }
        } else {
            // Nobody asks what it found, so this is one instruction instead of
            // a loop around an exchange.
            format.age_young(word, seen);
        }
        cpu.count(Counter::SpteFetchAnd);
        cpu.count(Counter::SptesAged);
        true
    }

    /// Age an entry of a level and GFN that was read as `seen`, which is young,
    /// and do what follows from it. True if a `fetch_and` aged it, which the
    /// caller counts.
    #[inline(always)]
    fn age_young_entry(
        vm: &Vm,
        cpu: &Cpu,
        as_id: u32,
        (level, gfn): (u32, u64),
        word: &AtomicU64,
        seen: u64,
        locked: bool,
    ) -> bool {
        let format = vm.format();
        let aged = if locked {
            format.age_young_locked(word, seen)
        } else {
            format.age_young(word, seen)
        };
        let fetch_and = aged.write == spte::Write::FetchAnd;
        if !fetch_and || cpu.is_traced(Event::KvmTdpMmuSpteChanged) {
            Self::note_aged(vm, cpu, as_id, level, gfn, &aged);
        }
        fetch_and
    }

    /// Age a run of entries; `ahead` is fetched meanwhile
    /// (`kvm_tdp_mmu_age_gfn_range()`).
    #[allow(clippy::too_many_arguments)]
    fn age_run(
        vm: &Vm,
        cpu: &Cpu,
        as_id: u32,
        level: u32,
        gfn: u64,
        words: &[AtomicU64],
        ahead: &[AtomicU64],
        locked: bool,
    ) -> bool {
        let format = vm.format();
        cpu.count_n(Counter::SpteLoads, words.len() as u64);
        // One test that no old or absent entry passes, so that the scan of old
        // ones costs a load, an and, and a branch.
        let maybe_young = if format.ad_bits {
            format.accessed
        } else {
            spte::ACC_TRACK_MASK
        };
        // Counted at the end: an atomic operation waits for the stores before it.
        let (mut young, mut fetch_and) = (0u64, 0u64);
        let traced = cpu.is_traced(Event::KvmTdpMmuSpteChanged);
        let (lines, rest) = if locked || traced || !format.ad_bits || level != LEVEL_4K {
            (&[][..], words)
        } else {
            words.as_chunks::<LINE>()
        };
        let mut ahead = ahead.iter().step_by(LINE);
        for line in lines {
            if let Some(later) = ahead.next() {
                prefetch(later);
            }
            // A cache line is read before any of it is written: the loads
            // behind an atomic operation wait for it. Relaxed: as in
            // `SpteFormat::age`.
            let seen: [u64; LINE] = std::array::from_fn(|i| line[i].load(Ordering::Relaxed));
            if seen.iter().fold(0, |all, seen| all | seen) & maybe_young == 0 {
                continue;
            }
            fetch_and += Self::age_line(format, line, &seen, u8::MAX).count_ones() as u64;
        }
        young += fetch_and;
        let first = gfn + (lines.len() * LINE) as u64;
        for (word, gfn) in rest.iter().zip(first..) {
            let seen = word.load(Ordering::Relaxed);
            if seen & maybe_young == 0 || !format.is_young_leaf(seen, level) {
                continue;
            }
            young += 1;
            let at = (level, gfn);
            let aged = Self::age_young_entry(vm, cpu, as_id, at, word, seen, locked);
            fetch_and += u64::from(aged);
        }
        cpu.count_n(Counter::SpteFetchAnd, fetch_and);
        cpu.count_n(Counter::SptesAged, fetch_and);
        young != 0
    }

    /// Age the entries of a cache line of the lowest level that are `wanted`,
    /// were read as `seen`, and have A/D bits, as all of such a VM have; which
    /// of them were young. That is worked out without a branch for each, which
    /// no processor could predict.
    #[inline(always)]
    fn age_line(
        format: &SpteFormat,
        line: &[AtomicU64; LINE],
        seen: &[u64; LINE],
        wanted: u8,
    ) -> u8 {
        let young = spte::MMU_PRESENT | format.accessed;
        let mut found = 0;
        for (i, &seen) in seen.iter().enumerate() {
            let is_young = seen & young == young;
            debug_assert_eq!(is_young, format.is_young_leaf(seen, LEVEL_4K));
            found |= u8::from(is_young) << i;
        }
        found &= wanted;
        let mut rest = found;
        while rest != 0 {
            let i = rest.trailing_zeros() as usize % LINE;
            rest &= rest - 1;
            format.age_young_ad(&line[i]);
        }
        found
    }

    /// What follows when an SPTE was aged.
    fn note_aged(vm: &Vm, cpu: &Cpu, as_id: u32, level: u32, gfn: u64, aged: &spte::Aged) {
        match aged.write {
            spte::Write::None => return,
            spte::Write::FetchAnd => {}
            spte::Write::PlainStore => {
                cpu.count(Counter::SptePlainStores);
                cpu.count(Counter::SptesAged);
            }
            spte::Write::Exchanged => {
                cpu.count(Counter::SpteCas);
                cpu.count(Counter::SptesAged);
            }
            spte::Write::ExchangeFailed => {
                cpu.count(Counter::SpteCas);
                cpu.count(Counter::SpteCasFailed);
                return;
            }
        }
        // After the exchange succeeded: an access-tracked SPTE no longer says
        // that it was writable.
        if !spte::ad_enabled(aged.old) && is_writable(aged.old) {
            vm.set_pfn_dirty(cpu, spte::pfn(aged.old));
        }
        cpu.trace(
            Event::KvmTdpMmuSpteChanged,
            &[u64::from(as_id), gfn, u64::from(level), aged.old, aged.new],
        );
    }

    /// Whether anything in the range is young (`kvm_tdp_mmu_test_age_gfn()`).
    pub fn test_age_gfn_range(&self, vm: &Vm, cpu: &Cpu, range: &GfnRange<'_>) -> bool {
        let format = vm.format();
        let locked = vm.protocol().tdp_aging == TdpAging::Locked;
        let _exclusive = (locked && range.lockless).then(|| cpu.write_lock(&vm.mmu_lock));
        let guard = cpu.rcu.lock();
        let as_id = range.slot.as_id as u32;
        for root in self.roots_of(&guard, as_id, vm.protocol().all_roots) {
            let all_old =
                self.for_each_run(cpu, root, range.start, range.end, |level, _, words| {
                    cpu.count_n(Counter::SpteLoads, words.len() as u64);
                    !words.iter().any(|word| format.test(word, level))
                });
            if !all_old {
                return true;
            }
        }
        false
    }

    // ---- zapping ----

    /// Zap the leaves of a range in every root, valid or not
    /// (`kvm_tdp_mmu_unmap_gfn_range()`). `mmu_lock` is held for write. Whether
    /// something was zapped, so that TLBs must be flushed.
    pub fn zap_leafs(&self, vm: &Vm, cpu: &Cpu, as_id: usize, start: u64, end: u64) -> bool {
        debug_assert!(vm.mmu_lock.is_write_locked());
        let as_id = as_id as u32;
        let guard = cpu.rcu.lock();
        let mut zapped = false;
        let mut gather = Gather::default();
        for root in self.roots_of(&guard, as_id, true) {
            self.for_each_run(cpu, root, start, end, |level, gfn, words| {
                for (i, word) in words.iter().enumerate() {
                    if !is_present_leaf(word.load(Ordering::Relaxed), level) {
                        continue;
                    }
                    // An exchange: hardware and agers still write the word.
                    // AcqRel: as in `handle_removed`.
                    let old = if mutant::active(Mutant::PlainLeafWrite) {
                        let old = word.load(Ordering::Relaxed);
                        word.store(0, Ordering::Release);
                        old
                    } else {
                        word.swap(0, Ordering::AcqRel)
                    };
                    let at = Change {
                        as_id,
                        gfn: gfn + i as u64,
                        level,
                        shared: false,
                    };
                    self.handle_changed(vm, cpu, &mut gather, old, 0, at);
                    zapped = true;
                }
                true
            });
        }
        debug_assert!(gather.0.is_empty(), "zapping leaves unlinked a table");
        zapped
    }

    // ---- write protection and dirty logging ----

    /// Take write permission from every leaf of `[start, end)`
    /// (`kvm_tdp_mmu_wrprot_slot()`). `mmu_lock` is held for read. Whether TLBs
    /// must be flushed.
    pub fn write_protect(&self, vm: &Vm, cpu: &Cpu, slot: &Memslot, start: u64, end: u64) -> bool {
        self.clear_bit(vm, cpu, slot.as_id as u32, start, end, WRITABLE)
    }

    /// Clear one bit of every leaf of a range that has it.
    fn clear_bit(&self, vm: &Vm, cpu: &Cpu, as_id: u32, start: u64, end: u64, bit: u64) -> bool {
        let guard = cpu.rcu.lock();
        let mut changed = false;
        let mut gather = Gather::default();
        for root in self.roots_of(&guard, as_id, false) {
            self.for_each_run(cpu, root, start, end, |level, gfn, words| {
                for (i, word) in words.iter().enumerate() {
                    let at = Change {
                        as_id,
                        gfn: gfn + i as u64,
                        level,
                        shared: true,
                    };
                    loop {
                        let old = word.load(Ordering::Relaxed);
                        if !is_present_leaf(old, level) || old & bit == 0 {
                            break;
                        }
                        // Never `fetch_and`: the word may become a pointer to
                        // a table, which must stay as it is.
                        let new = old & !bit;
                        if self.set_atomic(vm, cpu, &mut gather, word, old, new, at) {
                            changed = true;
                            break;
                        }
                    }
                }
                true
            });
        }
        changed
    }

    /// Take write permission from the 4 KiB leaves of pages whose bits are set
    /// (`kvm_tdp_mmu_clear_dirty_pt_masked()`, without PML). `mmu_lock` is held
    /// for write.
    pub fn write_protect_masked(&self, vm: &Vm, cpu: &Cpu, as_id: usize, gfn: u64, mask: u64) {
        debug_assert!(vm.mmu_lock.is_write_locked());
        let guard = cpu.rcu.lock();
        for root in self.roots_of(&guard, as_id as u32, false) {
            let mut rest = mask;
            while rest != 0 {
                let page = gfn + u64::from(rest.trailing_zeros());
                rest &= rest - 1;
                let Some((level, word)) = self.lookup(root, page) else {
                    continue;
                };
                let seen = word.load(Ordering::Relaxed);
                if level > LEVEL_4K || !is_present(seen) || !is_writable(seen) {
                    continue;
                }
                // `mmu_lock` keeps the leaf a leaf; hardware, agers and fast
                // page faults may write it meanwhile.
                let old = word.fetch_and(!WRITABLE, Ordering::AcqRel);
                cpu.count(Counter::SpteFetchAnd);
                cpu.trace(
                    Event::KvmTdpMmuSpteChanged,
                    &[as_id as u64, page, 1, old, old & !WRITABLE],
                );
                vm.set_pfn_dirty(cpu, spte::pfn(old));
            }
        }
    }

    /// Clear the dirty bits of a range's leaves and mark their folios dirty
    /// (`kvm_tdp_mmu_clear_dirty_slot()`, which logging by PML uses). Leaves
    /// without a dirty bit are write-protected instead. `mmu_lock` is taken for
    /// read. Whether TLBs must be flushed.
    pub fn clear_dirty(&self, vm: &Vm, cpu: &Cpu, as_id: u32, start: u64, end: u64) -> bool {
        let format = vm.format();
        let bit = if format.ad_bits {
            format.dirty
        } else {
            WRITABLE
        };
        let _shared = cpu.read_lock(&vm.mmu_lock);
        self.clear_bit(vm, cpu, as_id, start, end, bit)
    }

    /// Unlink tables of a slot whose range the host maps huge, so that the next
    /// fault does too (`kvm_tdp_mmu_zap_collapsible_sptes()`).
    pub fn zap_collapsible(&self, vm: &Vm, cpu: &Cpu, slot: &Memslot) {
        let mut gather = Gather::default();
        {
            let _shared = cpu.read_lock(&vm.mmu_lock);
            let guard = cpu.rcu.lock();
            for root in self.roots_of(&guard, slot.as_id as u32, false) {
                let (level, limit) = self.reach(root);
                let end = slot.end_gfn().min(limit);
                if slot.base_gfn < end {
                    self.zap_collapsible_in(
                        vm,
                        cpu,
                        &mut gather,
                        slot,
                        root,
                        level,
                        slot.base_gfn,
                        end,
                    );
                }
            }
            drop(guard);
            self.finish(vm, cpu, gather, false);
        }
    }

    /// The part of it below one table (`zap_collapsible_spte_range()`).
    #[allow(clippy::too_many_arguments)]
    fn zap_collapsible_in(
        &self,
        vm: &Vm,
        cpu: &Cpu,
        gather: &mut Gather,
        slot: &Memslot,
        table: TableId,
        level: u32,
        start: u64,
        end: u64,
    ) {
        let entries = self.tables.entries(table);
        let mut gfn = start;
        while gfn < end {
            let next = (round_gfn(gfn, level) + pages_per(level)).min(end);
            let word = &entries[gfn_index(gfn, level)];
            let spte = word.load(Ordering::Acquire);
            if is_present(spte) && !is_last(spte, level) {
                let collapses = level <= vm.config.max_level
                    && slot.allows_level(gfn, level)
                    && vm.mm.mapping_level(cpu, slot.gfn_to_hva(gfn)) >= level;
                if collapses {
                    let at = Change {
                        as_id: slot.as_id as u32,
                        gfn: round_gfn(gfn, level),
                        level,
                        shared: true,
                    };
                    // Lost to another change: left for the next time.
                    self.set_atomic(vm, cpu, gather, word, spte, 0, at);
                } else if level > LEVEL_2M {
                    let below = spte::table(spte);
                    self.zap_collapsible_in(vm, cpu, gather, slot, below, level - 1, gfn, next);
                }
            }
            gfn = next;
        }
    }

    // ---- faults ----

    /// Map what a fault found (`kvm_tdp_mmu_map()`). `mmu_lock` is held for
    /// read, and the caller is in an RCU section.
    ///
    /// # Errors
    /// `ENOMEM` when no table is to be had.
    fn map(&self, vm: &Vm, cpu: &Cpu, root: TableId, fault: LiveFault<'_>) -> Result<Outcome> {
        let format = vm.format();
        let mut gather = Gather::default();
        let page = self.tables.meta(root);
        let (mut level, as_id) = (page.level(), page.as_id());
        let gfn = fault.gfn;
        let goal = fault.goal(level);
        let mut table = root;
        let outcome = loop {
            let word = &self.tables.entries(table)[gfn_index(gfn, level)];
            cpu.count(Counter::SpteWalkLoads);
            // Acquire: pairs with the release that linked the table.
            let old = word.load(Ordering::Acquire);
            // Another thread replaces it: leave it alone.
            if is_frozen(old) {
                break Outcome::Retry;
            }
            let at = Change {
                as_id,
                gfn: round_gfn(gfn, level),
                level,
                shared: true,
            };
            if level > goal {
                if is_present(old) && !is_last(old, level) {
                    table = spte::table(old);
                    level -= 1;
                    continue;
                }
                let child = self.alloc_table(cpu, at.gfn, level - 1, as_id)?;
                if is_present(old) {
                    // A huge leaf in the way: the same pages by smaller ones.
                    for (i, small) in self.tables.entries(child).iter().enumerate() {
                        let value = format.make_small(old, level - 1, i);
                        small.store(value, Ordering::Relaxed);
                    }
                }
                let link = format.make_nonleaf(child, !format.ad_bits);
                if !self.set_atomic(vm, cpu, &mut gather, word, old, link, at) {
                    self.discard_table(cpu, child);
                    break Outcome::Retry;
                }
                table = child;
                level -= 1;
                continue;
            }
            if is_present_leaf(old, level) && format.allows(old, fault.kind) {
                break Outcome::Spurious;
            }
            let offset = gfn & (pages_per(level) - 1);
            let new = format.make_leaf(Leaf {
                pfn: Pfn(fault.pfn.0 - offset as u32),
                level,
                // A frame that holds a page table which the shadow MMU
                // shadows stays read-only.
                access: if level == LEVEL_4K && fault.slot.is_write_tracked(gfn) {
                    ACC_ALL & !ACC_WRITE_MASK
                } else {
                    ACC_ALL
                },
                host_writable: fault.map_writable,
                prefetch: false,
                ad_type: format.default_ad_type(),
            });
            if new == old {
                break Outcome::Spurious;
            }
            // Before the exchange: a harvest of the log holds `mmu_lock` for
            // write, so it sees both or neither.
            if is_writable(new) {
                fault.slot.mark_dirty(gfn);
            }
            break if self.set_atomic(vm, cpu, &mut gather, word, old, new, at) {
                Outcome::Fixed
            } else {
                Outcome::Retry
            };
        };
        self.finish(vm, cpu, gather, false);
        Ok(outcome)
    }

    /// One fault of a vCPU (`kvm_tdp_page_fault()`, `direct_page_fault()`). On
    /// return the access is tried again.
    fn page_fault(
        &self,
        vm: &Vm,
        cpu: &Cpu,
        vcpu: &Vcpu,
        gfn: u64,
        access: (AccessKind, bool),
    ) -> Result<()> {
        let kind = access.0;
        fault::begin(cpu, vcpu, gfn, kind);
        let Some(root) = vcpu.root() else {
            return Ok(());
        };
        let levels = self.reach(root).0;
        fault::check_reach(gfn, levels)?;
        let who = (vm, cpu, vcpu);
        if let Some(outcome) =
            fault::fast_page_fault(&self.tables, (root, levels), who, gfn, access)
        {
            outcome.count(cpu);
            return Ok(());
        }
        let Some(fault) = vm.faultin_pfn(cpu, vcpu.as_id, gfn, kind)? else {
            Outcome::Retry.count(cpu);
            // Whoever is in the way needs the processor to get out of it.
            thread::yield_now();
            return Ok(());
        };
        let _shared = cpu.read_lock(&vm.mmu_lock);
        let guard = cpu.rcu.lock();
        let live = (!self.is_root_invalid(root))
            .then(|| vm.live_fault(&fault, &guard))
            .flatten();
        let outcome = match live {
            None => Outcome::Retry,
            Some(fault) => {
                let outcome = self.map(vm, cpu, root, fault)?;
                vm.release_pfn_clean(cpu, fault.pfn);
                outcome
            }
        };
        outcome.count(cpu);
        Ok(())
    }
}

/// Where a change happens.
#[derive(Clone, Copy)]
struct Change {
    as_id: u32,
    gfn: u64,
    level: u32,
    /// Whether others may change SPTEs now: `mmu_lock` is held for read.
    shared: bool,
}

impl GuestMmu for TdpMmu {
    fn load(&self, vm: &Vm, cpu: &Cpu, vcpu: &Vcpu) -> Result<()> {
        if let Some(root) = vcpu.root() {
            if !self.is_root_invalid(root) {
                return Ok(());
            }
            self.unload(vm, cpu, vcpu);
        }
        let root = self.alloc_root(vm, cpu, vcpu.as_id as u32, vm.config.levels)?;
        vcpu.set_root(Some(root));
        Ok(())
    }

    fn unload(&self, _vm: &Vm, cpu: &Cpu, vcpu: &Vcpu) {
        if let Some(root) = vcpu.root() {
            vcpu.set_root(None);
            self.put_root(cpu, root);
        }
    }

    #[inline]
    fn is_obsolete(&self, _vm: &Vm, vcpu: &Vcpu) -> bool {
        vcpu.root().is_none_or(|root| self.is_root_invalid(root))
    }

    #[inline]
    fn walk(&self, vm: &Vm, cpu: &Cpu, vcpu: &Vcpu, page: u64, kind: AccessKind) -> Walk {
        match vcpu.root() {
            Some(root) => {
                let root = (root, self.reach(root).0);
                walk_as_hardware(&self.tables, root, vm, cpu, page, kind)
            }
            None => Walk::Fault { present: false },
        }
    }

    fn fault(
        &self,
        vm: &Vm,
        cpu: &Cpu,
        vcpu: &Vcpu,
        page: u64,
        kind: AccessKind,
        present: bool,
    ) -> Result<()> {
        self.page_fault(vm, cpu, vcpu, page, (kind, present))
    }
}
