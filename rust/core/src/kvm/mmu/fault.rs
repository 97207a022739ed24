//! What the faults of both MMUs have in common: from a guest frame to a host
//! frame (`kvm_faultin_pfn()`, `hva_to_pfn()`, `is_page_fault_stale()`), and
//! what can be fixed without `mmu_lock` (`fast_page_fault()`).

use super::spte::{self, LEVEL_1G, LEVEL_4K, WRITABLE, gfn_shift, is_present_leaf, is_writable};
use super::walk::{Root, lookup};
use crate::access::AccessKind;
use crate::cpu::Cpu;
use crate::error::{Errno, Error, Result};
use crate::kvm::memslot::Memslot;
use crate::kvm::vcpu::Vcpu;
use crate::kvm::vm::Vm;
use crate::lru_gen;
use crate::mm::{Pfn, PhysMem};
use crate::mutant::{self, Mutant};
use crate::sync::atomic::Ordering;
use crate::sync::rcu::Guard;
use crate::table::{Arena, POISON};
use crate::trace::{Counter, Event};
use std::ops::Deref;

const FAST_PAGE_FAULT_TRIES: u32 = 4;

/// How a fault ended (`RET_PF_*`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// An SPTE was set.
    Fixed,
    /// Someone else had set it.
    Spurious,
    /// Lost a race; the access is tried again.
    Retry,
}

impl Outcome {
    /// Count how a fault ended.
    pub(super) fn count(self, cpu: &Cpu) {
        match self {
            Outcome::Fixed => {}
            Outcome::Spurious => cpu.count(Counter::SpuriousFaults),
            Outcome::Retry => cpu.count(Counter::FaultRetries),
        }
    }
}

/// A fault of a vCPU begins.
pub(super) fn begin(cpu: &Cpu, vcpu: &Vcpu, page: u64, kind: AccessKind) {
    cpu.count(Counter::KvmPageFaults);
    cpu.trace(
        Event::KvmPageFault,
        &[u64::from(vcpu.id), page, kind as u64],
    );
}

/// # Errors
/// `EFAULT` for a frame beyond what a root of `levels` reaches.
pub(super) fn check_reach(gfn: u64, levels: u32) -> Result<()> {
    let reach = gfn_shift(levels + 1);
    if gfn >> reach == 0 {
        return Ok(());
    }
    Err(Error::new(
        Errno::EFAULT,
        format!(
            "guest access to gfn {gfn:#x}: {levels} levels of page tables reach only {:#x}",
            1u64 << reach
        ),
    ))
}

/// Fix a fault without `mmu_lock` (`fast_page_fault()`): give write permission
/// back to an MMU-writable SPTE, restore an access-tracked one. For tables that
/// map guest frames directly. `access`: what it was, and whether the processor
/// found an SPTE that only lacked the permission.
pub(super) fn fast_page_fault<M: Default>(
    tables: &Arena<M>,
    root: Root,
    (vm, cpu, vcpu): (&Vm, &Cpu, &Vcpu),
    gfn: u64,
    access: (AccessKind, bool),
) -> Option<Outcome> {
    let (kind, present) = access;
    let write = kind.is_write();
    let format = vm.format();
    // With A/D bits, only a write to a present SPTE can be fixed here.
    if if present { !write } else { format.ad_bits } {
        return None;
    }
    let guard = cpu.rcu.lock();
    for _ in 0..FAST_PAGE_FAULT_TRIES {
        let (level, word) = lookup(tables, root, gfn);
        cpu.count(Counter::SpteWalkLoads);
        let old = word.load(Ordering::Acquire);
        if !is_present_leaf(old, level) {
            if old == POISON {
                cpu.count(Counter::PoisonReads);
            }
            return None;
        }
        if format.allows(old, kind) {
            return Some(Outcome::Spurious);
        }
        let mut new = old;
        if spte::is_access_tracked(old) {
            new = spte::restore_access_track(old);
        }
        let slots = vm.memslots.load(vcpu.as_id, &guard);
        let slot = slots.by_gfn(gfn)?;
        let restores_w = write || mutant::active(Mutant::RestoreWritable);
        if restores_w && format.is_mmu_writable(old) {
            // A huge page is split first when writes are logged by page.
            if level > LEVEL_4K && slot.logs_dirty() {
                return None;
            }
            new |= WRITABLE;
        }
        if !format.allows(new, kind) {
            return None;
        }
        cpu.count(Counter::SpteCas);
        if word
            .compare_exchange(old, new, Ordering::AcqRel, Ordering::Relaxed)
            .is_ok()
        {
            // After the exchange: should a harvest run between the two, it
            // leaves the SPTE writable and the bit for the next harvest.
            if is_writable(new) && !is_writable(old) {
                slot.mark_dirty(gfn);
            }
            cpu.count(Counter::FastPageFaults);
            cpu.trace(Event::FastPageFault, &[u64::from(vcpu.id), gfn, old, new]);
            return Some(Outcome::Fixed);
        }
        cpu.count(Counter::SpteCasFailed);
    }
    None
}

