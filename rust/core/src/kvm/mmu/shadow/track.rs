//! Guest page tables that are shadowed: writes to them trap
//! (`page_track.c`, `account_shadowed()`, `kvm_mmu_track_write()`).

use super::{Ctx, FLOOD_WRITES, Shadow, State};
use crate::access::AccessKind;
use crate::cpu::Cpu;
use crate::error::{Errno, Error, Result};
use crate::kvm::memslot::Memslot;
use crate::kvm::mmu::rmap::{SptePtr, gfn_to_index};
use crate::kvm::mmu::spte::{LEVEL_1G, LEVEL_2M};
use crate::kvm::vm::Vm;
use crate::sync::atomic::{AtomicU16, AtomicU32, Ordering, fence, zeroed};
use crate::table::TableId;
use crate::trace::Counter;

/// How many shadow pages each frame of a slot stands behind
/// (`gfn_write_track`), and how many such frames each huge page contains
/// (`lpage_info`). Written under `mmu_lock` for write.
pub struct SlotTracking {
    base_gfn: u64,
    frames: Box<[AtomicU16]>,
    huge: [Box<[AtomicU32]>; 2],
}

impl SlotTracking {
    pub(crate) fn new(base_gfn: u64, npages: u64) -> Self {
        let last = base_gfn + npages - 1;
        SlotTracking {
            base_gfn,
            frames: zeroed(npages as usize),
            huge: std::array::from_fn(|n| {
                zeroed(gfn_to_index(last, base_gfn, LEVEL_2M + n as u32) + 1)
            }),
        }
    }

    /// Whether writes to the frame must trap.
    #[inline]
    pub fn is_tracked(&self, gfn: u64) -> bool {
        self.frames[(gfn - self.base_gfn) as usize].load(Ordering::Relaxed) != 0
    }

    /// Tracked frames in the huge page of `level` around `gfn`, each counted
    /// as often as it is shadowed.
    #[inline]
    pub fn tracked_in(&self, gfn: u64, level: u32) -> u32 {
        if level < LEVEL_2M {
            return u32::from(self.is_tracked(gfn));
        }
        let index = gfn_to_index(gfn, self.base_gfn, level);
        self.huge[(level - LEVEL_2M) as usize][index].load(Ordering::Relaxed)
    }

    fn change(&self, gfn: u64, add: bool) {
        // Relaxed: `mmu_lock` is held for write by all who write, and by all
        // who must not miss it.
        let frame = &self.frames[(gfn - self.base_gfn) as usize];
        for level in LEVEL_2M..=LEVEL_1G {
            let huge =
                &self.huge[(level - LEVEL_2M) as usize][gfn_to_index(gfn, self.base_gfn, level)];
            if add {
                huge.fetch_add(1, Ordering::Relaxed);
            } else {
                let was = huge.fetch_sub(1, Ordering::Relaxed);
                debug_assert!(was > 0, "gfn {gfn:#x} untracked once too often");
            }
        }
        if add {
            frame.fetch_add(1, Ordering::Relaxed);
        } else {
            let was = frame.fetch_sub(1, Ordering::Relaxed);
            debug_assert!(was > 0, "gfn {gfn:#x} untracked once too often");
        }
    }
}

impl Vm {
    /// Whether a frame holds a page table that is shadowed in some address
    /// space: they show the same frames.
    pub(super) fn is_write_tracked(&self, cpu: &Cpu, gfn: u64) -> bool {
        let guard = cpu.rcu.lock();
        (0..self.memslots.len()).any(|as_id| {
            let slots = self.memslots.load(as_id, &guard);
            slots
                .by_gfn(gfn)
                .is_some_and(|slot| slot.is_write_tracked(gfn))
        })
    }
}

impl Shadow {
    /// Zap what shadows page tables in a slot that goes
    /// (`kvm_mmu_zap_memslot_pages_and_flush()`). `mmu_lock` is held for write.
    pub(in crate::kvm) fn zap_slot_pages(&self, vm: &Vm, cpu: &Cpu, slot: &Memslot) {
        self.locked(vm, cpu, |ctx, state| {
            let inside: Vec<TableId> = state
                .active
                .values()
                .copied()
                .filter(|&id| {
                    let page = state.page(id);
                    !page.role.direct && page.role.as_id == slot.as_id && slot.contains(page.gfn)
                })
                .collect();
            for id in inside {
                // Zapping one page may have taken another with it.
                if state.pages[id.0 as usize].is_some() {
                    self.zap_page(ctx, state, id);
                }
            }
            self.commit(ctx, state, false);
        });
    }

