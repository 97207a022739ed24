//! A virtual machine: its memory, its MMUs, and the MMU notifier callbacks
//! that reach them (`virt/kvm/kvm_main.c`).

use super::memslot::{
    Change, GfnRange, INVALID, MAX_ADDRESS_SPACES, MemoryRegion, Memslot, Spaces, Update,
};
use super::mmu::ShadowMmu;
use super::mmu::nested::L1_MMU;
use super::mmu::shadow::{Shadow, ShadowConfig};
use super::mmu::spte::{LEVEL_1G, LEVEL_4K, SpteFormat};
use super::mmu::tdp::TdpMmu;
use super::protocol::Protocol;
use super::tlb::TlbConfig;
use super::vcpu::{GuestLoop, Vcpu};
use crate::cpu::Cpu;
use crate::error::{Errno, Error, Result};
use crate::mm::memory::{PAGE_SHIFT, PAGE_SIZE};
use crate::mm::{Mm, MmuNotifier, PageMask, Subscription};
use crate::mutant::{self, Mutant};
use crate::sync::CachePadded;
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::sync::lock::QrwLock;
use crate::sync::once::OnceLock;
use crate::trace::{Counter, Event};
use std::sync::{Arc, Weak};

/// Which MMU maps the guest's memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MmuKind {
    /// The TDP MMU: two-dimensional paging.
    Tdp,
    /// The shadow MMU.
    Shadow,
    /// The TDP MMU, and the shadow MMU for the guest's own guest.
    Nested,
}

/// What a VM is to be.
#[derive(Clone, Debug)]
pub struct VmConfig {
    /// How it is aged.
    pub protocol: Protocol,
    /// Format of its SPTEs, and whether they have A/D bits.
    pub format: SpteFormat,
    /// Which MMU.
    pub mmu: MmuKind,
    /// Levels of a TDP root: 4 or 5.
    pub levels: u32,
    /// Address spaces: 1, or 2 with system management mode.
    pub address_spaces: usize,
    /// The highest level of a leaf: 1, 2 or 3.
    pub max_level: u32,
    /// Deleting or moving a slot zaps everything (`KVM_X86_QUIRK_SLOT_ZAP_ALL`),
    /// else only what maps the slot.
    pub slot_zap_all: bool,
    /// What its shadow MMU is to be, if it has one.
    pub shadow: ShadowConfig,
    /// vCPUs, 1 to [`MAX_VCPUS`].
    pub vcpus: u32,
    /// The TLB of each vCPU.
    pub tlb: TlbConfig,
}

/// vCPUs of a VM (`KVM_MAX_VCPUS`).
pub const MAX_VCPUS: u32 = 4096;

impl Default for VmConfig {
    fn default() -> Self {
        VmConfig {
            protocol: Protocol::V7,
            format: SpteFormat::EPT,
            mmu: MmuKind::Tdp,
            levels: 4,
            address_spaces: 1,
            max_level: LEVEL_1G,
            slot_zap_all: true,
            shadow: ShadowConfig::default(),
            vcpus: 1,
            tlb: TlbConfig::OFF,
        }
    }
}

impl VmConfig {
    /// # Errors
    /// `EINVAL` names the first field that is out of range.
    pub fn check(&self) -> Result<()> {
        if !(4..=5).contains(&self.levels) {
            return Err(Error::invalid(format!(
                "a TDP root has 4 or 5 levels, not {}",
                self.levels
            )));
        }
        if !(1..=MAX_ADDRESS_SPACES).contains(&self.address_spaces) {
            return Err(Error::invalid(format!(
                "a VM has 1 to {MAX_ADDRESS_SPACES} address spaces, not {}",
                self.address_spaces
            )));
        }
        if !(LEVEL_4K..=LEVEL_1G).contains(&self.max_level) {
            return Err(Error::invalid(format!(
                "the highest leaf level is {LEVEL_4K} to {LEVEL_1G}, not {}",
                self.max_level
            )));
        }
        if self.format.name != "ept" && !self.format.ad_bits {
            return Err(Error::invalid(
                "only EPT can be without accessed and dirty bits, not NPT",
            ));
        }
        if !(1..=MAX_VCPUS).contains(&self.vcpus) {
            return Err(Error::invalid(format!(
                "a VM has 1 to {MAX_VCPUS} vCPUs, not {}",
                self.vcpus
            )));
        }
        self.tlb.check()?;
        self.shadow.check(self.mmu, &self.format)
    }
}