/// A fault whose host frame is known (`struct kvm_page_fault`).
#[derive(Clone, Debug)]
pub struct PageFault {
    /// The guest frame.
    pub gfn: u64,
    /// What the access was.
    pub kind: AccessKind,
    /// The address space.
    pub as_id: usize,
    /// Which update put the slot there that the frame was looked up in
    /// ([`Memslots::by_gfn_since`](crate::kvm::memslot::Memslots::by_gfn_since)).
    /// Not a reference to the slot: counting references would make every fault
    /// write to a cache line that all vCPUs and the ager read.
    pub slot_since: u64,
    /// The host frame of `gfn`.
    pub pfn: Pfn,
    /// Whether the host maps it writable.
    pub map_writable: bool,
    /// The highest level it may be mapped at.
    pub level: u32,
    /// `mmu_invalidate_seq` when the lookup began.
    pub mmu_seq: u64,
}

/// A fault that may be acted on: its slot is still the one it was looked up
/// in, for as long as the RCU section lasts.
#[derive(Clone, Copy)]
pub struct LiveFault<'a> {
    /// The fault.
    pub fault: &'a PageFault,
    /// The slot.
    pub slot: &'a Memslot,
}

impl LiveFault<'_> {
    /// The level to map at, of those up to `max`: no huge page around a
    /// shadowed page table (`kvm_mmu_hugepage_adjust()`). Under `mmu_lock`,
    /// which keeps tables from being shadowed meanwhile.
    #[inline]
    pub(super) fn goal(&self, max: u32) -> u32 {
        let mut goal = self.level.min(max);
        while goal > LEVEL_4K && self.slot.is_huge_tracked(self.gfn, goal) {
            goal -= 1;
        }
        goal
    }
}

impl Deref for LiveFault<'_> {
    type Target = PageFault;

    #[inline]
    fn deref(&self) -> &PageFault {
        self.fault
    }
}

