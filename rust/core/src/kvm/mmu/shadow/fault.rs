//! vCPUs on the shadow MMU: roots, and faults (`direct_page_fault()`,
//! `FNAME(page_fault)`).

use super::{Ctx, Role, Shadow, State};
use crate::access::AccessKind;
use crate::cpu::Cpu;
use crate::error::{Errno, Error, Result};
use crate::kvm::guest::{
    ALIAS_SHIFT, GUEST_LEVELS, GuestCpu, GuestFault, GuestFormat, GuestKernel, GuestPaging,
    GuestPhys, GuestWalk,
};
use crate::kvm::memslot::Memslot;
use crate::kvm::mmu::fault::{self, LiveFault, Outcome};
use crate::kvm::mmu::rmap::{DescCache, RMAP_RECYCLE_THRESHOLD, SptePtr};
use crate::kvm::mmu::spte::{
    self, ACC_ALL, ACC_WRITE_MASK, LEVEL_4K, Leaf, gfn_index, is_last, is_present, is_writable,
    round_gfn,
};
use crate::kvm::mmu::walk::{Root, walk_as_hardware};
use crate::kvm::mmu::{GuestMmu, Translation, Walk};
use crate::kvm::vcpu::Vcpu;
use crate::kvm::vm::{MmuKind, Vm};
use crate::mm::Pfn;
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::sync::lock::Mutex;
use crate::sync::spin::Backoff;
use crate::table::TableId;
use crate::trace::Counter;

/// What the shadow MMU keeps with a vCPU. Only whoever runs the vCPU writes it,
/// so all of it is relaxed.
pub struct ShadowVcpu {
    /// Rmap descriptors, taken before `mmu_lock`.
    cache: Mutex<DescCache>,
    /// A page whose next write KVM emulates, as it holds a page table that is
    /// shadowed and stays read-only; [`NO_PAGE`] is none.
    emulate: AtomicU64,
    /// The frame that this page is, and the host's behind it once that is mapped.
    emulate_gfn: AtomicU64,
    emulate_pfn: AtomicU64,
    /// The last fault that the guest could not cure.
    guest_fault: Mutex<Option<GuestFault>>,
    /// Runs the guest's own guest (`is_guest_mode()`).
    l2: AtomicBool,
    /// The alias that accesses go through; [`ALL_ALIASES`] takes turns.
    alias: AtomicU64,
    turn: AtomicU64,
}

const NO_PAGE: u64 = u64::MAX;
/// For [`ShadowVcpu::set_alias`]: each access goes through another alias, in a
/// scattered but repeatable order.
pub const ALL_ALIASES: u64 = u64::MAX;

impl Default for ShadowVcpu {
    fn default() -> Self {
        ShadowVcpu {
            cache: Mutex::new(DescCache::default()),
            emulate: AtomicU64::new(NO_PAGE),
            emulate_gfn: AtomicU64::new(0),
            emulate_pfn: AtomicU64::new(NO_PAGE),
            guest_fault: Mutex::new(None),
            l2: AtomicBool::new(false),
            alias: AtomicU64::new(ALL_ALIASES),
            turn: AtomicU64::new(0),
        }
    }
}

impl ShadowVcpu {
    /// The last fault that was the guest's own and that its kernel did not
    /// cure.
    pub fn last_guest_fault(&self) -> Option<GuestFault> {
        *self.guest_fault.lock()
    }

    /// Whether the vCPU runs its guest's own guest.
    #[inline]
    pub fn is_l2(&self) -> bool {
        self.l2.load(Ordering::Relaxed)
    }

    pub(in crate::kvm) fn set_l2(&self, l2: bool) {
        self.l2.store(l2, Ordering::Relaxed);
    }

    /// Let accesses go through one alias of each page, or through
    /// [`ALL_ALIASES`] in turn.
    pub fn set_alias(&self, alias: u64) {
        self.alias.store(alias, Ordering::Relaxed);
    }

    /// Whether the next write to `page` is one that KVM emulates.
    #[inline]
    pub(in crate::kvm) fn is_emulating(&self, page: u64) -> bool {
        self.emulate.load(Ordering::Relaxed) == page
    }

    fn forget_emulation(&self) {
        self.emulate.store(NO_PAGE, Ordering::Relaxed);
    }

