//! The multi-gen LRU (`mm/vmscan.c`, `include/linux/mm_inline.h`).

pub mod aging;

pub mod check;
pub mod controller;
pub mod debugfs;
pub mod evict;
pub mod filter;
pub mod folio;
pub mod histogram;
pub mod lruvec;
pub mod mm_list;
pub mod settings;
pub mod walk;

pub use aging::{PassStats, age, run_aging};
pub use folio::mark_accessed;
pub(crate) use folio::{add_folio, del_folio};
pub use lruvec::LruVec;
pub use mm_list::MmList;
pub use settings::{Asking, Settings, caps};

use crate::cpu::Cpu;
use crate::error::{Errno, Error, Result};
use crate::mm::{Memcg, Mm, Pfn};
use crate::sync::atomic::Ordering;
use std::sync::Arc;

/// A process was made in a memory cgroup (`lru_gen_add_mm()`).
pub(crate) fn add_mm(owner: &Memcg, mm: &Arc<Mm>) {
    owner.mm_list.add(mm);
}

/// A process left (`lru_gen_del_mm()`).
pub(crate) fn del_mm(owner: &Memcg, mm: &Arc<Mm>) {
    owner.mm_list.remove(mm);
}

/// Charge pages to a memory cgroup, reclaiming from it if it is full.
///
/// # Errors
/// `ENOMEM` when the limit cannot be kept.
pub(crate) fn charge(_cpu: &Cpu, memcg: &Memcg, pages: u64) -> Result<()> {
    if memcg.try_charge(pages) {
        return Ok(());
    }
    Err(Error::new(
        Errno::ENOMEM,
        format!(
            "memory cgroup {:?} is at its limit of {} pages",
            memcg.name,
            memcg.max.load(Ordering::Relaxed)
        ),
    ))
}

/// A folio, after direct reclaim if need be.
pub(crate) fn alloc_with_reclaim(cpu: &Cpu, _memcg: &Memcg, order: u32, flags: u64) -> Option<Pfn> {
    cpu.host().memory.alloc(cpu, 0, order, flags)
}

/// The swappiness that a command without one gets (`get_swappiness()`): none
/// when a batch would not find enough swap slots.
pub(crate) fn default_swappiness(cpu: &Cpu, _memcg: &Memcg) -> u32 {
    let host = cpu.host();
    if host.swap.nr_slots() < lruvec::MIN_LRU_BATCH as u64 {
        0
    } else {
        host.lru_gen.swappiness()
    }
}
