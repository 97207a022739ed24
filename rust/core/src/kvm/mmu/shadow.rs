//! The shadow MMU: page tables that KVM builds from what the guest's own page
//! tables say, or directly from the memslots (`arch/x86/kvm/mmu/mmu.c`).
//!
//! A *shadow page* is a table of SPTEs found by the GFN it stands for and its
//! role. An indirect one shadows a guest page table in that frame; a direct one
//! maps consecutive frames: all of a VM with the TDP MMU switched off, or the
//! parts of a huge guest page that the host maps by small ones. Every leaf SPTE
//! is entered in the rmap of its frame, every link to a shadow page in that
//! page's list of parents.
//!
//! # Locking
//!
//! Everything that builds, links or zaps holds `mmu_lock` for write. Aging may
//! do without ([`age`]): it finds SPTEs through rmap chains, held by their bit.
//! Tables that were zapped are freed when every vCPU has acknowledged a TLB
//! flush, so that no page walk is inside, and after a grace period, for the
//! lockless fault that walks in an RCU section (KVM has one interrupt for both,
//! `kvm_mmu_commit_zap_page()`). The rmap walk waits for neither and needs
//! neither, see [`rmap`](super::rmap).
//!
//! # What is left out
//!
//! Unsync pages: KVM lets a guest write to a leaf page table that it shadows,
//! and looks at the changes when the guest flushes its TLB. Here every shadowed
//! table stays write-protected and every write to it traps, as in KVM before
//! it had unsync, and as it still does for tables above the lowest level. It
//! costs the guest traps, and changes nothing for aging.
//!
//! Prefetch: KVM maps up to seven neighbours of a fault, old, when the host has
//! them mapped. Huge pages coming back: when a slot's dirty logging ends, what
//! was split for it stays split until it is zapped.

mod age;
mod fault;
mod track;

#[cfg(all(test, not(loom)))]
mod tests;

use fault::GuestView;
pub use fault::{ALL_ALIASES, ShadowVcpu};
pub use track::SlotTracking;

use super::rmap::{DescArena, DescCache, RmapHead, SptePtr};
use super::spte::{self, AD_DISABLED, AD_WRPROT_ONLY, LEVEL_1G, LEVEL_4K, SpteFormat, pages_per};
use crate::cpu::Cpu;
use crate::error::{Errno, Error, Result};
use crate::kvm::guest::{GuestCpu, GuestKernel, GuestMemory, MAX_ALIASES};
use crate::kvm::memslot::{GfnRange, MAX_SLOTS, MemoryRegion, Memslot};
use crate::kvm::vcpu::GuestLoop;
use crate::kvm::vm::{MmuKind, Vm};
use crate::mm::vma::VmFlags;
use crate::mm::{Kind, PAGE_SHIFT};
use crate::mutant::{self, Mutant};
use crate::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use crate::sync::lock::Mutex;
use crate::sync::once::OnceLock;
use crate::sync::rcu::Guard;
use crate::table::{Arena, TABLE_ENTRIES, TableId};
use crate::trace::Counter;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// Fewest shadow pages a VM may be limited to (`KVM_MIN_ALLOC_MMU_PAGES`).
pub const MIN_SHADOW_PAGES: u64 = 64;
/// Shadow pages per 1000 pages of guest memory (`KVM_PERMILLE_MMU_PAGES`).
pub const PERMILLE_SHADOW_PAGES: u64 = 20;
/// A fault begins only with this many pages to be had (`KVM_MIN_FREE_MMU_PAGES`).
const MIN_FREE_PAGES: u64 = 5;
/// Then it makes this many available (`KVM_REFILL_PAGES`).
const REFILL_PAGES: u64 = 25;
/// Writes without an access in between after which a table is taken for one
/// that is not a page table any more (`detect_write_flooding()`).
const FLOOD_WRITES: u32 = 3;

/// The memslot that a guest's own page tables are in: the last number.
pub const GUEST_TABLE_SLOT: u32 = MAX_SLOTS - 1;
/// Its first frame.
pub const GUEST_TABLE_GFN: u64 = if cfg!(loom) { 8 } else { 1 << 33 };
/// Its frames, enough to map 512 GiB.
pub const GUEST_TABLE_FRAMES: u64 = if cfg!(loom) { 4 } else { 1 << 18 };

/// What a VM's shadow MMU is to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ShadowConfig {
    /// `MmuKind::Shadow` only: map guest frames directly, as KVM does on
    /// hardware with nested paging when the TDP MMU is switched off
    /// (`tdp_mmu=0`). Otherwise the guest's page tables are shadowed (`npt=0`,
    /// `ept=0`).
    pub direct: bool,
    /// `MmuKind::Nested` only: whether L1 enables A/D bits in the EPT tables
    /// that it gives its guest. NPT always has them.
    pub l1_ad: bool,
    /// How often the guest maps each of its pages, at different addresses.
    pub aliases: u64,
    /// Level of the leaves that the guest maps its memory by: 1, or 2 and 3 for
    /// huge pages, which the host need not have.
    pub guest_level: u32,
    /// Most shadow pages; `None` is KVM's own rule, 2 percent of the pages of
    /// guest memory and at least 64, once for every alias.
    pub max_pages: Option<u64>,
}