    /// Whether it is what the emulated write was to go to.
    fn is_emulated(&self, found: &Translation) -> bool {
        let pfn = self.emulate_pfn.load(Ordering::Relaxed);
        u64::from(found.pfn.0) == pfn && !found.writable
    }

    /// The emulated write has found its frame: no SPTE will tell that it was
    /// written, so the folio and the log are told (`kvm_vcpu_write_guest()`).
    /// In guest mode, and before the store: who then harvests the log or unmaps
    /// the page waits for it, by a flush.
    pub(in crate::kvm) fn emulated(&self, vm: &Vm, cpu: &Cpu, as_id: usize, pfn: Pfn) {
        self.forget_emulation();
        vm.set_pfn_dirty(cpu, pfn);
        let gfn = self.emulate_gfn.load(Ordering::Relaxed);
        let guard = cpu.rcu.lock();
        let slots = vm.memslots.load(as_id, &guard);
        if let Some(slot) = slots.by_gfn(gfn) {
            slot.mark_dirty(gfn);
        }
    }

    #[inline]
    fn address(&self, aliases: u64, page: u64) -> u64 {
        if aliases == 1 {
            return page;
        }
        let alias = match self.alias.load(Ordering::Relaxed) {
            ALL_ALIASES => {
                let turn = self.turn.load(Ordering::Relaxed);
                self.turn.store(turn + 1, Ordering::Relaxed);
                (turn.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) % aliases
            }
            alias => alias,
        };
        alias << ALIAS_SHIFT | page
    }
}

/// Guest memory as seen through a VM's memslots.
pub(in crate::kvm) struct GuestView<'a> {
    pub(in crate::kvm) shadow: &'a Shadow,
    pub(in crate::kvm) vm: &'a Vm,
    pub(in crate::kvm) cpu: &'a Cpu,
    pub(in crate::kvm) as_id: usize,
}

impl GuestView<'_> {
    fn slot_hva(&self, gfn: u64) -> Option<u64> {
        let guard = self.cpu.rcu.lock();
        let slots = self.vm.memslots.load(self.as_id, &guard);
        let slot = slots.by_gfn(gfn)?;
        (!slot.is_invalid()).then(|| slot.gfn_to_hva(gfn))
    }

    /// KVM reads and writes guest page tables through the process's own
    /// mapping (`__get_user()`): the page is touched, and brought in if need be.
    fn touch(&self, gfn: u64, write: bool) -> Result<Option<()>> {
        let Some(hva) = self.slot_hva(gfn) else {
            return Ok(None);
        };
        match self.vm.mm.touch(self.cpu, hva, write, None) {
            Ok(()) => Ok(Some(())),
            Err(error) if error.errno() == Errno::EFAULT => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl GuestPhys for GuestView<'_> {
    fn load(&self, gfn: u64, index: usize) -> Result<Option<u64>> {
        Ok(self
            .touch(gfn, false)?
            .map(|()| self.shadow.memory.load(gfn, index)))
    }

    fn update(&self, gfn: u64, index: usize, seen: u64, new: u64) -> bool {
        // A page that went away meanwhile fails the next walk's load.
        matches!(self.touch(gfn, true), Ok(Some(())))
            && self.shadow.memory.compare_exchange(gfn, index, seen, new)
    }
}

impl GuestCpu for GuestView<'_> {
    fn guest_load(&self, gfn: u64, index: usize) -> Result<u64> {
        self.shadow
            .guest_load(self.vm, self.cpu, self.as_id, gfn, index)
    }

    fn guest_store(&self, gfn: u64, index: usize, value: u64) -> Result<()> {
        self.shadow
            .guest_store(self.vm, self.cpu, self.as_id, gfn, index, value)
    }
}

/// What an SPTE is to map.
struct Target<'a> {
    slot: &'a Memslot,
    gfn: u64,
    pfn: Pfn,
    level: u32,
    access: u32,
    host_writable: bool,
}

impl Shadow {
    /// The guest's own page tables, if this VM shadows any: CR3's, or those
    /// that L1 gives its guest.
    pub fn kernel(&self) -> Option<&GuestKernel> {
        self.kernel.get()
    }

    fn guest_kernel(&self) -> Result<&GuestKernel> {
        self.kernel
            .get()
            .ok_or_else(|| Error::invalid("this VM's guest has no page tables of its own"))
    }

