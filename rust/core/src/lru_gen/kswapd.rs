//! What a node knows of its free pages, and the thread that reclaims when they
//! are few (`mm/vmscan.c`, "kswapd"; watermarks of `mm/page_alloc.c`).
//!
//! kswapd is a thread only while [`with_kswapd`] runs; else whoever would wake
//! it does its work, so that inline runs repeat.

use super::evict::{DEF_PRIORITY, ScanControl};
use super::lruvec::FILE;
use super::memcg_lru::{MemcgLru, Rotation};
use super::reclaim::{
    FLUSH_BATCH, MAX_RETRIES, SWAP_CLUSTER_MAX, is_sizable, set_initial_priority, shrink_node,
};
use crate::cpu::{Cpu, CpuSeed};
use crate::error::Result;
use crate::host::Host;
use crate::mm::filemap;
use crate::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use crate::sync::lock::{Condvar, Mutex};
use crate::sync::thread;
use crate::trace::Counter;
use std::sync::Arc;

/// Free pages below which a node acts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Watermarks {
    /// Allocation reclaims for itself.
    pub min: u64,
    /// kswapd is woken.
    pub low: u64,
    /// kswapd is done.
    pub high: u64,
}

impl Watermarks {
    /// For a node of `pages` pages (`init_per_zone_wmark_min()`,
    /// `__setup_per_zone_wmarks()`, with the default scale factor).
    pub fn new(pages: u64) -> Self {
        // min_free_kbytes is the root of sixteen times the memory in KiB.
        let min = (pages * 64).isqrt() / 4;
        let step = (min / 4).max(pages / 1000);
        Watermarks {
            min,
            low: min + step,
            high: min + 2 * step,
        }
    }
}

/// What a node's reclaim needs (`struct pglist_data`, in part).
pub(crate) struct NodeReclaim {
    pub(super) watermarks: Watermarks,
    pub(super) memcg_lru: Mutex<MemcgLru>,
    /// Rounds of kswapd without a page, since the last page.
    pub(super) failures: AtomicU32,
    live: AtomicBool,
    kswapd: Mutex<Kswapd>,
    wake: Condvar,
}

#[derive(Default)]
struct Kswapd {
    wanted: bool,
    stop: bool,
}

impl NodeReclaim {
    pub(crate) fn new(pages: u64) -> Self {
        NodeReclaim {
            watermarks: Watermarks::new(pages),
            memcg_lru: Mutex::new(MemcgLru::new()),
            failures: AtomicU32::new(0),
            live: AtomicBool::new(false),
            kswapd: Mutex::new(Kswapd::default()),
            wake: Condvar::new(),
        }
    }

    /// A memory cgroup was made (`lru_gen_online_memcg()`).
    pub(crate) fn online_memcg(&self, id: u16) {
        self.memcg_lru.lock().online(id);
    }

    /// A memory cgroup was removed (`lru_gen_offline_memcg()`): it is among the
    /// next to be reclaimed from.
    pub(crate) fn offline_memcg(&self, id: u16) {
        self.memcg_lru.lock().rotate(id, Rotation::Old);
    }
}

/// Test whether some working set is old enough to be reclaimed
/// (`lru_gen_age_node()`): if none is, that is an out-of-memory event.
fn age_node(cpu: &Cpu, node: usize, sc: &mut ScanControl) {
    set_initial_priority(cpu, node, sc);
    let host = cpu.host();
    let min_ttl_ns = u64::from(host.lru_gen.min_ttl_ms()) * 1_000_000;
    if min_ttl_ns == 0 {
        return;
    }
    let now = host.clock.now_ns();
    let reclaimable = host.memcgs().iter().any(|memcg| {
        let lruvec = &memcg.lruvecs[node];
        is_sizable(cpu, lruvec, sc) && now > lruvec.timestamp(lruvec.min_seq(FILE)) + min_ttl_ns
    });
    if !reclaimable {
        cpu.count(Counter::OomEvents);
    }
}