impl Default for ShadowConfig {
    fn default() -> Self {
        ShadowConfig {
            direct: false,
            l1_ad: true,
            aliases: 1,
            guest_level: LEVEL_4K,
            max_pages: None,
        }
    }
}

impl ShadowConfig {
    /// # Errors
    /// `EINVAL` names the first field that is out of range.
    pub fn check(&self, kind: MmuKind, format: &SpteFormat) -> Result<()> {
        if self.aliases == 0 || self.aliases > MAX_ALIASES {
            return Err(Error::invalid(format!(
                "a page has 1 to {MAX_ALIASES} aliases, not {}",
                self.aliases
            )));
        }
        if self.direct && kind == MmuKind::Nested {
            return Err(Error::invalid(
                "a nested guest has page tables to be shadowed; direct is for the shadow MMU alone",
            ));
        }
        if self.direct && self.aliases != 1 {
            return Err(Error::invalid(
                "aliases need a guest page table; direct shadow pages have none",
            ));
        }
        if !(LEVEL_4K..=LEVEL_1G).contains(&self.guest_level) {
            return Err(Error::invalid(format!(
                "guest pages of level {}: expected {LEVEL_4K} to {LEVEL_1G}",
                self.guest_level
            )));
        }
        if let Some(max) = self.max_pages
            && max < MIN_SHADOW_PAGES
        {
            return Err(Error::invalid(format!(
                "at least {MIN_SHADOW_PAGES} shadow pages are needed, not {max}"
            )));
        }
        if !self.l1_ad && format.name != "ept" {
            return Err(Error::invalid(
                "only EPT lets L1 do without accessed and dirty bits, not NPT",
            ));
        }
        Ok(())
    }
}

/// What a shadow page is, beside the GFN it stands for (`union
/// kvm_mmu_page_role`). Pages of one GFN with different roles exist side by
/// side.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Role {
    /// Its level.
    pub level: u32,
    /// Maps consecutive frames instead of shadowing a table.
    pub direct: bool,
    /// What the entries above it allow, of [`ACC_ALL`](spte::ACC_ALL).
    pub access: u32,
    /// Its SPTEs have no A/D bits.
    pub ad_disabled: bool,
    /// Shadows a table that L1 gave its guest.
    pub guest_mode: bool,
    /// Address space.
    pub as_id: usize,
}

impl Role {
    fn child(self, direct: bool, access: u32) -> Role {
        Role {
            level: self.level - 1,
            direct,
            access,
            ..self
        }
    }

    /// The A/D type of its leaves: L2's addresses are of no use to a log of
    /// dirty pages, so its SPTEs are logged by write protection
    /// (`kvm_mmu_page_ad_need_write_protect()`).
    fn ad_type(self, format: &SpteFormat) -> u64 {
        if self.ad_disabled {
            AD_DISABLED
        } else if self.guest_mode && format.name == "ept" {
            AD_WRPROT_ONLY
        } else {
            format.default_ad_type()
        }
    }
}

/// What may be read of a shadow page without any lock.
#[derive(Default)]
pub struct ShadowMeta {
    /// A vCPU that has it as its root must load another.
    obsolete: AtomicBool,
    /// Its level.
    level: AtomicU32,
}

impl ShadowMeta {
    /// The level of its entries.
    pub fn level(&self) -> u32 {
        self.level.load(Ordering::Relaxed)
    }
}

/// A shadow page (`struct kvm_mmu_page`).
struct Page {
    gfn: u64,
    role: Role,
    /// SPTEs that point to it, a chain like those of the rmap.
    parents: AtomicU64,
    /// GFN that each SPTE of an indirect page maps
    /// (`shadowed_translation`).
    translation: Option<Box<[u64]>>,
    /// vCPUs that use it as their root.
    roots: u32,
    /// Writes to its guest table since the last walk through it.
    flood: u32,
    /// Place among the active pages, by age.
    seq: u64,
    /// Zapped, and kept only because it is somebody's root.
    invalid: bool,
}

impl Page {
    /// The frame that SPTE `index` maps (`kvm_mmu_page_get_gfn()`).
    fn gfn_of(&self, index: usize) -> u64 {
        match &self.translation {
            Some(translation) => translation[index],
            None => self.gfn + index as u64 * pages_per(self.role.level),
        }
    }
}