    /// How a VM's guest pages.
    pub(in crate::kvm) fn paging(vm: &Vm) -> GuestPaging {
        match vm.config.mmu {
            // L1 gives its guest tables of the same kind that it runs on.
            MmuKind::Nested if vm.format().name == "ept" => {
                GuestPaging::ept(vm.config.shadow.l1_ad)
            }
            _ => GuestPaging::LEGACY,
        }
    }

    fn root_role(vm: &Vm, as_id: usize) -> Role {
        let nested = vm.config.mmu == MmuKind::Nested;
        let direct = !nested && vm.config.shadow.direct;
        let l1_no_ad = nested && !vm.config.shadow.l1_ad;
        Role {
            level: if direct {
                vm.config.levels
            } else {
                GUEST_LEVELS
            },
            direct,
            access: ACC_ALL,
            ad_disabled: !vm.format().ad_bits || l1_no_ad,
            guest_mode: nested,
            as_id,
        }
    }

    /// A root with its level, for walks.
    #[inline]
    fn top(&self, root: TableId) -> Root {
        (root, self.tables.meta(root).level.load(Ordering::Relaxed))
    }

    // ---- roots -------------------------------------------------------------

    fn load_root(&self, vm: &Vm, cpu: &Cpu, vcpu: &Vcpu) -> Result<()> {
        if vcpu.root().is_some() {
            if !self.is_root_obsolete(vcpu) {
                return Ok(());
            }
            self.unload_root(cpu, vcpu);
        }
        let role = Self::root_role(vm, vcpu.as_id);
        let gfn = if role.direct {
            0
        } else {
            self.guest_kernel()?.root
        };
        let _lock = cpu.write_lock(&vm.mmu_lock);
        // Under `mmu_lock`, which a VM's end holds while it zaps.
        if vm.is_dead() {
            return Err(Error::new(Errno::EIO, "the VM was destroyed"));
        }
        self.locked(vm, cpu, |ctx, state| {
            self.make_pages_available(ctx, state)?;
            let root = self.get_page(ctx, state, gfn, role)?;
            state.page_mut(root).roots += 1;
            vcpu.set_root(Some(root));
            Ok(())
        })
    }

    fn unload_root(&self, cpu: &Cpu, vcpu: &Vcpu) {
        let Some(root) = vcpu.root() else {
            return;
        };
        vcpu.set_root(None);
        // The mutex is enough: only the count changes, and a page that was
        // zapped is in nobody's reach any more.
        let mut state = self.state.lock();
        let page = state.page_mut(root);
        page.roots -= 1;
        if page.roots == 0 && page.invalid {
            state.pages[root.0 as usize] = None;
            drop(state);
            self.free_tables(cpu, vec![root]);
        }
    }

    #[inline]
    fn is_root_obsolete(&self, vcpu: &Vcpu) -> bool {
        vcpu.root().is_none_or(|root| {
            // Acquire: pairs with the release in `zap_page`.
            self.tables.meta(root).obsolete.load(Ordering::Acquire)
        })
    }

    // ---- building ----------------------------------------------------------

    /// The table below `ptr`, of a GFN and role, found or made and linked
    /// (`kvm_mmu_get_child_sp()`).
    fn child(
        &self,
        ctx: Ctx<'_>,
        state: &mut State,
        cache: &mut DescCache,
        ptr: SptePtr,
        gfn: u64,
        role: Role,
    ) -> Result<TableId> {
        let value = self.read(ptr);
        let parent = state.page(ptr.table()).role;
        if is_present(value) && !is_last(value, parent.level) {
            let child = spte::table(value);
            let page = state.page(child);
            if page.gfn == gfn && page.role == role {
                return Ok(child);
            }
            // The guest's huge page changed its permission
            // (`validate_direct_spte()`).
            self.drop_parent(ctx, state, child, ptr);
            ctx.vm.flush_remote_tlbs(ctx.cpu);
        }
        let child = self.get_page(ctx, state, gfn, role)?;
        self.link(ctx, state, ptr, child, cache);
        Ok(child)
    }