impl Vm {
    /// Find the host frame behind a guest frame, faulting it in if need be.
    /// `None`: an invalidation or a slot update is in the way; try again.
    ///
    /// # Errors
    /// `EFAULT` where the guest has no memory, or may not write to it (KVM
    /// would leave to user space for MMIO); `EIO` when the VM is gone; what
    /// the primary MMU's fault returns.
    pub fn faultin_pfn(
        &self,
        cpu: &Cpu,
        as_id: usize,
        gfn: u64,
        kind: AccessKind,
    ) -> Result<Option<PageFault>> {
        // The primary MMU maps for reads and writes: a fetch is a read there.
        let write = kind.is_write();
        if self.is_dead() {
            return Err(Error::new(
                Errno::EIO,
                format!("guest access to gfn {gfn:#x}: the VM was destroyed"),
            ));
        }
        // Before the slot and the primary page tables are looked at: what
        // changes them afterwards moves the sequence.
        let mmu_seq = self.invalidate.sequence();
        // What is needed of the slot is copied, and the section left before
        // anything may block: only a look at what is mapped already is in it.
        let guard = cpu.rcu.lock();
        let slots = self.memslots.load(as_id, &guard);
        let Some((slot, slot_since)) = slots.by_gfn_since(gfn) else {
            return Err(Error::new(
                Errno::EFAULT,
                format!("guest access to gfn {gfn:#x}: no memslot of address space {as_id} has it"),
            ));
        };
        if slot.is_invalid() {
            return Ok(None);
        }
        if write && slot.is_readonly() {
            return Err(Error::new(
                Errno::EFAULT,
                format!("guest write to gfn {gfn:#x}: {slot:?} is read-only"),
            ));
        }
        // A fault that would be stale already need not take `mmu_lock` to know.
        if self.invalidate.retry_unsafe(mmu_seq, gfn) {
            return Ok(None);
        }
        let hva = slot.gfn_to_hva(gfn);
        let readonly = slot.is_readonly();
        // The largest leaf that the slot admits around the frame.
        let mut slot_level = if slot.logs_dirty() {
            LEVEL_4K
        } else {
            LEVEL_1G.min(self.config.max_level)
        };
        while slot_level > LEVEL_4K && !slot.allows_level(gfn, slot_level) {
            slot_level -= 1;
        }
        let fast = (!readonly)
            .then(|| self.mm.gup_fast(cpu, hva, true))
            .flatten();
        drop(guard);
        let page = match fast {
            Some(page) => page,
            None => {
                let page = self.mm.gup(cpu, hva, write)?;
                // Map a read fault writable too, if that is free.
                let again = (!write && !readonly)
                    .then(|| self.mm.gup_fast(cpu, hva, true))
                    .flatten();
                again.unwrap_or(crate::mm::UserPage {
                    writable: write,
                    ..page
                })
            }
        };
        Ok(Some(PageFault {
            gfn,
            kind,
            pfn: page.pfn,
            map_writable: page.writable && !readonly,
            level: page.level.min(slot_level),
            mmu_seq,
            as_id,
            slot_since,
        }))
    }

    /// The fault with its slot, or `None` if it must be tried again: memory was
    /// invalidated since it sampled the sequence, or its slot is no longer
    /// current (`is_page_fault_stale()`). The caller
    /// holds `mmu_lock`, and `guard` from before this call until the SPTE is
    /// set: a slot update waits for that section before it acts on SPTEs. (KVM
    /// stays in its SRCU section for the whole fault; here the slot is
    /// compared instead, so that reclaim inside a fault holds up nobody.)
    pub fn live_fault<'a>(
        &'a self,
        fault: &'a PageFault,
        guard: &'a Guard<'_>,
    ) -> Option<LiveFault<'a>> {
        let checked = !mutant::active(Mutant::NoSeqCheck);
        if self.is_dead() || checked && self.invalidate.retry(fault.mmu_seq, fault.gfn) {
            return None;
        }
        let slots = self.memslots.load(fault.as_id, guard);
        let (slot, since) = slots.by_gfn_since(fault.gfn)?;
        (since == fault.slot_since).then_some(LiveFault { fault, slot })
    }

    /// The fault is done with the frame (`kvm_release_pfn_clean()`). Called
    /// under `mmu_lock`, while no invalidation can let the frame go.
    pub fn release_pfn_clean(&self, cpu: &Cpu, pfn: Pfn) {
        if pfn != PhysMem::ZERO_PAGE {
            let memory = &cpu.host().memory;
            lru_gen::mark_accessed(memory, memory.head(pfn));
        }
    }

    /// A young SPTE goes (`kvm_set_pfn_accessed()`).
    pub fn set_pfn_accessed(&self, cpu: &Cpu, pfn: Pfn) {
        self.release_pfn_clean(cpu, pfn);
    }

    /// A dirty SPTE goes, or a writable one becomes access-tracked
    /// (`kvm_set_pfn_dirty()`).
    pub fn set_pfn_dirty(&self, cpu: &Cpu, pfn: Pfn) {
        use crate::mm::FolioWord;
        if pfn != PhysMem::ZERO_PAGE {
            let memory = &cpu.host().memory;
            let word = memory.word(memory.head(pfn));
            // A load first: the flag is set far more often than clear.
            if !word.get().has(crate::mm::folio::DIRTY) {
                word.set(crate::mm::folio::DIRTY);
            }
        }
    }
}
