//! A guest that runs a guest, on a VM with the TDP MMU.
//!
//! | who runs | its addresses | translated by |
//! |---|---|---|
//! | L1 | L1 guest physical | the TDP MMU |
//! | L2 | L2 guest physical | the shadow MMU, from the EPT or NPT tables that L1 keeps in its memory |
//!
//! L2 has no page tables of its own here: it runs on physical addresses. A page
//! that both touch is mapped by a TDP SPTE and, for each L2 address that L1
//! gave it, by a shadow SPTE; aging asks the TDP MMU first and then, while
//! there are indirect shadow pages, the shadow MMU.
//!
//! A vCPU changes between the two with
//! [`set_guest_mode`](crate::kvm::Vm::set_guest_mode).

use super::spte::{self, WRITABLE, is_present_leaf};
use super::tdp::TdpMmu;
use super::{GuestMmu, Translation, Walk};
use crate::access::AccessKind;
use crate::cpu::Cpu;
use crate::error::{Errno, Error, Result};
use crate::kvm::memslot::Memslot;
use crate::kvm::vcpu::Vcpu;
use crate::kvm::vm::Vm;
use crate::sync::atomic::Ordering;
use crate::trace::{Counter, Event};

/// The TDP MMU as L1 sees it: writes to frames that hold L1's tables for L2
/// trap, and are emulated.
pub struct L1Mmu(());

/// The only one.
pub static L1_MMU: L1Mmu = L1Mmu(());

fn tdp(vm: &Vm) -> Result<&TdpMmu> {
    vm.tdp
        .as_ref()
        .ok_or_else(|| Error::new(Errno::EIO, "a nested VM without its TDP MMU"))
}

impl GuestMmu for L1Mmu {
    fn load(&self, vm: &Vm, cpu: &Cpu, vcpu: &Vcpu) -> Result<()> {
        tdp(vm)?.load(vm, cpu, vcpu)
    }

    fn unload(&self, vm: &Vm, cpu: &Cpu, vcpu: &Vcpu) {
        if let Some(tdp) = &vm.tdp {
            GuestMmu::unload(tdp, vm, cpu, vcpu);
        }
    }

    #[inline]
    fn is_obsolete(&self, vm: &Vm, vcpu: &Vcpu) -> bool {
        vm.tdp.as_ref().is_none_or(|tdp| tdp.is_obsolete(vm, vcpu))
    }

    #[inline]
    fn walk(&self, vm: &Vm, cpu: &Cpu, vcpu: &Vcpu, page: u64, kind: AccessKind) -> Walk {
        let Some(tdp) = &vm.tdp else {
            return Walk::Fault { present: false };
        };
        if kind.is_write() && vcpu.shadow.is_emulating(page) {
            let walk = tdp.walk(vm, cpu, vcpu, page, AccessKind::Read);
            return match walk {
                Walk::Hit(found) => {
                    vcpu.shadow.emulated(vm, cpu, vcpu.as_id, found.pfn);
                    Walk::Hit(Translation {
                        writable: false,
                        ..found
                    })
                }
                fault => fault,
            };
        }
        tdp.walk(vm, cpu, vcpu, page, kind)
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
        let shadow = vm.shadow.as_deref();
        let emulated = kind.is_write()
            && shadow.is_some_and(|shadow| shadow.emulate(vm, cpu, vcpu, page, page));
        if emulated && present {
            // Mapped read-only already: that is all the emulation needs.
            return Ok(());
        }
        let kind = if emulated { AccessKind::Read } else { kind };
        tdp(vm)?.fault(vm, cpu, vcpu, page, kind, present)
    }
}

impl Vm {
    /// Take write permission, for good, from what maps one frame in the TDP
    /// MMU (`kvm_tdp_mmu_write_protect_gfn()`); whether a flush is needed.
    /// `mmu_lock` is held for write.
    pub(super) fn tdp_write_protect_gfn(&self, cpu: &Cpu, slot: &Memslot, gfn: u64) -> bool {
        debug_assert!(self.mmu_lock.is_write_locked());
        let Some(tdp) = &self.tdp else {
            return false;
        };
        let keep = !(WRITABLE | self.format().mmu_writable);
        let mut flush = false;
        tdp.for_each_root_leaf(cpu, slot.as_id, gfn, |level, word| {
            let seen = word.load(Ordering::Relaxed);
            if !is_present_leaf(seen, level) || seen & keep == seen {
                return;
            }
            // Atomic: hardware and agers may write it meanwhile.
            let old = word.fetch_and(keep, Ordering::AcqRel);
            cpu.count(Counter::SpteFetchAnd);
            let as_id = slot.as_id as u64;
            let level = u64::from(level);
            cpu.trace(
                Event::KvmTdpMmuSpteChanged,
                &[as_id, gfn, level, old, old & keep],
            );
            if !self.format().is_dirty(old & keep) && self.format().is_dirty(old) {
                // Without A/D bits, writable is all that said dirty.
                self.set_pfn_dirty(cpu, spte::pfn(old));
            }
            flush = true;
        });
        flush
    }
}