    /// Put a leaf in place (`mmu_set_spte()`, `rmap_add()`).
    fn set_leaf(
        &self,
        ctx: Ctx<'_>,
        state: &mut State,
        cache: &mut DescCache,
        ptr: SptePtr,
        target: &Target<'_>,
    ) -> Outcome {
        let format = ctx.vm.format();
        let (level, gfn) = (target.level, target.gfn);
        let role = state.page(ptr.table()).role;
        let old = self.read(ptr);
        let mut was_mapped = false;
        let mut flush = false;
        if is_present(old) {
            if !is_last(old, level) {
                self.drop_parent(ctx, state, spte::table(old), ptr);
                flush = true;
            } else if spte::pfn(old) != target.pfn
                || state.page(ptr.table()).gfn_of(ptr.index()) != gfn
            {
                self.drop_spte(ctx, state, ptr);
                flush = true;
            } else {
                was_mapped = true;
            }
        }
        let new = format.make_leaf(Leaf {
            pfn: target.pfn,
            level,
            // A frame that holds a shadowed table stays read-only.
            access: if level == LEVEL_4K && target.slot.is_write_tracked(gfn) {
                target.access & !ACC_WRITE_MASK
            } else {
                target.access
            },
            host_writable: target.host_writable,
            prefetch: false,
            ad_type: role.ad_type(format),
        });
        if was_mapped && new == old {
            return Outcome::Spurious;
        }
        if is_writable(new) {
            target.slot.mark_dirty(gfn);
        }
        if was_mapped {
            flush |= self.spte_update(ctx, ptr, new);
        } else {
            self.spte_set(ptr, new);
            if let Some(translation) = &mut state.page_mut(ptr.table()).translation {
                translation[ptr.index()] = gfn;
            }
            let head = target.slot.rmaps().head(gfn, level);
            let count = self.descs.add(&ctx.cpu.counters, head, ptr, cache);
            if count > RMAP_RECYCLE_THRESHOLD {
                self.descs.zap_all(&ctx.cpu.counters, head, |ptr| {
                    self.spte_clear_track(ctx.vm, ctx.cpu, ptr);
                });
                flush = true;
            }
        }
        if flush {
            ctx.vm.flush_remote_tlbs(ctx.cpu);
        }
        Outcome::Fixed
    }

    /// Map directly, from a table of `role` down to the leaf
    /// (`direct_map()`, and the lower half of `FNAME(fetch)`).
    #[allow(clippy::too_many_arguments)]
    fn map_direct(
        &self,
        ctx: Ctx<'_>,
        state: &mut State,
        cache: &mut DescCache,
        mut table: TableId,
        page: u64,
        fault: LiveFault<'_>,
        access: u32,
        max_level: u32,
    ) -> Result<Outcome> {
        let gfn = fault.gfn;
        let goal = fault.goal(max_level);
        let mut role = state.page(table).role;
        while role.level > goal {
            let ptr = SptePtr::new(table, gfn_index(page, role.level));
            let base = round_gfn(gfn, role.level);
            role = role.child(true, access);
            table = self.child(ctx, state, cache, ptr, base, role)?;
        }
        let base = round_gfn(gfn, goal);
        let target = Target {
            slot: fault.slot,
            gfn: base,
            pfn: Pfn(fault.pfn.0 - (gfn - base) as u32),
            level: goal,
            access,
            host_writable: fault.map_writable,
        };
        let ptr = SptePtr::new(table, gfn_index(page, goal));
        Ok(self.set_leaf(ctx, state, cache, ptr, &target))
    }