/// Invalidations of memory that run, and how many have ended
/// (`mmu_invalidate_in_progress`, `mmu_invalidate_seq`).
///
/// Written under `mmu_lock` for write, read under it for read; two fields are
/// also read without it, where a stale value only costs a retry.
#[derive(Default)]
pub struct Invalidate {
    in_progress: AtomicU64,
    seq: AtomicU64,
    range_start: AtomicU64,
    range_end: AtomicU64,
}

impl Invalidate {
    /// The sequence before a fault looks at memory.
    #[inline]
    pub fn sequence(&self) -> u64 {
        // Acquire: the fault's look at the primary page tables stays after it
        // (`smp_rmb()`); pairs with the release in `end`.
        self.seq.load(Ordering::Acquire)
    }

    /// `kvm_mmu_invalidate_begin()`.
    fn begin(&self) {
        let running = self.in_progress.load(Ordering::Relaxed) + 1;
        // Relaxed: `mmu_lock` is held for write.
        self.in_progress.store(running, Ordering::Relaxed);
        if running == 1 {
            self.range_start.store(u64::MAX, Ordering::Relaxed);
            self.range_end.store(0, Ordering::Relaxed);
        }
    }

    /// Merge a range into the hull (`kvm_mmu_invalidate_range_add()`).
    fn add(&self, start: u64, end: u64) {
        debug_assert!(self.in_progress.load(Ordering::Relaxed) > 0);
        let low = self.range_start.load(Ordering::Relaxed).min(start);
        let high = self.range_end.load(Ordering::Relaxed).max(end);
        self.range_start.store(low, Ordering::Relaxed);
        self.range_end.store(high, Ordering::Relaxed);
    }

    /// `kvm_mmu_invalidate_end()`. The sequence moves before the count falls:
    /// a fault that finds the count 0 must find the new sequence.
    fn end(&self) {
        let early = mutant::active(Mutant::SeqAfterCount);
        if early {
            let running = self.in_progress.load(Ordering::Relaxed);
            self.in_progress.store(running - 1, Ordering::Release);
        }
        let seq = self.seq.load(Ordering::Relaxed);
        // Release: pairs with the acquire in `sequence` and `retry_unsafe`.
        self.seq.store(seq + 1, Ordering::Release);
        if early {
            return;
        }
        let running = self.in_progress.load(Ordering::Relaxed);
        debug_assert!(running > 0, "an invalidation ended that never began");
        // Release: as above; a reader of the count that acquires sees the
        // sequence.
        self.in_progress.store(running - 1, Ordering::Release);
    }

    /// Whether a fault that sampled `seq` must be tried again
    /// (`mmu_invalidate_retry_gfn()`). Under `mmu_lock`.
    #[inline]
    pub fn retry(&self, seq: u64, gfn: u64) -> bool {
        // Relaxed: all of them are written under `mmu_lock` for write.
        self.stale(seq, gfn, Ordering::Relaxed)
    }

    /// [`retry`](Self::retry) without `mmu_lock`, to spare taking it in vain
    /// (`mmu_invalidate_retry_gfn_unsafe()`): true may be wrong, for the range
    /// may be half written, and false may be late, so it is asked again under
    /// the lock.
    #[inline]
    pub fn retry_unsafe(&self, seq: u64, gfn: u64) -> bool {
        // Acquire: the count is read before the sequence, as `end` writes them
        // the other way round.
        self.stale(seq, gfn, Ordering::Acquire)
    }

    #[inline(always)]
    fn stale(&self, seq: u64, gfn: u64, order: Ordering) -> bool {
        if self.in_progress.load(order) != 0
            && self.range_start.load(Ordering::Relaxed) <= gfn
            && gfn < self.range_end.load(Ordering::Relaxed)
        {
            return true;
        }
        self.seq.load(order) != seq
    }

    /// The words of the sequence and of the count, for a checker's report.
    #[cfg(loom)]
    pub fn words(&self) -> (&AtomicU64, &AtomicU64) {
        (&self.seq, &self.in_progress)
    }

    /// How many invalidations run.
    pub fn in_progress(&self) -> u64 {
        self.in_progress.load(Ordering::Relaxed)
    }

    /// The hull of the ranges of those that run, in guest frames.
    pub fn range(&self) -> (u64, u64) {
        (
            self.range_start.load(Ordering::Relaxed),
            self.range_end.load(Ordering::Relaxed),
        )
    }
}

