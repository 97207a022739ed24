//! Walks of one address down the tables of either MMU: a vCPU's, as hardware
//! makes it, and software's (`mmu_spte_walk`, `kvm_tdp_mmu_fast_pf_get_last_sptep()`).

use super::spte::{
    self, LEVEL_4K, ad_enabled, gfn_shift, is_last, is_present, is_writable, pages_per,
};
use super::{Translation, Walk};
use crate::access::AccessKind;
use crate::cpu::Cpu;
use crate::kvm::vm::Vm;
use crate::mm::Pfn;
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::table::{Arena, POISON, TABLE_ENTRIES, TABLE_SHIFT, TableId};
use crate::trace::Counter;

/// A root and its level.
pub(super) type Root = (TableId, u32);

/// A vCPU's page walk, as hardware does it: sets accessed, and dirty for a
/// write, atomically and only if clear, never in an entry that is not present;
/// and walks again when an entry changed under it. In guest mode, which keeps
/// the tables alive ([`Vm::flush_remote_tlbs`]).
#[inline]
pub(super) fn walk_as_hardware<M: Default>(
    tables: &Arena<M>,
    (root, top): Root,
    vm: &Vm,
    cpu: &Cpu,
    page: u64,
    kind: AccessKind,
) -> Walk {
    let format = vm.format();
    if page >> gfn_shift(top + 1) != 0 {
        return Walk::Fault { present: false };
    }
    // Of the leaf: entries above it forbid nothing (`make_nonleaf_spte()`).
    let (wanted, forbidden) = format.demand(kind);
    // Acquire and release: the bits join what whoever zaps or ages takes out by
    // an exchange of its own.
    let set = |word: &AtomicU64, spte: u64, bits: u64| {
        word.compare_exchange(spte, spte | bits, Ordering::AcqRel, Ordering::Relaxed)
            .is_ok()
    };
    'walk: loop {
        let (mut table, mut level) = (root, top);
        let mut shift = gfn_shift(top);
        let (word, spte) = loop {
            let word = &tables.entries(table)[(page >> shift) as usize % TABLE_ENTRIES];
            cpu.count(Counter::SpteWalkLoads);
            // Acquire: pairs with the release that linked the table.
            let spte = word.load(Ordering::Acquire);
            if spte & format.hw_present == 0 {
                if spte == POISON {
                    cpu.count(Counter::PoisonReads);
                }
                return Walk::Fault { present: false };
            }
            if is_last(spte, level) {
                break (word, spte);
            }
            // Looked at before its kind, as it is set nearly always.
            let unset = spte & format.accessed == 0;
            if unset && ad_enabled(spte) && !set(word, spte, format.accessed) {
                continue 'walk;
            }
            table = spte::table(spte);
            level -= 1;
            shift -= TABLE_SHIFT;
        };
        if spte & (wanted | forbidden) != wanted {
            return Walk::Fault { present: true };
        }
        let bits = format.hw_bits(spte, kind.is_write());
        if spte & bits != bits {
            if !set(word, spte, bits) {
                continue 'walk;
            }
            let set = bits & !spte;
            cpu.count_n(Counter::AccessedSet, u64::from(set & format.accessed != 0));
            cpu.count_n(Counter::DirtySet, u64::from(set & format.dirty != 0));
        }
        let offset = page & (pages_per(level) - 1);
        return Walk::Hit(Translation {
            pfn: Pfn(spte::pfn(spte).0 + offset as u32),
            level,
            readable: spte & format.readable != 0,
            writable: is_writable(spte),
            executable: format.is_executable(spte),
            dirty: format.is_dirty(spte | bits),
        });
    }
}

/// The lowest entry on the way to a page that the table reaches: its level and
/// word (`for_each_tdp_pte()`). The caller is in an RCU section or in guest mode.
#[inline]
pub(super) fn lookup<M: Default>(
    tables: &Arena<M>,
    (table, level): Root,
    page: u64,
) -> (u32, &AtomicU64) {
    let (mut table, mut level) = (table, level);
    let mut shift = gfn_shift(level);
    loop {
        let word = &tables.entries(table)[(page >> shift) as usize % TABLE_ENTRIES];
        if level == LEVEL_4K {
            return (level, word);
        }
        // Acquire: pairs with the release that linked the table.
        let spte = word.load(Ordering::Acquire);
        if !is_present(spte) || is_last(spte, level) {
            return (level, word);
        }
        table = spte::table(spte);
        level -= 1;
        shift -= TABLE_SHIFT;
    }
}