/// Reclaim until a node has its high watermark free, or nothing more can be
/// had (`balance_pgdat()`).
fn balance_node(cpu: &Cpu, node: usize) {
    let host = cpu.host();
    let state = &host.nodes[node];
    let high = state.watermarks.high;
    let balanced = || host.memory.nr_free(node) >= high;
    cpu.count(Counter::KswapdRuns);
    let was = cpu.set_reclaiming(true);
    let mut sc = ScanControl::new(0);
    sc.kswapd = true;
    let mut flushed = false;
    while !balanced() && sc.priority >= 1 && !cpu.has_error() && !cpu.poll() {
        sc.nr_to_reclaim = high.max(SWAP_CLUSTER_MAX);
        let before = sc.nr_reclaimed;
        sc.nr_scanned = 0;
        age_node(cpu, node, &mut sc);
        shrink_node(cpu, node, &mut sc);
        let progress = sc.nr_reclaimed > before;
        if sc.nr_scanned < sc.nr_to_reclaim || !progress {
            sc.priority -= 1;
        }
        if sc.priority == 0 && !flushed && !balanced() {
            // What periodic writeback would have done by now.
            flushed = true;
            if filemap::flush_some(cpu, FLUSH_BATCH) > 0 {
                sc.priority = DEF_PRIORITY - 2;
            }
        }
    }
    cpu.set_reclaiming(was);
    if sc.nr_reclaimed == 0 {
        state.failures.fetch_add(1, Ordering::Relaxed);
    } else {
        state.failures.store(0, Ordering::Relaxed);
    }
}

/// Wake a node's kswapd, or do its work (`wakeup_kswapd()`).
pub(super) fn wake_kswapd(cpu: &Cpu, node: usize) {
    let state = &cpu.host().nodes[node];
    // Hopeless: leave it to direct reclaim, whose progress revives it.
    if state.failures.load(Ordering::Relaxed) >= MAX_RETRIES {
        return;
    }
    if !state.live.load(Ordering::Acquire) {
        if !cpu.is_reclaiming() {
            balance_node(cpu, node);
        }
        return;
    }
    let mut kswapd = state.kswapd.lock();
    if !kswapd.wanted {
        kswapd.wanted = true;
        state.wake.notify_one();
    }
}

/// The background thread of a node (`kswapd()`).
fn kswapd(cpu: &Cpu, node: usize) {
    let state = &cpu.host().nodes[node];
    loop {
        {
            let mut kswapd = state.kswapd.lock();
            while !kswapd.wanted && !kswapd.stop {
                state.wake.wait(&mut kswapd);
            }
            if kswapd.stop {
                return;
            }
            kswapd.wanted = false;
        }
        balance_node(cpu, node);
    }
}

/// Run `work` with a kswapd thread for each node, which are joined before this
/// returns. While it runs, a second call on the same host only runs its work.
///
/// # Errors
/// What a notifier raised in kswapd.
pub fn with_kswapd<R>(host: &Arc<Host>, seed: &CpuSeed, work: impl FnOnce() -> R) -> Result<R> {
    let started: Vec<usize> = (0..host.nodes.len())
        .filter(|&node| !host.nodes[node].live.swap(true, Ordering::AcqRel))
        .collect();
    let result = thread::scope(|scope| {
        let threads: Vec<_> = started
            .iter()
            .map(|&node| {
                scope.spawn(move || {
                    let cpu = seed.cpu();
                    kswapd(&cpu, node);
                    cpu.check_error()
                })
            })
            .collect();
        // Stopped also when the work panics, or the scope would never end.
        let stop = StopKswapd(host, &started);
        let result = work();
        drop(stop);
        for thread in threads {
            if let Ok(ended) = thread.join() {
                ended?;
            }
        }
        Ok(result)
    });
    for &node in &started {
        let state = &host.nodes[node];
        *state.kswapd.lock() = Kswapd::default();
        state.live.store(false, Ordering::Release);
    }
    result
}

struct StopKswapd<'a>(&'a Host, &'a [usize]);

impl Drop for StopKswapd<'_> {
    fn drop(&mut self) {
        for &node in self.1 {
            let state = &self.0.nodes[node];
            state.kswapd.lock().stop = true;
            state.wake.notify_all();
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn watermarks_of_three_gib_are_the_kernels() {
        let marks = Watermarks::new(3 << 18);
        assert_eq!((marks.min, marks.low, marks.high), (1773, 2559, 3345));
    }
}
