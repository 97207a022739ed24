//! Aging through rmaps, with and without `mmu_lock`
//! (`kvm_rmap_age_gfn_range()`).

use super::Shadow;
use crate::cpu::Cpu;
use crate::kvm::memslot::GfnRange;
use crate::kvm::mmu::rmap::{RmapHead, SlotRmaps};
use crate::kvm::mmu::spte::{self, Aged, LEVEL_1G, LEVEL_4K, Write};
use crate::kvm::protocol::ShadowNoAd;
use crate::kvm::vm::Vm;
use crate::mutant::{self, Mutant};
use crate::sync::atomic::Ordering;
use crate::trace::Counter;

impl Shadow {
    /// Age or test a range by the VM's protocol: takes `mmu_lock` where that
    /// says so and the walk does not hold it yet.
    // Always inlined, with the walk without the lock: called once a page, mostly
    // for one SPTE. The walk under the lock has a frame of its own, so that this
    // one is not built around it.
    #[inline(always)]
    pub(super) fn age_range(&self, vm: &Vm, cpu: &Cpu, range: &GfnRange<'_>, test: bool) -> bool {
        let Some(rmaps) = range.slot.rmaps_if_any() else {
            return false;
        };
        if vm.protocol().shadow_lockless(range.fast_only, test) {
            return self.age_lockless(vm, cpu, rmaps, range, test);
        }
        // A walk that is not lockless holds it.
        let _lock = range.lockless.then(|| cpu.write_lock(&vm.mmu_lock));
        self.age_locked(vm, cpu, rmaps, range, test)
    }

    #[inline(always)]
    fn age_lockless(
        &self,
        vm: &Vm,
        cpu: &Cpu,
        rmaps: &SlotRmaps,
        range: &GfnRange<'_>,
        test: bool,
    ) -> bool {
        let mut young = false;
        for level in LEVEL_4K..=LEVEL_1G {
            if mutant::active(Mutant::UnalignedStep) {
                let step = spte::pages_per(level) as usize;
                for gfn in (range.start..range.end).step_by(step) {
                    let head = rmaps.head(gfn, level);
                    young |= self.age_head_lockless(vm, cpu, head, level, test);
                }
                continue;
            }
            for head in rmaps.range(level, range.start, range.end) {
                young |= self.age_head_lockless(vm, cpu, head, level, test);
                if young && test {
                    return true;
                }
            }
        }
        young
    }

    /// One chain, held by its bit and read from the value the lock returned
    /// (`kvm_rmap_age_gfn_range()`).
    #[inline(always)]
    fn age_head_lockless(
        &self,
        vm: &Vm,
        cpu: &Cpu,
        head: RmapHead<'_>,
        level: u32,
        test: bool,
    ) -> bool {
        let format = vm.format();
        let mut young = false;
        self.descs.for_each_lockless(&cpu.counters, head, |ptr| {
            cpu.count(Counter::SpteLoads);
            if mutant::active(Mutant::PreemptOn) {
                crate::sync::thread::lose_time_slice();
            }
            let word = self.word(ptr);
            // Relaxed: the verdict needs no other memory. An SPTE that is
            // being zapped reads as not present, and is skipped.
            let seen = word.load(Ordering::Relaxed);
            if !format.is_young_leaf(seen, level) {
                if !test {
                    format.leave(word, seen);
                }
                return true;
            }
            young = true;
            if test {
                return false;
            }
            if !spte::ad_enabled(seen) && vm.protocol().shadow_no_ad == ShadowNoAd::Leave {
                return true;
            }
            let aged = format.age_young(word, seen);
            count_aged(cpu, &aged);
            if aged.write == Write::Exchanged && !spte::ad_enabled(seen) && spte::is_writable(seen)
            {
                // Access tracking took W, and with it the knowledge that the
                // page may have been written.
                vm.set_pfn_dirty(cpu, spte::pfn(seen));
            }
            true
        });
        young
    }

    /// The same with `mmu_lock` held for write: no chain changes, so none is
    /// held, and whatever is in one is present.
    #[inline(never)]
    fn age_locked(
        &self,
        vm: &Vm,
        cpu: &Cpu,
        rmaps: &SlotRmaps,
        range: &GfnRange<'_>,
        test: bool,
    ) -> bool {
        debug_assert!(vm.mmu_lock.is_write_locked());
        let format = vm.format();
        let mut young = false;
        for level in LEVEL_4K..=LEVEL_1G {
            for head in rmaps.range(level, range.start, range.end) {
                for ptr in self.descs.iter(&cpu.counters, head.value()) {
                    cpu.count(Counter::SpteLoads);
                    let word = self.word(ptr);
                    // Relaxed: as without the lock.
                    let seen = word.load(Ordering::Relaxed);
                    if !spte::is_present_leaf(seen, level) {
                        self.report_corruption(cpu, ptr, "is in an rmap but maps nothing");
                        continue;
                    }
                    if !format.is_accessed(seen) {
                        if !test {
                            format.leave(word, seen);
                        }
                        continue;
                    }
                    young = true;
                    if test {
                        return true;
                    }
                    if !spte::ad_enabled(seen) && spte::is_writable(seen) {
                        // Before W goes: afterwards nobody would know.
                        vm.set_pfn_dirty(cpu, spte::pfn(seen));
                    }
                    // By the value that was just read: the fast page fault takes
                    // no lock, and if it gives W back in between, the page is
                    // young and stays so, and nobody forgets that write.
                    count_aged(cpu, &format.age_young_locked(word, seen));
                }
            }
        }
        young
    }
}

/// Count how an SPTE was aged.
#[inline]
fn count_aged(cpu: &Cpu, aged: &Aged) {
    match aged.write {
        Write::None => return,
        Write::FetchAnd => cpu.count(Counter::SpteFetchAnd),
        Write::PlainStore => cpu.count(Counter::SptePlainStores),
        Write::Exchanged => cpu.count(Counter::SpteCas),
        Write::ExchangeFailed => {
            cpu.count(Counter::SpteCas);
            cpu.count(Counter::SpteCasFailed);
            return;
        }
    }
    cpu.count(Counter::SptesAged);
}