    /// A frame's page table is shadowed from now on: count it, forbid huge
    /// pages around it, and take write permission from all that map it, in
    /// both MMUs (`account_shadowed()`).
    pub(super) fn account_shadowed(&self, ctx: Ctx<'_>, _state: &State, slot: &Memslot, gfn: u64) {
        self.indirect_pages.fetch_add(1, Ordering::Relaxed);
        // The count must be visible before the guest's entries are read; pairs
        // with the fence in `track_write`: either the writer sees the count
        // and zaps, or the fault sees the new entry.
        fence(Ordering::SeqCst);
        slot.tracking().change(gfn, true);
        let mut flush = self.rmaps_write_protect(ctx, slot, gfn, gfn + 1, true);
        flush |= ctx.vm.tdp_write_protect_gfn(ctx.cpu, slot, gfn);
        if flush {
            ctx.vm.flush_remote_tlbs(ctx.cpu);
        }
    }

    /// `unaccount_shadowed()`.
    pub(super) fn unaccount_shadowed(&self, ctx: Ctx<'_>, as_id: usize, gfn: u64) {
        let was = self.indirect_pages.fetch_sub(1, Ordering::Relaxed);
        debug_assert!(was > 0);
        if let Some(slot) = ctx.slot(as_id, gfn) {
            slot.tracking().change(gfn, false);
        }
    }

    /// A word of a guest page table was written: what was built from it goes
    /// (`kvm_mmu_track_write()`). Called without `mmu_lock`, after the store.
    pub fn track_write(&self, vm: &Vm, cpu: &Cpu, gfn: u64, index: usize) {
        // Pairs with the fence in `account_shadowed`.
        fence(Ordering::SeqCst);
        if self.indirect_pages.load(Ordering::Relaxed) == 0 {
            return;
        }
        self.table_written(vm, cpu, gfn, Some(index));
    }

    /// A write that changes no word of the table: only the third in a row
    /// without a walk in between has an effect.
    pub(super) fn note_flood(&self, vm: &Vm, cpu: &Cpu, gfn: u64) {
        self.table_written(vm, cpu, gfn, None);
    }

    /// The guest table in `gfn` was written, at `entry` if that is one of its
    /// words: what was built from it goes, all of it when it has been written
    /// again and again (`detect_write_flooding()`).
    fn table_written(&self, vm: &Vm, cpu: &Cpu, gfn: u64, entry: Option<usize>) {
        let _lock = cpu.write_lock(&vm.mmu_lock);
        self.locked(vm, cpu, |ctx, state| {
            let pages: Vec<TableId> = state.by_gfn.get(&gfn).cloned().unwrap_or_default();
            let mut flush = false;
            for id in pages {
                // Zapping one page may have taken another with it.
                let Some(page) = state.pages[id.0 as usize].as_deref_mut() else {
                    continue;
                };
                if page.role.direct || page.invalid {
                    continue;
                }
                page.flood += 1;
                if page.flood >= FLOOD_WRITES {
                    cpu.count(Counter::ShadowWriteFloods);
                    self.zap_page(ctx, state, id);
                } else if let Some(index) = entry {
                    flush |= self.zap_entry(ctx, state, SptePtr::new(id, index));
                }
            }
            self.commit(ctx, state, flush);
        });
    }

    /// A store by the guest to word `index` of frame `gfn`, as one of its
    /// vCPUs makes it: straight to memory, or, when KVM shadows the frame as a
    /// page table, by a trap and KVM's emulation.
    ///
    /// # Errors
    /// As [`Vm::faultin_pfn`].
    pub fn guest_store(
        &self,
        vm: &Vm,
        cpu: &Cpu,
        as_id: usize,
        gfn: u64,
        index: usize,
        value: u64,
    ) -> Result<()> {
        loop {
            let Some(fault) = vm.faultin_pfn(cpu, as_id, gfn, AccessKind::Write)? else {
                crate::sync::thread::yield_now();
                continue;
            };
            {
                // A writable translation that a processor holds is waited for
                // when write permission is taken; `mmu_lock` for read stands
                // for it.
                let _lock = cpu.read_lock(&vm.mmu_lock);
                let guard = cpu.rcu.lock();
                let Some(fault) = vm.live_fault(&fault, &guard) else {
                    continue;
                };
                vm.release_pfn_clean(cpu, fault.pfn);
                vm.set_pfn_dirty(cpu, fault.pfn);
                fault.slot.mark_dirty(gfn);
                if !vm.is_write_tracked(cpu, gfn) {
                    self.memory.store(gfn, index, value);
                    return Ok(());
                }
            }
            cpu.count(Counter::ShadowWriteTraps);
            self.memory.store(gfn, index, value);
            self.track_write(vm, cpu, gfn, index);
            return Ok(());
        }
    }

    /// A load by the guest.
    ///
    /// # Errors
    /// `EFAULT` where no memslot is.
    pub fn guest_load(
        &self,
        vm: &Vm,
        cpu: &Cpu,
        as_id: usize,
        gfn: u64,
        index: usize,
    ) -> Result<u64> {
        let guard = cpu.rcu.lock();
        let slots = vm.memslots.load(as_id, &guard);
        if slots.by_gfn(gfn).is_none() {
            return Err(Error::new(
                Errno::EFAULT,
                format!("guest load from gfn {gfn:#x}: no memslot of address space {as_id} has it"),
            ));
        }
        Ok(self.memory.load(gfn, index))
    }
}