/// What `mmu_lock`, held for write, guards. The mutex around it is never
/// contended; it only tells the compiler.
#[derive(Default)]
struct State {
    pages: Vec<Option<Box<Page>>>,
    by_gfn: HashMap<u64, Vec<TableId>>,
    /// Pages in use, the oldest first (`active_mmu_pages`).
    active: BTreeMap<u64, TableId>,
    next_seq: u64,
    /// Zapped pages that wait for the flush (`invalid_list`).
    doomed: Vec<TableId>,
    /// Something was zapped since the last flush.
    flush: bool,
    /// The limit, and of which memslots it was computed.
    limit: u64,
    limit_of: Option<Vec<u64>>,
}

impl State {
    fn page(&self, id: TableId) -> &Page {
        self.pages[id.0 as usize]
            .as_deref()
            .expect("a linked table has a shadow page")
    }

    fn page_mut(&mut self, id: TableId) -> &mut Page {
        self.pages[id.0 as usize]
            .as_deref_mut()
            .expect("a linked table has a shadow page")
    }

    fn used(&self) -> u64 {
        self.active.len() as u64
    }
}

/// Where a change of the shadow MMU happens: the VM, the thread, and the RCU
/// section in which memslots are looked up. Made by those who hold `mmu_lock`
/// for write.
#[derive(Clone, Copy)]
struct Ctx<'a> {
    vm: &'a Vm,
    cpu: &'a Cpu,
    guard: &'a Guard<'a>,
}

impl<'a> Ctx<'a> {
    fn slot(&self, as_id: usize, gfn: u64) -> Option<&'a Arc<Memslot>> {
        self.vm.memslots.load(as_id, self.guard).by_gfn(gfn)
    }
}

/// The shadow MMU of one VM.
pub struct Shadow {
    tables: Arc<Arena<ShadowMeta>>,
    descs: DescArena,
    state: Mutex<State>,
    indirect_pages: AtomicU64,
    corruption_reported: AtomicBool,
    /// What the guest keeps in its page tables.
    pub memory: GuestMemory,
    kernel: OnceLock<GuestKernel>,
    /// Where the process has the guest's page tables, until the end.
    table_memory: Mutex<Option<u64>>,
}

impl Default for Shadow {
    fn default() -> Self {
        Self::new()
    }
}

impl Shadow {
    /// A shadow MMU without pages.
    pub fn new() -> Self {
        Shadow {
            tables: Arc::new(Arena::new()),
            descs: DescArena::new(),
            state: Mutex::new(State::default()),
            indirect_pages: AtomicU64::new(0),
            corruption_reported: AtomicBool::new(false),
            memory: GuestMemory::default(),
            kernel: OnceLock::new(),
            table_memory: Mutex::new(None),
        }
    }

    #[inline]
    fn word(&self, ptr: SptePtr) -> &AtomicU64 {
        &self.tables.entries(ptr.table())[ptr.index()]
    }

    #[inline]
    fn read(&self, ptr: SptePtr) -> u64 {
        // Acquire: pairs with the release that published the table or frame.
        self.word(ptr).load(Ordering::Acquire)
    }

    /// The shadow page tables, for vCPUs' walks.
    #[inline]
    pub fn tables(&self) -> &Arc<Arena<ShadowMeta>> {
        &self.tables
    }

    /// Shadow pages in use (`n_used_mmu_pages`).
    pub fn used_pages(&self) -> u64 {
        self.state.lock().used()
    }

    /// Rmap descriptors in chains and in vCPUs' caches, and bytes of one.
    pub fn descriptors(&self) -> (u32, usize) {
        (self.descs.live(), super::rmap::DESC_BYTES)
    }

    /// Most shadow pages (`n_max_mmu_pages`), recomputed when slots change
    /// (`kvm_mmu_change_mmu_pages()`).
    fn limit(&self, ctx: Ctx<'_>, state: &mut State) -> u64 {
        let config = &ctx.vm.config.shadow;
        if let Some(max) = config.max_pages {
            return max;
        }
        let spaces = 0..ctx.vm.memslots.len();
        let same = state.limit_of.as_ref().is_some_and(|seen| {
            spaces
                .clone()
                .all(|n| ctx.vm.memslots.load(n, ctx.guard).generation() == seen[n])
        });
        if !same {
            let mut pages = 0;
            let mut seen = Vec::new();
            for n in spaces {
                let slots = ctx.vm.memslots.load(n, ctx.guard);
                let user = slots.iter().filter(|slot| slot.id != GUEST_TABLE_SLOT);
                pages += user.map(|slot| slot.npages).sum::<u64>();
                seen.push(slots.generation());
            }
            state.limit_of = Some(seen);
            state.limit =
                (pages * PERMILLE_SHADOW_PAGES / 1000).max(MIN_SHADOW_PAGES) * config.aliases;
        }
        state.limit
    }

