//! KVM's MMU (`arch/x86/kvm/mmu/`).

pub mod fault;
pub mod spte;

use crate::cpu::Cpu;
use crate::kvm::memslot::{GfnRange, Memslot};
use crate::kvm::vm::Vm;
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
}
