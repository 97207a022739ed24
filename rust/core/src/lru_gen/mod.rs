//! The multi-gen LRU (`mm/vmscan.c`, `include/linux/mm_inline.h`).

pub mod bloom;
pub mod controller;
pub mod evict;
pub mod folio;
pub mod lruvec;

pub use folio::mark_accessed;
pub(crate) use folio::{add_folio, del_folio};
pub use lruvec::LruVec;

use crate::cpu::Cpu;
use crate::error::{Errno, Error, Result};
use crate::mm::{Memcg, Mm, Pfn};
use crate::sync::atomic::{AtomicU32, Ordering};
use std::sync::Arc;

/// Capability bits of `/sys/kernel/mm/lru_gen/enabled`.
pub mod caps {
    /// The multi-gen LRU itself.
    pub const CORE: u32 = 0x0001;
    /// Leaf accessed bits are cleared in large batches, by walking page tables.
    pub const MM_WALK: u32 = 0x0002;
    /// Non-leaf accessed bits are used too.
    pub const NONLEAF_YOUNG: u32 = 0x0004;
    /// Secondary MMUs take part in the walk.
    pub const SECONDARY_MMU_WALK: u32 = 0x0008;
    /// All of them.
    pub const ALL: u32 = 0x000f;
}

/// Host-wide settings.
pub struct Settings {
    caps: AtomicU32,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            caps: AtomicU32::new(caps::ALL),
        }
    }
}

impl Settings {
    /// The capabilities that are on.
    #[inline]
    pub fn caps(&self) -> u32 {
        self.caps.load(Ordering::Relaxed)
    }

    /// Switch capabilities; unknown bits are ignored.
    pub fn set_caps(&self, mask: u32) {
        self.caps.store(mask & caps::ALL, Ordering::Relaxed);
    }
}

/// A process was made in a memory cgroup (`lru_gen_add_mm()`).
pub(crate) fn add_mm(_owner: &Memcg, _mm: &Arc<Mm>) {}

/// A process left (`lru_gen_del_mm()`).
pub(crate) fn del_mm(_owner: &Memcg, _mm: &Arc<Mm>) {}

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