    /// Give the guest frames for page tables, in a memslot of its own
    /// (KVM has such private slots too, `__x86_set_memory_region()`), and a
    /// kernel to keep them.
    ///
    /// # Errors
    /// `ENOMEM` without room in the process.
    pub(in crate::kvm) fn boot(&self, vm: &Vm, cpu: &Cpu) -> Result<()> {
        if vm.config.mmu == MmuKind::Shadow && vm.config.shadow.direct {
            return Ok(());
        }
        let len = GUEST_TABLE_FRAMES << PAGE_SHIFT;
        let space = cpu.host().create_space(Kind::Anon, GUEST_TABLE_FRAMES);
        let flags = VmFlags::default();
        let userspace_addr = vm.mm.mmap(None, len, &space, 0, flags)?;
        *self.table_memory.lock() = Some(userspace_addr);
        for as_id in 0..vm.memslots.len() {
            vm.set_memory_region(
                cpu,
                &MemoryRegion {
                    as_id,
                    slot: GUEST_TABLE_SLOT,
                    flags: 0,
                    guest_phys_addr: GUEST_TABLE_GFN << PAGE_SHIFT,
                    memory_size: len,
                    userspace_addr,
                },
            )?;
        }
        let end = GUEST_TABLE_GFN + GUEST_TABLE_FRAMES;
        let config = &vm.config.shadow;
        let frames = (GUEST_TABLE_GFN, end);
        let kernel =
            GuestKernel::new(Self::paging(vm), frames, config.aliases, config.guest_level)?;
        let first = self.kernel.set(kernel);
        debug_assert!(first.is_ok(), "a guest boots once");
        Ok(())
    }

    /// Give the process its memory back, when vCPUs have left.
    pub(in crate::kvm) fn shut_down(&self, vm: &Vm, cpu: &Cpu) {
        if let Some(start) = self.table_memory.lock().take()
            && let Err(error) = vm.mm.munmap(cpu, start, GUEST_TABLE_FRAMES << PAGE_SHIFT)
        {
            cpu.raise(error);
        }
    }