    /// Build the shadow of what the walk of the guest's tables found
    /// (`FNAME(fetch)`).
    #[allow(clippy::too_many_arguments)]
    fn fetch(
        &self,
        ctx: Ctx<'_>,
        state: &mut State,
        cache: &mut DescCache,
        root: TableId,
        page: u64,
        walk: &GuestWalk,
        fault: LiveFault<'_>,
    ) -> Result<Outcome> {
        // Each entry is looked at again once its table is write-protected: a
        // guest's store in between would otherwise go unnoticed.
        let changed = |level: u32| {
            let at = level as usize - 1;
            self.memory.load(walk.table_gfn[at], gfn_index(page, level)) != walk.ptes[at]
        };
        if changed(GUEST_LEVELS) {
            return Ok(Outcome::Retry);
        }
        let mut table = root;
        let mut level = GUEST_LEVELS;
        while level > walk.level {
            let page_role = {
                let page = state.page_mut(table);
                page.flood = 0;
                page.role
            };
            let below = level as usize - 2;
            let gfn = walk.table_gfn[below];
            let role = page_role.child(false, walk.table_access[below]);
            let ptr = SptePtr::new(table, gfn_index(page, level));
            // Made, and so write-protected, before it is compared, and
            // compared before it is linked.
            let value = self.read(ptr);
            let linked = is_present(value) && !is_last(value, level);
            let child = if linked && {
                let page = state.page(spte::table(value));
                page.gfn == gfn && page.role == role
            } {
                spte::table(value)
            } else {
                self.get_page(ctx, state, gfn, role)?
            };
            if changed(level - 1) {
                return Ok(Outcome::Retry);
            }
            table = self.child(ctx, state, cache, ptr, gfn, role)?;
            debug_assert_eq!(table, child);
            level -= 1;
        }
        state.page_mut(table).flood = 0;
        self.map_direct(
            ctx,
            state,
            cache,
            table,
            page,
            fault,
            walk.access,
            walk.level,
        )
    }

    // ---- faults ------------------------------------------------------------

    /// One fault of a vCPU. On return the access is tried again.
    fn page_fault(
        &self,
        vm: &Vm,
        cpu: &Cpu,
        vcpu: &Vcpu,
        page: u64,
        access: (AccessKind, bool),
    ) -> Result<()> {
        let kind = access.0;
        fault::begin(cpu, vcpu, page, kind);
        let Some(root) = vcpu.root() else {
            return Ok(());
        };
        let outcome = if Self::root_role(vm, vcpu.as_id).direct {
            fault::check_reach(page, vm.config.levels)?;
            let (top, who) = (self.top(root), (vm, cpu, vcpu));
            match fault::fast_page_fault(&self.tables, top, who, page, access) {
                Some(outcome) => outcome,
                None => self.slow_fault(vm, cpu, vcpu, root, page, page, kind, None)?,
            }
        } else {
            let kernel = self.guest_kernel()?;
            let view = GuestView {
                shadow: self,
                vm,
                cpu,
                as_id: vcpu.as_id,
            };
            let address = page << crate::mm::PAGE_SHIFT;
            match kernel.paging.walk(&view, kernel.root, address, kind)? {
                Ok(walk) => {
                    let gfn = walk.gfn;
                    let emulated = kind.is_write() && self.emulate(vm, cpu, vcpu, page, gfn);
                    let kind = if emulated { AccessKind::Read } else { kind };
                    self.slow_fault(vm, cpu, vcpu, root, page, gfn, kind, Some(&walk))?
                }
                Err(fault) => {
                    cpu.count(Counter::GuestPageFaults);
                    return self.inject(&view, vcpu, kernel, fault);
                }
            }
        };
        outcome.count(cpu);
        if outcome == Outcome::Retry {
            Backoff::new().wait();
        }
        Ok(())
    }

    /// The guest gets its fault. Its kernel may map the page; otherwise the
    /// access fails.
    fn inject(
        &self,
        view: &GuestView<'_>,
        vcpu: &Vcpu,
        kernel: &GuestKernel,
        fault: GuestFault,
    ) -> Result<()> {
        if kernel.handle_fault(view, &fault)? {
            return Ok(());
        }
        *vcpu.shadow.guest_fault.lock() = Some(fault);
        let what = match kernel.paging.format {
            GuestFormat::Legacy => "page fault",
            GuestFormat::Ept => "EPT violation",
        };
        Err(Error::new(
            Errno::EFAULT,
            format!(
                "guest {what} on a {} at {:#x}: {:?} in its own page table of level {}",
                fault.access.name(),
                fault.address,
                fault.kind,
                fault.level
            ),
        ))
    }

