//! The multi-gen LRU (`mm/vmscan.c`, `include/linux/mm_inline.h`).

use crate::cpu::Cpu;
use crate::error::{Errno, Error, Result};
use crate::mm::folio::{LRU, REFERENCED, UNEVICTABLE, WORKINGSET};
use crate::mm::{FolioWord, Memcg, Mm, Pfn, PhysMem};
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

/// The LRU of one memory cgroup on one node (`struct lruvec`).
pub struct LruVec {
    /// The memory cgroup.
    pub memcg: u16,
    /// The node.
    pub node: usize,
}

impl LruVec {
    pub(crate) fn new(memcg: u16, node: usize, _now_ns: u64) -> Self {
        LruVec { memcg, node }
    }
}

/// A process was made in a memory cgroup (`lru_gen_add_mm()`).
pub(crate) fn add_mm(_owner: &Memcg, _mm: &Arc<Mm>) {}

/// A process left (`lru_gen_del_mm()`).
pub(crate) fn del_mm(_owner: &Memcg, _mm: &Arc<Mm>) {}

/// Put a new folio on its list (`lru_gen_add_folio()`).
pub(crate) fn add_folio(cpu: &Cpu, pfn: Pfn) {
    cpu.host().memory.word(pfn).set(LRU);
}

/// Take a folio whose LRU flag this thread has cleared off its list
/// (`lru_gen_del_folio()`).
pub(crate) fn del_folio(_cpu: &Cpu, _pfn: Pfn) {}

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

/// Count a reference (`folio_mark_accessed()`, `folio_inc_refs()`): referenced
/// first, then workingset, then the references field up to its limit.
pub fn mark_accessed(memory: &PhysMem, pfn: Pfn) {
    memory.word(pfn).modify(|word| {
        if word.has(UNEVICTABLE) {
            None
        } else if !word.has(REFERENCED) {
            Some(crate::mm::Word(word.0 | REFERENCED))
        } else if !word.has(WORKINGSET) {
            Some(crate::mm::Word(word.0 | WORKINGSET))
        } else if word.refs() < 3 {
            Some(word.with_refs(word.refs() + 1))
        } else {
            None
        }
    });
}