    /// The guest's loads and stores, to change its page tables by.
    pub fn guest_cpu<'a>(&'a self, vm: &'a Vm, cpu: &'a Cpu, as_id: usize) -> impl GuestCpu + 'a {
        GuestView {
            shadow: self,
            vm,
            cpu,
            as_id,
        }
    }

    // ---- SPTEs -----------------------------------------------------------

    /// Write an SPTE that was not present (`mmu_spte_set()`).
    fn spte_set(&self, ptr: SptePtr, new: u64) {
        debug_assert!(!spte::is_present(self.read(ptr)));
        // Release: publishes the table or the frame; pairs with `read`.
        self.word(ptr).store(new, Ordering::Release);
    }

    /// Replace a present SPTE by another of the same frame, atomically if a
    /// change behind the lock could be lost; returns whether TLBs must be
    /// flushed (`mmu_spte_update()`).
    fn spte_update(&self, ctx: Ctx<'_>, ptr: SptePtr, new: u64) -> bool {
        let format = ctx.vm.format();
        let mut old = self.read(ptr);
        if !spte::is_present(old) {
            self.spte_set(ptr, new);
            return false;
        }
        if must_be_atomic(ctx.vm, old) {
            // Acquire and release: takes over what the exchanges of hardware
            // and of fast page faults put in until now.
            old = self.word(ptr).swap(new, Ordering::AcqRel);
        } else {
            // Nothing but Accessed can change behind `mmu_lock` here, and an
            // ager that takes it has reported the page young.
            self.word(ptr).store(new, Ordering::Release);
        }
        let mut flush = format.is_mmu_writable(old) && !spte::is_writable(new);
        if format.is_accessed(old) && !format.is_accessed(new) {
            flush = true;
            ctx.vm.set_pfn_accessed(ctx.cpu, spte::pfn(old));
        }
        if format.is_dirty(old) && !format.is_dirty(new) {
            flush = true;
            ctx.vm.set_pfn_dirty(ctx.cpu, spte::pfn(old));
        }
        flush
    }

    /// Zap a leaf and pass its state on to the folio
    /// (`mmu_spte_clear_track_bits()`); returns what it was.
    fn spte_clear_track(&self, vm: &Vm, cpu: &Cpu, ptr: SptePtr) -> u64 {
        let format = vm.format();
        let word = self.word(ptr);
        let mut old = self.read(ptr);
        if !spte::is_present(old) {
            return old;
        }
        if must_be_atomic(vm, old) {
            // Acquire and release, as in `spte_update`.
            old = word.swap(0, Ordering::AcqRel);
        } else {
            // Nothing but Accessed can change, and the page is passed on as
            // young where it was. Readers skip what is not present.
            word.store(0, Ordering::Release);
            cpu.count(Counter::SptePlainStores);
        }
        cpu.count(Counter::SptesZapped);
        if format.is_accessed(old) {
            vm.set_pfn_accessed(cpu, spte::pfn(old));
        }
        if format.is_dirty(old) && !mutant::active(Mutant::ZapDropsDirty) {
            vm.set_pfn_dirty(cpu, spte::pfn(old));
        }
        old
    }

    /// Zap a leaf, *then* take it out of its rmap (`drop_spte()`). The other
    /// way round an ager or an invalidation could miss a live SPTE.
    fn drop_spte(&self, ctx: Ctx<'_>, state: &State, ptr: SptePtr) {
        if mutant::active(Mutant::ZapAfterUnlink) {
            if spte::is_present(self.read(ptr)) {
                self.rmap_remove(ctx, state, ptr);
            }
            self.spte_clear_track(ctx.vm, ctx.cpu, ptr);
            return;
        }
        let old = self.spte_clear_track(ctx.vm, ctx.cpu, ptr);
        if spte::is_present(old) {
            self.rmap_remove(ctx, state, ptr);
        }
    }

    fn rmap_remove(&self, ctx: Ctx<'_>, state: &State, ptr: SptePtr) {
        let page = state.page(ptr.table());
        let gfn = page.gfn_of(ptr.index());
        let Some(slot) = ctx.slot(page.role.as_id, gfn) else {
            // Slots are zapped before they go: this cannot be.
            self.report_corruption(ctx.cpu, ptr, "maps a frame without a memslot");
            return;
        };
        let head = slot.rmaps().head(gfn, page.role.level);
        if let Err(error) = self.descs.remove(&ctx.cpu.counters, head, ptr) {
            ctx.cpu.count(Counter::RmapCorrupt);
            ctx.cpu.raise(error);
        }
    }

    /// Count, and say it once a VM.
    fn report_corruption(&self, cpu: &Cpu, ptr: SptePtr, what: &str) {
        cpu.count(Counter::RmapCorrupt);
        // Relaxed: only who is first says it.
        if !self.corruption_reported.swap(true, Ordering::Relaxed) {
            cpu.raise(Error::new(
                Errno::EIO,
                format!(
                    "shadow MMU corruption: SPTE {} of table {} {what}",
                    ptr.index(),
                    ptr.table().0
                ),
            ));
        }
    }

    // ---- shadow pages ----------------------------------------------------

    /// The shadow page of a GFN and role, found or made
    /// (`kvm_mmu_get_shadow_page()`). A new indirect one is write-protected
    /// and counted before anyone can read its guest table through it.
    ///
    /// # Errors
    /// `ENOMEM` without tables; `EAGAIN` when the guest table's slot is gone.
    fn get_page(&self, ctx: Ctx<'_>, state: &mut State, gfn: u64, role: Role) -> Result<TableId> {
        if let Some(pages) = state.by_gfn.get(&gfn)
            && let Some(&id) = pages.iter().find(|&&id| state.page(id).role == role)
        {
            state.page_mut(id).flood = 0;
            return Ok(id);
        }
        let slot = ctx.slot(role.as_id, gfn);
        if !role.direct && slot.is_none_or(|slot| slot.is_invalid()) {
            return Err(Error::new(
                Errno::EAGAIN,
                format!("the memslot of the guest page table at gfn {gfn:#x} is going away"),
            ));
        }
        let id = self
            .tables
            .alloc()
            .ok_or_else(|| Error::new(Errno::ENOMEM, "out of shadow pages"))?;
        ctx.cpu.count(Counter::TablesAllocated);
        // Relaxed: published by the link to it, or by the vCPU that takes it
        // for its root under `mmu_lock`.
        let meta = self.tables.meta(id);
        meta.obsolete.store(false, Ordering::Relaxed);
        meta.level.store(role.level, Ordering::Relaxed);
        let at = id.0 as usize;
        if state.pages.len() <= at {
            state.pages.resize_with(at + 1, || None);
        }
        let seq = state.next_seq;
        state.next_seq += 1;
        state.pages[at] = Some(Box::new(Page {
            gfn,
            role,
            parents: AtomicU64::new(0),
            translation: (!role.direct).then(|| vec![0; TABLE_ENTRIES].into_boxed_slice()),
            roots: 0,
            flood: 0,
            seq,
            invalid: false,
        }));
        state.active.insert(seq, id);
        state.by_gfn.entry(gfn).or_default().push(id);
        if let (false, Some(slot)) = (role.direct, slot) {
            self.account_shadowed(ctx, state, slot, gfn);
        }
        Ok(id)
    }

    /// Point SPTE `ptr` to a shadow page (`link_shadow_page()`). The caller
    /// has filled `cache`.
    fn link(
        &self,
        ctx: Ctx<'_>,
        state: &State,
        ptr: SptePtr,
        child: TableId,
        cache: &mut DescCache,
    ) {
        if spte::is_present(self.read(ptr)) {
            // A huge leaf makes way for a table (`drop_large_spte()`).
            self.drop_spte(ctx, state, ptr);
            ctx.vm.flush_remote_tlbs(ctx.cpu);
        }
        let page = state.page(child);
        let new = ctx
            .vm
            .format()
            .make_nonleaf(child, page.role.ad_disabled || !ctx.vm.format().ad_bits);
        self.spte_set(ptr, new);
        self.descs
            .add(&ctx.cpu.counters, RmapHead(&page.parents), ptr, cache);
    }

    /// Unlink a shadow page from one parent (`drop_parent_pte()`).
    fn drop_parent(&self, ctx: Ctx<'_>, state: &State, child: TableId, ptr: SptePtr) {
        let parents = RmapHead(&state.page(child).parents);
        // Release, as all stores to SPTEs. Whoever still sees the link is
        // waited for before the table is freed, see `commit`.
        self.word(ptr).store(0, Ordering::Release);
        if let Err(error) = self.descs.remove(&ctx.cpu.counters, parents, ptr) {
            ctx.cpu.count(Counter::RmapCorrupt);
            ctx.cpu.raise(error);
        }
    }

    /// Zap one SPTE, leaf or not; returns whether TLBs must be flushed
    /// (`mmu_page_zap_pte()`).
    fn zap_entry(&self, ctx: Ctx<'_>, state: &mut State, ptr: SptePtr) -> bool {
        let old = self.read(ptr);
        if !spte::is_present(old) {
            return false;
        }
        let level = state.page(ptr.table()).role.level;
        if spte::is_last(old, level) {
            self.drop_spte(ctx, state, ptr);
            return true;
        }
        let child = spte::table(old);
        self.drop_parent(ctx, state, child, ptr);
        // Nested tables are seldom linked again: an orphan goes at once.
        let page = state.page(child);
        if page.role.guest_mode && page.roots == 0 && RmapHead(&page.parents).is_empty() {
            self.zap_page(ctx, state, child);
        }
        true
    }

    /// Zap a shadow page: its SPTEs, the links to it, and itself
    /// (`kvm_mmu_prepare_zap_page()`). Its memory is freed by
    /// [`commit`](Self::commit), unless it is somebody's root: then when the
    /// last of those has left.
    fn zap_page(&self, ctx: Ctx<'_>, state: &mut State, id: TableId) {
        if state.page(id).invalid {
            return;
        }
        ctx.cpu.count(Counter::ShadowPagesZapped);
        for index in 0..TABLE_ENTRIES {
            self.zap_entry(ctx, state, SptePtr::new(id, index));
        }
        // Nobody changes the chain now: this holds `mmu_lock` for write.
        let head = RmapHead(&state.page(id).parents).value();
        let parents: Vec<SptePtr> = self.descs.iter(&ctx.cpu.counters, head).collect();
        for ptr in parents {
            self.drop_parent(ctx, state, id, ptr);
        }
        let page = state.page_mut(id);
        page.invalid = true;
        let (gfn, role, seq, roots) = (page.gfn, page.role, page.seq, page.roots);
        state.active.remove(&seq);
        if let Some(pages) = state.by_gfn.get_mut(&gfn) {
            pages.retain(|&other| other != id);
            if pages.is_empty() {
                state.by_gfn.remove(&gfn);
            }
        }
        if !role.direct {
            self.unaccount_shadowed(ctx, role.as_id, gfn);
        }
        // Release: pairs with the acquire where vCPUs look at their root, which
        // they do when they act on the flush.
        self.tables.meta(id).obsolete.store(true, Ordering::Release);
        state.flush = true;
        if roots == 0 {
            state.pages[id.0 as usize] = None;
            state.doomed.push(id);
        }
    }

    /// Flush TLBs if need be, and then free what was zapped
    /// (`kvm_mmu_remote_flush_or_zap()`).
    fn commit(&self, ctx: Ctx<'_>, state: &mut State, flush: bool) {
        if flush || std::mem::take(&mut state.flush) {
            ctx.vm.flush_remote_tlbs(ctx.cpu);
        }
        let doomed = std::mem::take(&mut state.doomed);
        self.free_tables(ctx.cpu, doomed);
    }

    fn free_tables(&self, cpu: &Cpu, doomed: Vec<TableId>) {
        if doomed.is_empty() {
            return;
        }
        cpu.count_n(Counter::TablesFreed, doomed.len() as u64);
        let tables = Arc::clone(&self.tables);
        if mutant::active(Mutant::NoRcuDelay) {
            return doomed.into_iter().for_each(|id| tables.free(id));
        }
        cpu.rcu.lock().defer(move || {
            for id in doomed {
                tables.free(id);
            }
        });
    }

    /// Have shadow pages for one fault, zapping the oldest if need be
    /// (`make_mmu_pages_available()`).
    ///
    /// # Errors
    /// `ENOSPC` when all are in use as roots.
    fn make_pages_available(&self, ctx: Ctx<'_>, state: &mut State) -> Result<()> {
        let limit = self.limit(ctx, state);
        if state.used() + MIN_FREE_PAGES <= limit {
            return Ok(());
        }
        let wanted = (state.used() + REFILL_PAGES).saturating_sub(limit);
        let before = state.used();
        while before - state.used() < wanted {
            let oldest = state
                .active
                .values()
                .copied()
                .find(|&id| state.page(id).roots == 0);
            let Some(id) = oldest else { break };
            self.zap_page(ctx, state, id);
            ctx.cpu.count(Counter::ShadowPagesRecycled);
        }
        self.commit(ctx, state, false);
        if state.used() + MIN_FREE_PAGES <= limit {
            return Ok(());
        }
        Err(Error::new(
            Errno::ENOSPC,
            format!(
                "all {} shadow pages of a limit of {limit} are in use as roots",
                state.used()
            ),
        ))
    }

    /// Do `change` under `mmu_lock`, which the caller holds for write.
    fn locked<R>(&self, vm: &Vm, cpu: &Cpu, change: impl FnOnce(Ctx<'_>, &mut State) -> R) -> R {
        debug_assert!(vm.mmu_lock.is_write_locked());
        let guard = cpu.rcu.lock();
        let ctx = Ctx {
            vm,
            cpu,
            guard: &guard,
        };
        change(ctx, &mut self.state.lock())
    }

    /// Take write permission from one SPTE. With `protect`, KVM's own
    /// permission to give it back goes too (`spte_write_protect()`).
    fn spte_write_protect(&self, ctx: Ctx<'_>, ptr: SptePtr, protect: bool) -> bool {
        let format = ctx.vm.format();
        let old = self.read(ptr);
        if !spte::is_present(old)
            || !(spte::is_writable(old) || protect && format.is_mmu_writable(old))
        {
            return false;
        }
        let mut new = old & !spte::WRITABLE;
        if protect {
            new &= !format.mmu_writable;
        }
        self.spte_update(ctx, ptr, new)
    }

    /// Take write permission from everything that maps `[start, end)` of a
    /// slot, at all levels.
    fn rmaps_write_protect(
        &self,
        ctx: Ctx<'_>,
        slot: &Memslot,
        start: u64,
        end: u64,
        protect: bool,
    ) -> bool {
        let Some(rmaps) = slot.rmaps_if_any() else {
            return false;
        };
        let mut flush = false;
        for level in LEVEL_4K..=LEVEL_1G {
            for head in rmaps.range(level, start, end) {
                // Under `mmu_lock` for write no chain changes.
                for ptr in self.descs.iter(&ctx.cpu.counters, head.value()) {
                    flush |= self.spte_write_protect(ctx, ptr, protect);
                }
            }
        }
        flush
    }

    /// What the guest's own tables allow through leaf `index` of a page.
    fn allowed_by_guest(&self, vm: &Vm, page: &Page, index: usize) -> u32 {
        if page.role.direct {
            return page.role.access;
        }
        let pte = self.memory.load(page.gfn, index);
        page.role.access & Self::paging(vm).access(pte)
    }

    /// Check everything that must hold between changes: every leaf is in the
    /// rmap of its frame and nothing else is; it lets through what the guest's
    /// own tables do, except writes that are to fault; parents and children agree;
    /// chains are well formed; counts are right. Nothing may run meanwhile.
    ///
    /// # Errors
    /// `EIO` naming what is wrong.
    pub fn verify(&self, vm: &Vm, cpu: &Cpu) -> Result<()> {
        let wrong = |what: String| Err(Error::new(Errno::EIO, format!("shadow MMU: {what}")));
        let _lock = cpu.write_lock(&vm.mmu_lock);
        let guard = cpu.rcu.lock();
        let ctx = Ctx {
            vm,
            cpu,
            guard: &guard,
        };
        let state = self.state.lock();
        let mut leaves: HashMap<SptePtr, ()> = HashMap::new();
        let mut links: HashMap<TableId, Vec<SptePtr>> = HashMap::new();
        let mut indirect = 0;
        for &id in state.active.values() {
            let page = state.page(id);
            indirect += u64::from(!page.role.direct);
            for index in 0..TABLE_ENTRIES {
                let ptr = SptePtr::new(id, index);
                let value = self.read(ptr);
                if !spte::is_present(value) {
                    if value != 0 {
                        return wrong(format!("SPTE {ptr:?} holds {value:#x}, not present"));
                    }
                } else if spte::is_last(value, page.role.level) {
                    let gfn = page.gfn_of(index);
                    let Some(slot) = ctx.slot(page.role.as_id, gfn) else {
                        return wrong(format!("SPTE {ptr:?} maps gfn {gfn:#x} without a slot"));
                    };
                    if slot.is_write_tracked(gfn)
                        && page.role.level == LEVEL_4K
                        && spte::is_writable(value)
                    {
                        return wrong(format!("shadowed gfn {gfn:#x} is mapped writable"));
                    }
                    let allowed = self.allowed_by_guest(vm, page, index);
                    if !vm.format().keeps_access(value, allowed) {
                        return wrong(format!(
                            "SPTE {ptr:?} of gfn {gfn:#x} is {value:#x}, and the guest's own \
                             tables allow {allowed:#b}"
                        ));
                    }
                    leaves.insert(ptr, ());
                } else {
                    links.entry(spte::table(value)).or_default().push(ptr);
                }
            }
        }
        for &child in state.active.values() {
            let mut expected = links.remove(&child).unwrap_or_default();
            let mut found = self.descs.verify(RmapHead(&state.page(child).parents))?;
            found.sort_unstable();
            expected.sort_unstable();
            if found != expected {
                return wrong(format!(
                    "page {} has parents {found:?}, linked from {expected:?}",
                    child.0
                ));
            }
        }
        if let Some((child, from)) = links.iter().next() {
            return wrong(format!(
                "{from:?} links page {}, which is not in use",
                child.0
            ));
        }
        for as_id in 0..vm.memslots.len() {
            for slot in vm.memslots.load(as_id, &guard).iter() {
                let Some(rmaps) = slot.rmaps_if_any() else {
                    continue;
                };
                for level in LEVEL_4K..=LEVEL_1G {
                    for head in rmaps.range(level, slot.base_gfn, slot.end_gfn()) {
                        for ptr in self.descs.verify(head)? {
                            let value = self.read(ptr);
                            if leaves.remove(&ptr).is_none() {
                                return wrong(format!(
                                    "the rmap holds {ptr:?}, which is {value:#x}, or twice"
                                ));
                            }
                            let page = state.page(ptr.table());
                            let gfn = page.gfn_of(ptr.index());
                            if page.role.level != level
                                || !std::ptr::eq(rmaps.head(gfn, level).0, head.0)
                            {
                                return wrong(format!("{ptr:?} is in the rmap of another frame"));
                            }
                        }
                    }
                }
            }
        }
        if let Some(ptr) = leaves.keys().next() {
            return wrong(format!("leaf {ptr:?} is in no rmap"));
        }
        let counted = self.indirect_pages.load(Ordering::Relaxed);
        if counted != indirect {
            return wrong(format!(
                "indirect_shadow_pages is {counted}, but {indirect} exist"
            ));
        }
        Ok(())
    }

    /// How many SPTEs map a frame, by level (`pte_list_count()`).
    pub fn chain_lengths(&self, vm: &Vm, cpu: &Cpu, as_id: usize, gfn: u64) -> [u64; 3] {
        let guard = cpu.rcu.lock();
        let slots = vm.memslots.load(as_id, &guard);
        let Some(rmaps) = slots.by_gfn(gfn).and_then(|slot| slot.rmaps_if_any()) else {
            return [0; 3];
        };
        std::array::from_fn(|n| {
            let head = rmaps.head(gfn, n as u32 + 1);
            let value = head.lock(&cpu.counters);
            if value == 0 {
                return 0;
            }
            let count = self.descs.count(value);
            head.unlock_readonly(value);
            count
        })
    }
}