    /// Whether a write to `gfn` must be emulated, because the frame holds a
    /// table that is shadowed (`page_fault_handle_page_track()`). The next walk
    /// of `page` then lets one write through a read-only SPTE. Such a write
    /// stores a byte of content and no entry of the table, so nothing that was
    /// built from the table changes; but three in a row mean that the guest
    /// uses the frame for something else.
    pub(in crate::kvm) fn emulate(
        &self,
        vm: &Vm,
        cpu: &Cpu,
        vcpu: &Vcpu,
        page: u64,
        gfn: u64,
    ) -> bool {
        let tracked = vm.is_write_tracked(cpu, gfn);
        if tracked {
            cpu.count(Counter::ShadowWriteTraps);
            vcpu.shadow.emulate.store(page, Ordering::Relaxed);
            vcpu.shadow.emulate_gfn.store(gfn, Ordering::Relaxed);
            vcpu.shadow.emulate_pfn.store(NO_PAGE, Ordering::Relaxed);
            self.note_flood(vm, cpu, gfn);
        } else if vcpu.shadow.is_emulating(page) {
            vcpu.shadow.forget_emulation();
        }
        tracked
    }

    #[allow(clippy::too_many_arguments)]
    fn slow_fault(
        &self,
        vm: &Vm,
        cpu: &Cpu,
        vcpu: &Vcpu,
        root: TableId,
        page: u64,
        gfn: u64,
        kind: AccessKind,
        walk: Option<&GuestWalk>,
    ) -> Result<Outcome> {
        let mut cache = vcpu.shadow.cache.lock();
        self.descs.topup(&mut cache)?;
        let Some(fault) = vm.faultin_pfn(cpu, vcpu.as_id, gfn, kind)? else {
            return Ok(Outcome::Retry);
        };
        let _lock = cpu.write_lock(&vm.mmu_lock);
        self.locked(vm, cpu, |ctx, state| {
            if self.is_root_obsolete(vcpu) {
                return Ok(Outcome::Retry);
            }
            let Some(fault) = vm.live_fault(&fault, ctx.guard) else {
                return Ok(Outcome::Retry);
            };
            self.make_pages_available(ctx, state)?;
            let done = match walk {
                None => {
                    let top = state.page(root).role.level;
                    self.map_direct(ctx, state, &mut cache, root, page, fault, ACC_ALL, top)
                }
                Some(walk) => self.fetch(ctx, state, &mut cache, root, page, walk, fault),
            };
            self.commit(ctx, state, false);
            let outcome = match done {
                // A guest table's memslot is on its way out.
                Err(error) if error.errno() == Errno::EAGAIN => Outcome::Retry,
                done => done?,
            };
            if vcpu.shadow.is_emulating(page) {
                let pfn = u64::from(fault.pfn.0);
                vcpu.shadow.emulate_pfn.store(pfn, Ordering::Relaxed);
            }
            vm.release_pfn_clean(cpu, fault.pfn);
            Ok(outcome)
        })
    }
}

impl GuestMmu for Shadow {
    fn load(&self, vm: &Vm, cpu: &Cpu, vcpu: &Vcpu) -> Result<()> {
        self.load_root(vm, cpu, vcpu)
    }

    fn unload(&self, _vm: &Vm, cpu: &Cpu, vcpu: &Vcpu) {
        self.unload_root(cpu, vcpu);
        self.descs.drain(&mut vcpu.shadow.cache.lock());
    }

    #[inline]
    fn address(&self, vm: &Vm, vcpu: &Vcpu, page: u64) -> u64 {
        vcpu.shadow.address(vm.config.shadow.aliases, page)
    }

    #[inline]
    fn is_obsolete(&self, _vm: &Vm, vcpu: &Vcpu) -> bool {
        self.is_root_obsolete(vcpu)
    }

    #[inline]
    fn walk(&self, vm: &Vm, cpu: &Cpu, vcpu: &Vcpu, page: u64, kind: AccessKind) -> Walk {
        let Some(root) = vcpu.root() else {
            return Walk::Fault { present: false };
        };
        if kind.is_write() && vcpu.shadow.is_emulating(page) {
            let read = AccessKind::Read;
            let walk = walk_as_hardware(&self.tables, self.top(root), vm, cpu, page, read);
            match walk {
                Walk::Hit(found) if vcpu.shadow.is_emulated(&found) => {
                    vcpu.shadow.emulated(vm, cpu, vcpu.as_id, found.pfn);
                    return walk;
                }
                // The guest has another frame there by now, or this one holds no
                // table any more: a write like any other.
                Walk::Hit(_) => vcpu.shadow.forget_emulation(),
                Walk::Fault { .. } => return walk,
            }
        }
        walk_as_hardware(&self.tables, self.top(root), vm, cpu, page, kind)
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
