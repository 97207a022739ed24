//! KVM's MMU (`arch/x86/kvm/mmu/`).

pub mod fault;
pub mod nested;
pub mod rmap;
pub mod shadow;
pub mod spte;
pub mod tdp;
mod walk;

use crate::access::AccessKind;
use crate::cpu::Cpu;
use crate::error::Result;
use crate::kvm::memslot::{GfnRange, Memslot};
use crate::kvm::vcpu::{GuestLoop, Vcpu};
use crate::kvm::vm::Vm;
use crate::mm::Pfn;
use std::sync::Arc;

/// What a VM asks of its shadow MMU, which serves VMs without the TDP MMU and
/// the nested guests of VMs with it.
pub trait ShadowMmu: Send + Sync {
    /// Shadow pages that shadow guest page tables (`indirect_shadow_pages`):
    /// while there is none, a VM with the TDP MMU is aged without it.
    fn indirect_shadow_pages(&self) -> u64;

    /// Age the range, or with `test` only look (`kvm_rmap_age_gfn_range()`).
    /// `range.lockless` says whether the walk holds `mmu_lock` for write
    /// already; otherwise this takes it where its protocol needs it.
    fn age_gfn_range(&self, vm: &Vm, cpu: &Cpu, range: &GfnRange<'_>, test: bool) -> bool;

    /// Zap the range; whether a TLB flush is needed. `mmu_lock` is held for
    /// write (`kvm_handle_gfn_range(kvm_zap_rmap)`).
    fn unmap_gfn_range(&self, vm: &Vm, cpu: &Cpu, range: &GfnRange<'_>) -> bool;

    /// Take write permission from what maps `[start, end)` of a slot; whether a
    /// TLB flush is needed. `mmu_lock` is held for write.
    fn write_protect(&self, vm: &Vm, cpu: &Cpu, slot: &Arc<Memslot>, start: u64, end: u64) -> bool;

    /// Zap everything (`kvm_mmu_zap_all()`). `mmu_lock` is held for write; TLBs
    /// are flushed by the caller.
    fn zap_all(&self, vm: &Vm, cpu: &Cpu);

    /// The loop that runs a guest on it.
    fn guest(&self) -> &dyn GuestLoop;
}

/// What a page walk found, as the TLB keeps it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Translation {
    /// Frame of the base page that was accessed.
    pub pfn: Pfn,
    /// Level of the leaf.
    pub level: u32,
    /// Whether reads may go through it.
    pub readable: bool,
    /// Whether writes may.
    pub writable: bool,
    /// Whether instruction fetches may.
    pub executable: bool,
    /// Whether the leaf is dirty already, so that a write need not walk again.
    pub dirty: bool,
}

/// How a page walk ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Walk {
    /// Translated, accessed and dirty set.
    Hit(Translation),
    /// The processor faults.
    Fault {
        /// It found an entry, which lacked the permission.
        present: bool,
    },
}

/// The MMU that a vCPU runs on: what hardware does with it, and its faults.
///
/// `page` is what the guest's streams name: a guest frame on the TDP MMU, a
/// guest virtual page where the guest's own page tables are translated too.
pub trait GuestMmu: Sync {
    /// Make sure that the vCPU has a valid root (`kvm_mmu_reload()`), before it
    /// enters the guest.
    ///
    /// # Errors
    /// `ENOMEM`; `EIO` when the VM is gone.
    fn load(&self, vm: &Vm, cpu: &Cpu, vcpu: &Vcpu) -> Result<()>;

    /// Give up the vCPU's root (`kvm_mmu_unload()`).
    fn unload(&self, vm: &Vm, cpu: &Cpu, vcpu: &Vcpu);

    /// Where the vCPU looks for the page that a stream names: the page itself,
    /// or one of its aliases.
    #[inline]
    fn address(&self, vm: &Vm, vcpu: &Vcpu, page: u64) -> u64 {
        let _ = (vm, vcpu);
        page
    }

    /// Whether the vCPU must leave the guest to load another root.
    fn is_obsolete(&self, vm: &Vm, vcpu: &Vcpu) -> bool;

    /// Walk as hardware does, setting accessed, and dirty for a write. In guest
    /// mode: tables stay alive until the vCPU acknowledges a flush.
    fn walk(&self, vm: &Vm, cpu: &Cpu, vcpu: &Vcpu, page: u64, kind: AccessKind) -> Walk;

    /// Handle a fault, outside guest mode; the access is then tried again.
    /// `present` is what the walk said.
    ///
    /// # Errors
    /// What the guest gets, naming the guest frame.
    fn fault(
        &self,
        vm: &Vm,
        cpu: &Cpu,
        vcpu: &Vcpu,
        page: u64,
        kind: AccessKind,
        present: bool,
    ) -> Result<()>;
}