/// Whether a change of an SPTE behind the holder of `mmu_lock` could be lost by
/// a plain store.
fn must_be_atomic(vm: &Vm, value: u64) -> bool {
    if mutant::active(Mutant::AdOffPlain) && !spte::ad_enabled(value) {
        return false;
    }
    vm.format()
        .has_volatile_bits(value, vm.protocol().accessed_volatile)
}

impl super::ShadowMmu for Shadow {
    fn indirect_shadow_pages(&self) -> u64 {
        // Relaxed: a stale 0 misses pages that are being made just now.
        self.indirect_pages.load(Ordering::Relaxed)
    }

    fn age_gfn_range(&self, vm: &Vm, cpu: &Cpu, range: &GfnRange<'_>, test: bool) -> bool {
        self.age_range(vm, cpu, range, test)
    }

    fn unmap_gfn_range(&self, vm: &Vm, cpu: &Cpu, range: &GfnRange<'_>) -> bool {
        let Some(rmaps) = range.slot.rmaps_if_any() else {
            return false;
        };
        let mut flush = false;
        for level in LEVEL_4K..=LEVEL_1G {
            for head in rmaps.range(level, range.start, range.end) {
                flush |= self.descs.zap_all(&cpu.counters, head, |ptr| {
                    self.spte_clear_track(vm, cpu, ptr);
                });
            }
        }
        flush
    }

    fn write_protect(&self, vm: &Vm, cpu: &Cpu, slot: &Arc<Memslot>, start: u64, end: u64) -> bool {
        self.locked(vm, cpu, |ctx, _| {
            self.rmaps_write_protect(ctx, slot, start, end, false)
        })
    }

    fn zap_all(&self, vm: &Vm, cpu: &Cpu) {
        self.locked(vm, cpu, |ctx, state| {
            while let Some((_, &id)) = state.active.first_key_value() {
                self.zap_page(ctx, state, id);
            }
            self.commit(ctx, state, true);
        });
    }

    fn guest(&self) -> &dyn GuestLoop {
        self
    }
}
