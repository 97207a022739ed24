//! A virtual machine: its memory, its MMUs, and the MMU notifier callbacks
//! that reach them (`virt/kvm/kvm_main.c`).

use super::memslot::{GfnRange, MAX_ADDRESS_SPACES, Spaces};
use super::mmu::ShadowMmu;
use super::mmu::spte::{LEVEL_1G, LEVEL_4K, SpteFormat};
use super::protocol::Protocol;
use crate::cpu::Cpu;
use crate::error::{Error, Result};
use crate::mm::memory::{PAGE_SHIFT, PAGE_SIZE};
use crate::mm::{Mm, MmuNotifier, Subscription};
use crate::sync::CachePadded;
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::sync::lock::QrwLock;
use crate::trace::{Counter, Event};
use std::sync::{Arc, OnceLock};

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
}

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
        Ok(())
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
        let seq = self.seq.load(Ordering::Relaxed);
        // Release: pairs with the acquire in `sequence` and `retry`.
        self.seq.store(seq + 1, Ordering::Release);
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
        // Acquire: the count is read before the sequence, as `end` writes them
        // the other way round.
        if self.in_progress.load(Ordering::Acquire) != 0
            && self.range_start.load(Ordering::Relaxed) <= gfn
            && gfn < self.range_end.load(Ordering::Relaxed)
        {
            return true;
        }
        self.seq.load(Ordering::Acquire) != seq
    }

    /// [`retry`](Self::retry) without `mmu_lock`, to spare taking it in vain
    /// (`mmu_invalidate_retry_gfn_unsafe()`).
    #[inline]
    pub fn retry_unsafe(&self, seq: u64, gfn: u64) -> bool {
        self.retry(seq, gfn)
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
    /// The shadow MMU, if it has one.
    pub shadow: Option<Box<dyn ShadowMmu>>,
    tlb_generation: CachePadded<AtomicU64>,
    subscription: OnceLock<Arc<Subscription>>,
    dead: AtomicBool,
}

impl Vm {
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
    #[inline]
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
        if end <= start {
            return Err(Error::invalid(format!(
                "walk of memslots over [{start:#x}, {end:#x}): the range is empty"
            )));
        }
        if handler.is_none() && on_lock.is_none() {
            return Err(Error::invalid(
                "walk of memslots with neither a handler nor on_lock",
            ));
        }
        if lockless && on_lock.is_some() {
            return Err(Error::invalid("lockless walk of memslots with on_lock"));
        }
        let mut result = HvaResult::default();
        let mut locked = None;
        let guard = cpu.rcu.lock();
        'walk: for as_id in 0..self.memslots.len() {
            for slot in self.memslots.load(as_id, &guard).in_hva_range(start, end) {
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

    /// Make every vCPU forget its translations, and wait until none uses an
    /// old one (`kvm_flush_remote_tlbs()`).
    pub fn flush_remote_tlbs(&self, cpu: &Cpu) {
        cpu.count(Counter::TlbFlushes);
        self.tlb_generation.fetch_add(1, Ordering::SeqCst);
    }
}
