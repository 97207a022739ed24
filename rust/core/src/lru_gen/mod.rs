//! The multi-gen LRU (`mm/vmscan.c`, `include/linux/mm_inline.h`).

pub mod aging;
pub mod check;
pub mod controller;
pub mod debugfs;
pub mod evict;
pub mod filter;
pub mod folio;
pub mod histogram;
pub mod kswapd;
pub mod lookaround;
pub mod lruvec;
mod memcg_lru;
pub mod mm_list;
pub mod pages;
pub mod policy;
pub mod reclaim;
pub mod settings;
pub mod walk;
pub mod workingset;

pub use aging::{PassStats, age, run_aging};
pub use folio::mark_accessed;
pub(crate) use folio::{add_folio, del_folio, lru_add_drain};
pub use lruvec::LruVec;
pub use mm_list::MmList;
pub use pages::page_generations;
pub(crate) use reclaim::{alloc_with_reclaim, charge, default_swappiness};
pub use settings::{Asking, Settings, caps};

use crate::mm::{Memcg, Mm};
use std::sync::Arc;

/// A process was made in a memory cgroup (`lru_gen_add_mm()`).
pub(crate) fn add_mm(owner: &Memcg, mm: &Arc<Mm>) {
    owner.mm_list.add(mm);
}

/// A process left (`lru_gen_del_mm()`).
pub(crate) fn del_mm(owner: &Memcg, mm: &Arc<Mm>) {
    owner.mm_list.remove(mm);
}