/// One walk over the memslots that overlap host addresses
/// (`struct kvm_mmu_notifier_range`).
pub struct HvaRange<H, L> {
    /// First byte.
    pub start: u64,
    /// One past the last byte.
    pub end: u64,
    /// What to do with each range of guest frames; its value is ORed.
    pub handler: Option<H>,
    /// What to do once, when `mmu_lock` has been taken.
    pub on_lock: Option<L>,
    /// Flush TLBs, before the lock is dropped, if a handler returned true.
    pub flush_on_ret: bool,
    /// Whether handlers may block.
    pub may_block: bool,
    /// Take no lock.
    pub lockless: bool,
    /// Passed on to the handler.
    pub fast_only: bool,
}

/// What a walk found (`struct kvm_mmu_notifier_return`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct HvaResult {
    /// The handlers' answers, ORed.
    pub ret: bool,
    /// Whether a memslot overlapped.
    pub found_memslot: bool,
}

/// No `on_lock`, for [`HvaRange`].
pub const NO_LOCK: Option<fn()> = None;
/// No handler, for [`HvaRange`].
pub const NO_HANDLER: Option<fn(&GfnRange<'_>) -> bool> = None;

/// A virtual machine (`struct kvm`).
pub struct Vm {
    /// The process whose memory the guest sees.
    pub mm: Arc<Mm>,
    /// What it was made as.
    pub config: VmConfig,
    /// Guards the SPTEs: held for read by faults of the TDP MMU, for write by
    /// invalidation and by everything in the shadow MMU.
    pub mmu_lock: CachePadded<QrwLock>,
    /// Its memslots.
    pub memslots: Spaces,
    /// Invalidations.
    pub invalidate: Invalidate,
    /// The TDP MMU, if it has one.
    pub tdp: Option<TdpMmu>,
    /// The shadow MMU, if it has one.
    pub shadow: Option<Box<Shadow>>,
    /// Its vCPUs; those of an odd number run in the second address space where
    /// there are two.
    pub vcpus: Vec<Vcpu>,
    /// How many TLB flushes were asked for.
    pub(super) tlb_generation: CachePadded<AtomicU64>,
    /// The process's list owns the subscription, which owns the VM: a VM that
    /// owned it too would own itself.
    subscription: OnceLock<Weak<Subscription>>,
    dead: AtomicBool,
    torn_down: AtomicBool,
}

impl Vm {
    /// A VM of a process, without memory. It subscribes to the process's MMU
    /// notifiers, and says whether it is fast once it is set up.
    ///
    /// # Errors
    /// As [`VmConfig::check`]; `ENOMEM` without room for the guest's own page
    /// tables.
    pub fn create(cpu: &Cpu, mm: &Arc<Mm>, config: VmConfig) -> Result<Arc<Vm>> {
        config.check()?;
        let shadow = (config.mmu != MmuKind::Tdp).then(|| Box::new(Shadow::new()));
        let vcpus = (0..config.vcpus)
            .map(|id| Vcpu::new(id, id as usize % config.address_spaces, config.tlb))
            .collect();
        let vm = Arc::new(Vm {
            mm: Arc::clone(mm),
            mmu_lock: CachePadded::new(QrwLock::new()),
            memslots: Spaces::new(&cpu.host().rcu, config.address_spaces),
            invalidate: Invalidate::default(),
            tdp: (config.mmu != MmuKind::Shadow).then(|| TdpMmu::new(cpu)),
            shadow,
            vcpus,
            tlb_generation: CachePadded::new(AtomicU64::new(0)),
            subscription: OnceLock::new(),
            dead: AtomicBool::new(false),
            torn_down: AtomicBool::new(false),
            config,
        });
        let subscription = mm.register_notifier(cpu, Arc::clone(&vm) as Arc<dyn MmuNotifier>);
        subscription.set_fast_aging(&mm.notifiers, vm.protocol().has_fast_aging);
        let first = vm.subscription.set(Arc::downgrade(&subscription));
        debug_assert!(first.is_ok(), "a VM is registered once");
        if let Some(shadow) = &vm.shadow
            && let Err(error) = shadow.boot(&vm, cpu)
        {
            vm.destroy(cpu)?;
            return Err(error);
        }
        Ok(vm)
    }

    /// End it: vCPUs leave the guest with `EIO`, no notifier callback runs
    /// after this returns, and all its page-table pages go to RCU.
    ///
    /// # Errors
    /// `EINVAL` when it was destroyed before, `EBUSY` from inside a notifier
    /// callback.
    pub fn destroy(&self, cpu: &Cpu) -> Result<()> {
        let subscription = self
            .subscription
            .get()
            .ok_or_else(|| Error::invalid("the VM was never set up"))?;
        Mm::refuse_inside_call(cpu)?;
        if let Some(subscription) = subscription.upgrade() {
            // Fails when the mm went first, and released the VM; or this is
            // the second call.
            let _ = self.mm.unregister_notifier(cpu, &subscription);
        }
        // Where the mm went first it may still wait for its last calls.
        cpu.host().srcu.synchronize();
        self.memslots.no_more_invalidations();
        if self.torn_down.swap(true, Ordering::AcqRel) {
            return Err(Error::invalid("the VM was destroyed before"));
        }
        let _slots = self.memslots.slots_lock.lock();
        self.unload_vcpus(cpu);
        if let Some(shadow) = &self.shadow {
            shadow.shut_down(self, cpu);
        }
        if let Some(tdp) = &self.tdp {
            tdp.zap_invalidated_roots(self, cpu);
        }
        Ok(())
    }

    /// The MMU that a vCPU's guest runs on.
    pub(super) fn guest_mmu(&self, vcpu: &Vcpu) -> Option<&dyn GuestLoop> {
        match (&self.shadow, &self.tdp) {
            (Some(shadow), Some(_)) if vcpu.shadow.is_l2() => Some(shadow.guest()),
            (Some(_), Some(_)) => Some(&L1_MMU),
            (Some(shadow), None) => Some(shadow.guest()),
            (_, Some(tdp)) => Some(tdp),
            (None, None) => None,
        }
    }

    /// Format of its SPTEs.
    #[inline]
    pub fn format(&self) -> &SpteFormat {
        &self.config.format
    }

    /// How it is aged.
    #[inline]
    pub fn protocol(&self) -> &Protocol {
        &self.config.protocol
    }

    /// Whether it was destroyed, or its mm has exited.
    #[inline]
    pub fn is_dead(&self) -> bool {
        self.dead.load(Ordering::Acquire)
    }

    /// The one walk that serves every notifier callback
    /// (`__kvm_handle_hva_range()`).
    ///
    /// # Errors
    /// `EINVAL` for an empty range, a walk with neither handler nor `on_lock`,
    /// and a lockless walk with `on_lock`: programming errors.
    // Always inlined: an aging walk gets here once a page.
    #[inline(always)]
    pub fn handle_hva_range<H, L>(&self, cpu: &Cpu, range: HvaRange<H, L>) -> Result<HvaResult>
    where
        H: FnMut(&GfnRange<'_>) -> bool,
        L: FnOnce(),
    {
        let HvaRange {
            start,
            end,
            mut handler,
            mut on_lock,
            flush_on_ret,
            may_block,
            lockless,
            fast_only,
        } = range;
        if end <= start
            || (handler.is_none() && on_lock.is_none())
            || (lockless && on_lock.is_some())
        {
            return Err(refused(start, end, lockless));
        }
        let mut result = HvaResult::default();
        let mut locked = None;
        let guard = cpu.rcu.lock();
        'walk: for slots in self.memslots.load_all(&guard) {
            for slot in slots.in_hva_range(start, end) {
                if !result.found_memslot {
                    result.found_memslot = true;
                    if !lockless {
                        locked = Some(cpu.write_lock(&self.mmu_lock));
                        if let Some(on_lock) = on_lock.take() {
                            on_lock();
                        }
                    }
                }
                let Some(handler) = &mut handler else {
                    break 'walk;
                };
                cpu.count(Counter::MemslotsVisited);
                let first = start.max(slot.userspace_addr);
                let last = end.min(slot.end_hva());
                // {gfn(page) | page intersects [start, end)}
                result.ret |= handler(&GfnRange {
                    slot,
                    start: slot.hva_to_gfn(first),
                    end: slot.base_gfn
                        + ((last - slot.userspace_addr + PAGE_SIZE - 1) >> PAGE_SHIFT),
                    may_block,
                    lockless,
                    fast_only,
                });
            }
        }
        if flush_on_ret && result.ret {
            self.flush_remote_tlbs(cpu);
        }
        drop(locked);
        Ok(result)
    }
}

/// Why a walk of memslots was refused.
#[cold]
fn refused(start: u64, end: u64, lockless: bool) -> Error {
    Error::invalid(if end <= start {
        format!("walk of memslots over [{start:#x}, {end:#x}): the range is empty")
    } else if lockless {
        "lockless walk of memslots with on_lock, or with no handler".into()
    } else {
        "walk of memslots with neither a handler nor on_lock".into()
    })
}

// ---- memslots ----

impl Vm {
    /// Create, change, move or delete a memslot (`KVM_SET_USER_MEMORY_REGION`).
    /// vCPUs may run and others may age meanwhile.
    ///
    /// # Errors
    /// `EINVAL` for a malformed or contradictory request, `EEXIST` when it
    /// overlaps another slot, `EBUSY` from inside a notifier callback or an
    /// RCU section, which it would wait for.
    pub fn set_memory_region(&self, cpu: &Cpu, region: &MemoryRegion) -> Result<()> {
        if cpu.rcu.is_inside() || cpu.srcu.is_inside() {
            return Err(Error::new(
                Errno::EBUSY,
                "memslots cannot change from inside a notifier call",
            ));
        }
        let _slots = self.memslots.slots_lock.lock();
        let Some(update) = self.memslots.prepare(cpu, region)? else {
            return Ok(());
        };
        self.set_memslot(cpu, region.as_id, region.slot, &update);
        Ok(())
    }

    /// `kvm_set_memslot()`.
    fn set_memslot(&self, cpu: &Cpu, as_id: usize, id: u32, update: &Update) {
        let Update { change, old, new } = update;
        if let (Change::Delete | Change::Move, Some(old)) = (change, old) {
            // First an INVALID copy: no fault maps anything of it from here
            // on, and then nothing of it is mapped.
            let invalid = Arc::new(Memslot {
                flags: old.flags | INVALID,
                ..Memslot::clone(old)
            });
            self.memslots.swap(cpu, as_id, id, Some(&invalid));
            self.flush_shadow_memslot(cpu, old);
        }
        self.memslots.swap(cpu, as_id, id, new.as_ref());
        if let (Change::FlagsOnly, Some(old), Some(new)) = (change, old, new) {
            self.apply_flags(cpu, old, new);
        }
    }

    /// Unmap what a slot that goes has mapped (`kvm_arch_flush_shadow_memslot()`).
    fn flush_shadow_memslot(&self, cpu: &Cpu, slot: &Arc<Memslot>) {
        if self.config.slot_zap_all {
            self.zap_all_fast(cpu);
            return;
        }
        let range = GfnRange {
            slot,
            start: slot.base_gfn,
            end: slot.end_gfn(),
            may_block: true,
            lockless: false,
            fast_only: false,
        };
        let _exclusive = cpu.write_lock(&self.mmu_lock);
        if self.unmap_gfn_range(cpu, &range) {
            self.flush_remote_tlbs(cpu);
        }
        if let Some(shadow) = &self.shadow {
            shadow.zap_slot_pages(self, cpu, slot);
        }
    }

    /// Unmap everything by invalidating roots, which vCPUs then reload
    /// (`kvm_mmu_zap_all_fast()`).
    fn zap_all_fast(&self, cpu: &Cpu) {
        {
            let _exclusive = cpu.write_lock(&self.mmu_lock);
            if let Some(tdp) = &self.tdp {
                tdp.invalidate_all_roots(self, cpu);
            }
            if let Some(shadow) = &self.shadow {
                shadow.zap_all(self, cpu);
            }
            self.flush_remote_tlbs(cpu);
        }
        if let Some(tdp) = &self.tdp {
            tdp.zap_invalidated_roots(self, cpu);
        }
    }

    /// What follows from changed flags (`kvm_mmu_slot_apply_flags()`).
    fn apply_flags(&self, cpu: &Cpu, old: &Memslot, new: &Arc<Memslot>) {
        match (old.logs_dirty(), new.logs_dirty()) {
            (false, true) => {
                let (start, end) = (new.base_gfn, new.end_gfn());
                let mut flush = false;
                if let Some(shadow) = &self.shadow {
                    let _exclusive = cpu.write_lock(&self.mmu_lock);
                    flush |= shadow.write_protect(self, cpu, new, start, end);
                }
                if let Some(tdp) = &self.tdp {
                    let _shared = cpu.read_lock(&self.mmu_lock);
                    flush |= tdp.write_protect(self, cpu, new, start, end);
                }
                if flush {
                    self.flush_remote_tlbs(cpu);
                }
            }
            (true, false) => {
                if let Some(tdp) = &self.tdp {
                    tdp.zap_collapsible(self, cpu, new);
                }
            }
            _ => {}
        }
    }

    fn slot_for_log(&self, cpu: &Cpu, as_id: usize, id: u32) -> Result<Arc<Memslot>> {
        if as_id >= self.memslots.len() {
            return Err(Error::invalid(format!(
                "memslot {as_id}:{id}: this VM has {} address space(s)",
                self.memslots.len()
            )));
        }
        let guard = cpu.rcu.lock();
        let slot = self.memslots.load(as_id, &guard).by_id(id);
        slot.filter(|slot| slot.dirty_bitmap.is_some())
            .cloned()
            .ok_or_else(|| {
                Error::new(
                    Errno::ENOENT,
                    format!("memslot {as_id}:{id} does not exist or does not log dirty pages"),
                )
            })
    }

    /// Pages written since the last call, one bit each, and write-protect them
    /// again so that the next write is seen (`KVM_GET_DIRTY_LOG`).
    ///
    /// # Errors
    /// `ENOENT` when the slot does not exist or does not log dirty pages.
    pub fn get_dirty_log(&self, cpu: &Cpu, as_id: usize, id: u32) -> Result<Vec<u64>> {
        let _slots = self.memslots.slots_lock.lock();
        let slot = self.slot_for_log(cpu, as_id, id)?;
        let all = vec![u64::MAX; slot.npages.div_ceil(64) as usize];
        Ok(self.harvest(cpu, &slot, 0, &all))
    }

    /// The log as it is, without clearing anything (`KVM_GET_DIRTY_LOG` under
    /// `KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2`).
    ///
    /// # Errors
    /// As [`get_dirty_log`](Self::get_dirty_log).
    pub fn peek_dirty_log(&self, cpu: &Cpu, as_id: usize, id: u32) -> Result<Vec<u64>> {
        let slot = self.slot_for_log(cpu, as_id, id)?;
        let bitmap = slot.dirty_bitmap.iter().flat_map(|words| words.iter());
        Ok(bitmap.map(|w| w.load(Ordering::Acquire)).collect())
    }

    /// Clear the bits of `bitmap` in the log, from page `first` of the slot on,
    /// and write-protect those pages again (`KVM_CLEAR_DIRTY_LOG`).
    ///
    /// # Errors
    /// `ENOENT` as above, `EINVAL` unless `first` is a multiple of 64 and the
    /// bitmap ends inside the slot.
    pub fn clear_dirty_log(
        &self,
        cpu: &Cpu,
        as_id: usize,
        id: u32,
        first: u64,
        bitmap: &[u64],
    ) -> Result<()> {
        let _slots = self.memslots.slots_lock.lock();
        let slot = self.slot_for_log(cpu, as_id, id)?;
        let words = slot.npages.div_ceil(64);
        if !first.is_multiple_of(64) || first / 64 + bitmap.len() as u64 > words {
            return Err(Error::invalid(format!(
                "{} words of dirty bits from page {first} on of {slot:?}: expected a multiple of \
                 64 and an end within {words} words",
                bitmap.len()
            )));
        }
        self.harvest(cpu, &slot, first / 64, bitmap);
        Ok(())
    }

    /// Take the bits of `mask` out of the log and write-protect their pages
    /// (`kvm_get_dirty_log_protect()`).
    fn harvest(&self, cpu: &Cpu, slot: &Arc<Memslot>, first: u64, mask: &[u64]) -> Vec<u64> {
        let Some(bitmap) = &slot.dirty_bitmap else {
            return Vec::new();
        };
        let _exclusive = cpu.write_lock(&self.mmu_lock);
        let mut taken = Vec::with_capacity(mask.len());
        let mut flush = false;
        for (n, &mask) in mask.iter().enumerate() {
            let at = first + n as u64;
            let word = &bitmap[at as usize];
            // A load first: most of a log is usually empty.
            let dirty = if word.load(Ordering::Relaxed) & mask == 0 {
                0
            } else {
                // Acquire: pairs with the release in `Memslot::mark_dirty`.
                word.fetch_and(!mask, Ordering::AcqRel) & mask
            };
            taken.push(dirty);
            if dirty == 0 {
                continue;
            }
            flush = true;
            let gfn = slot.base_gfn + at * 64;
            if let Some(tdp) = &self.tdp {
                tdp.write_protect_masked(self, cpu, slot.as_id, gfn, dirty);
            }
            if let Some(shadow) = &self.shadow {
                let mut rest = dirty;
                while rest != 0 {
                    let page = gfn + u64::from(rest.trailing_zeros());
                    rest &= rest - 1;
                    shadow.write_protect(self, cpu, slot, page, page + 1);
                }
            }
        }
        if flush {
            // Before the caller reads the pages: a write through a stale
            // translation would be in no log.
            self.flush_remote_tlbs(cpu);
        }
        taken
    }
}

// ---- what the handlers of notifier callbacks do ----

impl Vm {
    /// Whether the shadow MMU can map anything (`kvm_may_have_shadow_mmu_sptes()`).
    #[inline]
    fn shadow_in_use(&self) -> Option<&Shadow> {
        let shadow = self.shadow.as_deref()?;
        (self.tdp.is_none() || shadow.indirect_shadow_pages() > 0).then_some(shadow)
    }

    /// Zap a range in both MMUs (`kvm_unmap_gfn_range()`). `mmu_lock` is held
    /// for write.
    fn unmap_gfn_range(&self, cpu: &Cpu, range: &GfnRange<'_>) -> bool {
        let mut flush = false;
        if let Some(shadow) = &self.shadow {
            flush |= shadow.unmap_gfn_range(self, cpu, range);
        }
        if let Some(tdp) = &self.tdp {
            flush |= tdp.zap_leafs(self, cpu, range.slot.as_id, range.start, range.end);
        }
        flush
    }

    /// Age a range in both MMUs (`kvm_age_gfn()`).
    // Always inlined: called once a page, and a frame of its own costs a tenth
    // of the walk.
    #[inline(always)]
    fn age_gfn(&self, cpu: &Cpu, range: &GfnRange<'_>) -> bool {
        let mut young = false;
        if let Some(tdp) = &self.tdp {
            young |= tdp.age_gfn_range(self, cpu, range);
        }
        if let Some(shadow) = self.shadow_in_use() {
            young |= shadow.age_gfn_range(self, cpu, range, false);
        }
        young
    }

    /// Age single pages of a range in both MMUs: those of `wanted`, in which
    /// the first of the range is page `first`.
    fn age_gfns(
        &self,
        cpu: &Cpu,
        range: &GfnRange<'_>,
        wanted: &PageMask,
        first: usize,
        young: &mut PageMask,
    ) {
        if let (Some(tdp), None) = (&self.tdp, self.shadow_in_use()) {
            return tdp.age_gfns(self, cpu, range, wanted, first, young);
        }
        for gfn in range.start..range.end {
            let n = first + (gfn - range.start) as usize;
            let page = GfnRange {
                start: gfn,
                end: gfn + 1,
                ..*range
            };
            if wanted.has(n) && self.age_gfn(cpu, &page) {
                young.set(n);
            }
        }
    }

    /// Whether a range is young in either MMU (`kvm_test_age_gfn()`).
    fn test_age_gfn(&self, cpu: &Cpu, range: &GfnRange<'_>) -> bool {
        if let Some(tdp) = &self.tdp
            && tdp.test_age_gfn_range(self, cpu, range)
        {
            return true;
        }
        self.shadow_in_use()
            .is_some_and(|shadow| shadow.age_gfn_range(self, cpu, range, true))
    }

    #[inline]
    fn walk_young(
        &self,
        cpu: &Cpu,
        (start, end): (u64, u64),
        fast_only: bool,
        flush_on_ret: bool,
        handler: impl FnMut(&GfnRange<'_>) -> bool,
    ) -> bool {
        let lockless = self.protocol().young_lockless;
        self.walk_young_as(
            cpu,
            (start, end),
            fast_only,
            flush_on_ret,
            lockless,
            handler,
        )
    }

    #[inline(always)]
    fn walk_young_as(
        &self,
        cpu: &Cpu,
        (start, end): (u64, u64),
        fast_only: bool,
        flush_on_ret: bool,
        lockless: bool,
        handler: impl FnMut(&GfnRange<'_>) -> bool,
    ) -> bool {
        let walked = self.handle_hva_range(
            cpu,
            HvaRange {
                start,
                end,
                handler: Some(handler),
                on_lock: NO_LOCK,
                flush_on_ret,
                may_block: false,
                lockless,
                fast_only,
            },
        );
        match walked {
            Ok(result) => result.ret,
            Err(error) => {
                cpu.raise(error);
                false
            }
        }
    }
}

/// Two copies of one walk, so that the one without a lock, which an aging pass
/// makes once a page, is not built around one.
impl Vm {
    #[inline(never)]
    fn clear_young_lockless(&self, cpu: &Cpu, start: u64, end: u64, fast_only: bool) -> bool {
        cpu.trace(Event::KvmAgeHva, &[start, end, u64::from(fast_only)]);
        self.walk_young_as(cpu, (start, end), fast_only, false, true, |range| {
            self.age_gfn(cpu, range)
        })
    }

    #[inline(never)]
    fn clear_young_locked(&self, cpu: &Cpu, start: u64, end: u64, fast_only: bool) -> bool {
        cpu.trace(Event::KvmAgeHva, &[start, end, u64::from(fast_only)]);
        self.walk_young_as(cpu, (start, end), fast_only, false, false, |range| {
            self.age_gfn_outlined(cpu, range)
        })
    }

    /// The exchange that lets go of `mmu_lock` waits for every store before it:
    /// a frame of its own has fewer than one large frame, which spills.
    #[inline(never)]
    fn age_gfn_outlined(&self, cpu: &Cpu, range: &GfnRange<'_>) -> bool {
        self.age_gfn(cpu, range)
    }
}

impl MmuNotifier for Vm {
    fn clear_flush_young(&self, cpu: &Cpu, start: u64, end: u64) -> bool {
        cpu.trace(Event::KvmAgeHva, &[start, end, 0]);
        self.walk_young(cpu, (start, end), false, true, |range| {
            self.age_gfn(cpu, range)
        })
    }

    #[inline]
    fn clear_young(&self, cpu: &Cpu, start: u64, end: u64, fast_only: bool) -> bool {
        // No flush, even where the architecture needs one to see the next
        // access: a stale "old" is tolerated.
        if self.protocol().young_lockless {
            self.clear_young_lockless(cpu, start, end, fast_only)
        } else {
            self.clear_young_locked(cpu, start, end, fast_only)
        }
    }

    fn clear_young_each(
        &self,
        cpu: &Cpu,
        start: u64,
        wanted: &PageMask,
        fast_only: bool,
    ) -> PageMask {
        let mut young = PageMask::EMPTY;
        let Some((first, last)) = wanted.span() else {
            return young;
        };
        let at = |n: usize| start + n as u64 * PAGE_SIZE;
        cpu.trace(
            Event::KvmAgeHva,
            &[at(first), at(last), u64::from(fast_only)],
        );
        self.walk_young(cpu, (at(first), at(last)), fast_only, false, |range| {
            let hva = range.slot.gfn_to_hva(range.start);
            let first = ((hva - start) >> PAGE_SHIFT) as usize;
            self.age_gfns(cpu, range, wanted, first, &mut young);
            false
        });
        young
    }

    fn test_young(&self, cpu: &Cpu, address: u64, fast_only: bool) -> bool {
        cpu.trace(Event::KvmTestAgeHva, &[address, u64::from(fast_only)]);
        self.walk_young(cpu, (address, address + 1), fast_only, false, |range| {
            self.test_age_gfn(cpu, range)
        })
    }

    fn invalidate_range_start(&self, cpu: &Cpu, start: u64, end: u64) {
        cpu.trace(Event::KvmUnmapHvaRange, &[start, end]);
        // Slots must not be swapped between this start and its end, or one of
        // them would find a slot and the other not.
        self.memslots.invalidation_begins();
        let walked = self.handle_hva_range(
            cpu,
            HvaRange {
                start,
                end,
                handler: Some(|range: &GfnRange<'_>| {
                    self.invalidate.add(range.start, range.end);
                    self.unmap_gfn_range(cpu, range)
                }),
                on_lock: Some(|| self.invalidate.begin()),
                flush_on_ret: true,
                may_block: true,
                lockless: false,
                fast_only: false,
            },
        );
        if let Err(error) = walked {
            cpu.raise(error);
        }
    }

    fn invalidate_range_end(&self, cpu: &Cpu, start: u64, end: u64) {
        let walked = self.handle_hva_range(
            cpu,
            HvaRange {
                start,
                end,
                handler: NO_HANDLER,
                on_lock: Some(|| self.invalidate.end()),
                flush_on_ret: false,
                may_block: true,
                lockless: false,
                fast_only: false,
            },
        );
        if let Err(error) = walked {
            cpu.raise(error);
        }
        self.memslots.invalidation_ends();
    }

    fn release(&self, cpu: &Cpu) {
        let _exclusive = cpu.write_lock(&self.mmu_lock);
        // Under `mmu_lock`: no fault that has not seen it maps anything later.
        self.dead.store(true, Ordering::Release);
        if let Some(tdp) = &self.tdp {
            tdp.invalidate_all_roots(self, cpu);
        }
        if let Some(shadow) = &self.shadow {
            shadow.zap_all(self, cpu);
        }
        self.flush_remote_tlbs(cpu);
        drop(_exclusive);
        if let Some(tdp) = &self.tdp {
            tdp.zap_invalidated_roots(self, cpu);
        }
    }
}
