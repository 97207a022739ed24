//! When to reclaim, and from whom: limits of memory cgroups, and nodes that are
//! short of free pages (`mm/vmscan.c`, `mm/memcontrol.c`, `mm/page_alloc.c`).
//!
//! | what is short | who reclaims | walk context |
//! |---|---|---|
//! | a memory cgroup, at `memory.max` or over `memory.high` | the task that charges | none |
//! | a memory cgroup, by `memory.reclaim` | whoever wrote it | one |
//! | a node, below its low watermark | kswapd | one |
//! | a node, below its min watermark | the task that allocates | none |

use super::aging::{should_run_aging, try_to_inc_max_seq};
use super::evict::{DEF_PRIORITY, ScanControl, evict_folios};
use super::kswapd::{Watermarks, wake_kswapd};
use super::lruvec::{ANON, FILE, LruVec, MIN_LRU_BATCH, gen_from_seq};
use super::memcg_lru::{MEMCG_NR_BINS, Rotation};
use super::policy::View;
use super::walk::Batch;
use crate::cpu::Cpu;
use crate::error::{Errno, Error, Result};
use crate::mm::memcg::UNLIMITED;
use crate::mm::{Memcg, Pfn, filemap};
use crate::sync::atomic::Ordering;
use crate::sync::thread;
use crate::trace::Counter;
use std::time::{Duration, Instant};

/// The least that reclaim is asked for (`SWAP_CLUSTER_MAX`).
pub(super) const SWAP_CLUSTER_MAX: u64 = 32;
/// Pages that a task over `memory.high` reclaims (`MEMCG_CHARGE_BATCH`).
const CHARGE_BATCH: u64 = 64;
/// Rounds without progress before giving up (`MAX_RECLAIM_RETRIES`).
pub(super) const MAX_RETRIES: u32 = 16;
/// Time that a task gives way, a yield; two seconds in all its tries.
const GIVE_WAY: Duration = Duration::from_micros(16);
/// Dirty file pages written when reclaim meets nothing else.
pub(super) const FLUSH_BATCH: u64 = 1024;
/// Rounds of a thread's direct reclaim between two batches of periodic
/// writeback.
const ROUNDS_PER_FLUSH: u64 = 1024;

/// Whether pages of a type can be had from swap at all, and how eagerly
/// (`get_swappiness()`).
fn swappiness(cpu: &Cpu, sc: &ScanControl) -> u32 {
    let host = cpu.host();
    if !sc.may_swap || host.swap.nr_free() < MIN_LRU_BATCH as u64 {
        0
    } else {
        sc.swappiness.unwrap_or_else(|| host.lru_gen.swappiness())
    }
}

/// The swappiness that a command without one gets: none when a batch would not
/// find enough swap slots.
pub(crate) fn default_swappiness(cpu: &Cpu) -> u32 {
    swappiness(cpu, &ScanControl::new(0))
}

/// What to do with a lruvec next (`get_nr_to_scan()`): scan so many pages, or
/// leave it, having aged it or not.
enum Next {
    Scan(u64),
    Aged,
    Leave,
}

fn next_step(cpu: &Cpu, memcg: &Memcg, lruvec: &LruVec, sc: &ScanControl, can_swap: bool) -> Next {
    let max_seq = lruvec.max_seq();
    let (native, total) = should_run_aging(lruvec, max_seq, can_swap);
    let advice = cpu.host().lru_gen.policy.ask(|policy| {
        // Without a generation to evict there is nothing to decide.
        (native && total == 0) || policy.should_age(&View::new(cpu, lruvec), can_swap)
    });
    // At the default priority, try to get away without.
    if !advice || sc.priority == DEF_PRIORITY {
        match total >> sc.priority {
            0 => Next::Leave,
            n => Next::Scan(n),
        }
    } else if try_to_inc_max_seq(cpu, memcg, lruvec, max_seq, can_swap) {
        Next::Aged
    } else {
        Next::Leave
    }
}

/// Whether reclaim from the whole machine has enough (`should_abort_scan()`).
/// Reclaim from a memory cgroup goes on, to treat all alike.
fn should_abort(cpu: &Cpu, node: usize, sc: &ScanControl) -> bool {
    if cpu.has_error() || cpu.poll() {
        return true;
    }
    if sc.target.is_some() {
        return false;
    }
    if sc.nr_reclaimed >= sc.nr_to_reclaim.max(2) {
        return true;
    }
    let host = cpu.host();
    let enough = host.nodes[node].watermarks.high + MIN_LRU_BATCH as u64;
    sc.kswapd && host.memory.nr_free(node) > enough
}

/// Reclaim from a lruvec (`try_to_shrink_lruvec()`). True when it was aged, and
/// so has nothing cold for now.
fn try_to_shrink_lruvec(cpu: &Cpu, memcg: &Memcg, lruvec: &LruVec, sc: &mut ScanControl) -> bool {
    let mut scanned = 0;
    let swappiness = swappiness(cpu, sc);
    let mut aged = false;
    loop {
        let wanted = match next_step(cpu, memcg, lruvec, sc, swappiness != 0) {
            Next::Scan(wanted) => wanted,
            Next::Aged => {
                aged = true;
                break;
            }
            Next::Leave => break,
        };
        let delta = evict_folios(cpu, memcg, lruvec, sc, swappiness);
        scanned += delta;
        if delta == 0 || scanned >= wanted || should_abort(cpu, lruvec.node, sc) {
            break;
        }
    }
    // Nothing but dirty pages: have them written (`wakeup_flusher_threads()`).
    if sc.unqueued_dirty > 0 && sc.unqueued_dirty == sc.file_taken {
        filemap::flush_some(cpu, FLUSH_BATCH);
    }
    aged
}

/// Whether a lruvec has enough pages to be worth a visit
/// (`lruvec_is_sizable()`).
pub(super) fn is_sizable(cpu: &Cpu, lruvec: &LruVec, sc: &ScanControl) -> bool {
    let can_swap = swappiness(cpu, sc) != 0;
    let max_seq = lruvec.max_seq();
    let mut total = 0;
    for ty in (if can_swap { ANON } else { FILE })..=FILE {
        for seq in lruvec.min_seq(ty)..=max_seq {
            total += lruvec.nr_pages(gen_from_seq(seq), ty).max(0) as u64;
        }
    }
    total >> sc.priority != 0
}

/// Reclaim from one memory cgroup for the machine (`shrink_one()`).
fn shrink_one(
    cpu: &Cpu,
    memcg: &Memcg,
    lruvec: &LruVec,
    sc: &mut ScanControl,
    at_tail: bool,
) -> Option<Rotation> {
    if try_to_shrink_lruvec(cpu, memcg, lruvec, sc) {
        return Some(Rotation::Young);
    }
    if is_sizable(cpu, lruvec, sc) {
        return None;
    }
    Some(if at_tail {
        Rotation::Young
    } else {
        Rotation::Tail
    })
}

/// Reclaim from the memory cgroups of the oldest generation, until there is
/// enough (`shrink_many()`).
fn shrink_many(cpu: &Cpu, node: usize, sc: &mut ScanControl) {
    let host = cpu.host();
    let lru = &host.nodes[node].memcg_lru;
    let (generation, first_bin) = {
        let mut lru = lru.lock();
        (lru.generation(), lru.random_bin())
    };
    for n in 0..MEMCG_NR_BINS {
        let bin = (first_bin + n) % MEMCG_NR_BINS;
        let mut visited = 0;
        loop {
            // The list may change while its lock is dropped: go on at the same
            // place, where the next one is if the last was rotated away.
            let next = lru.lock().nth(generation, bin, visited);
            let Some((id, at_tail)) = next else {
                break;
            };
            let Some(memcg) = host.memcg_ref(id) else {
                break;
            };
            if memcg.is_released() {
                lru.lock().release(id);
                continue;
            }
            let rotation = shrink_one(cpu, memcg, &memcg.lruvecs[node], sc, at_tail);
            match rotation {
                Some(rotation) => lru.lock().rotate(id, rotation),
                None => visited += 1,
            }
            if should_abort(cpu, node, sc) {
                return;
            }
        }
    }
}

/// Pick a priority at which one round should do
/// (`set_initial_priority()`): the pages outside the two youngest generations
/// are taken as what can be had.
pub(super) fn set_initial_priority(cpu: &Cpu, node: usize, sc: &mut ScanControl) {
    if sc.priority != DEF_PRIORITY || sc.nr_to_reclaim < MIN_LRU_BATCH as u64 {
        return;
    }
    let host = cpu.host();
    let can_swap = host.swap.nr_free() > 0;
    let mut reclaimable = 0;
    for memcg in host.memcgs() {
        let lruvec = &memcg.lruvecs[node];
        reclaimable += lruvec.lru_size(FILE, false);
        if can_swap {
            reclaimable += lruvec.lru_size(ANON, false);
        }
    }
    // Bit lengths: what can be had is rounded down, what is wanted up.
    let bits = |n: u64| i64::from(u64::BITS - n.leading_zeros());
    let priority = bits(reclaimable) - 1 - bits(sc.nr_to_reclaim - 1);
    let (least, most) = (i64::from(DEF_PRIORITY / 2), i64::from(DEF_PRIORITY));
    sc.priority = priority.clamp(least, most) as u32;
}

/// Reclaim from a node (`lru_gen_shrink_node()`).
pub(super) fn shrink_node(cpu: &Cpu, node: usize, sc: &mut ScanControl) {
    let before = sc.nr_reclaimed;
    if sc.kswapd || sc.proactive {
        sc.walk = Some(Batch::default());
    }
    set_initial_priority(cpu, node, sc);
    if sc.kswapd {
        sc.nr_reclaimed = 0;
    }
    shrink_many(cpu, node, sc);
    if sc.kswapd {
        sc.nr_reclaimed += before;
    }
    sc.walk = None;
    if sc.nr_reclaimed > before {
        cpu.host().nodes[node].failures.store(0, Ordering::Relaxed);
    }
}

/// Count a round of direct reclaim. Now and then dirty file pages are written,
/// as the kernel's flusher does every few seconds: a guest whose few clean pages
/// are evicted as fast as they come back makes no progress, and no time passes
/// for it, until the others can go too.
fn begin_direct_reclaim(cpu: &Cpu) {
    cpu.count(Counter::DirectReclaim);
    super::lru_add_drain(cpu);
    if cpu
        .counters
        .get(Counter::DirectReclaim)
        .is_multiple_of(ROUNDS_PER_FLUSH)
    {
        filemap::flush_some(cpu, FLUSH_BATCH);
    }
}

/// Reclaim for an allocation, in the task that makes it
/// (`try_to_free_pages()`). Returns the pages freed.
fn try_to_free_pages(cpu: &Cpu) -> u64 {
    let host = cpu.host();
    begin_direct_reclaim(cpu);
    let was = cpu.set_reclaiming(true);
    let mut sc = ScanControl::new(SWAP_CLUSTER_MAX);
    for priority in (0..=DEF_PRIORITY).rev() {
        sc.priority = priority;
        sc.nr_scanned = 0;
        for node in 0..host.nodes.len() {
            shrink_node(cpu, node, &mut sc);
        }
        if sc.nr_reclaimed >= sc.nr_to_reclaim || cpu.has_error() || cpu.poll() {
            break;
        }
    }
    if sc.nr_reclaimed == 0 && filemap::flush_some(cpu, FLUSH_BATCH) > 0 {
        sc.priority = 0;
        for node in 0..host.nodes.len() {
            shrink_node(cpu, node, &mut sc);
        }
    }
    cpu.set_reclaiming(was);
    sc.nr_reclaimed
}

/// A folio, after direct reclaim if need be (`__alloc_pages()`): from a node
/// above its low watermark; else kswapd is woken; below the min watermark the
/// task reclaims; and what is below that is given out when even this fails.
/// `None` when nothing is left.
pub(crate) fn alloc_with_reclaim(cpu: &Cpu, order: u32, flags: u64) -> Option<Pfn> {
    let host = cpu.host();
    let above = |mark: fn(&Watermarks) -> u64| {
        let free = |&node: &usize| {
            host.memory.nr_free(node) >= mark(&host.nodes[node].watermarks) + (1 << order)
        };
        (0..host.nodes.len()).find(free)
    };
    if let Some(node) = above(|marks| marks.low) {
        return host.memory.alloc(cpu, node, order, flags);
    }
    for node in 0..host.nodes.len() {
        wake_kswapd(cpu, node);
    }
    let mut retries = if cpu.is_reclaiming() { 0 } else { MAX_RETRIES };
    let pfn = loop {
        let node = above(|marks| marks.min);
        let progress = node.is_none() && retries > 0 && try_to_free_pages(cpu) > 0;
        if progress && above(|marks| marks.min).is_none() {
            retries -= 1;
            continue;
        }
        let node = above(|marks| marks.min).unwrap_or(0);
        let pfn = host.memory.alloc(cpu, node, order, flags);
        // Huge pages are not worth insisting on.
        if pfn.is_some() || retries == 0 || order > 0 || cpu.has_error() || cpu.poll() {
            break pfn;
        }
        give_way(retries);
        retries -= 1;
    };
    if pfn.is_none() && order == 0 {
        cpu.count(Counter::OomEvents);
    }
    pfn
}

/// Reclaim from a memory cgroup (`try_to_free_mem_cgroup_pages()`). Returns the
/// pages freed.
fn try_to_free_memcg_pages(
    cpu: &Cpu,
    memcg: &Memcg,
    nr_pages: u64,
    proactive: bool,
    swappiness: Option<u32>,
) -> u64 {
    let was = cpu.set_reclaiming(true);
    let mut sc = ScanControl::new(nr_pages.max(SWAP_CLUSTER_MAX));
    sc.target = Some(memcg.id);
    sc.proactive = proactive;
    sc.swappiness = swappiness;
    // The second time over stands for the walk over all cgroups that the kernel
    // makes when a partial one yields nothing.
    for _ in 0..2 {
        for priority in (0..=DEF_PRIORITY).rev() {
            sc.priority = priority;
            sc.nr_scanned = 0;
            for lruvec in &memcg.lruvecs {
                sc.unqueued_dirty = 0;
                sc.file_taken = 0;
                sc.walk = proactive.then(Batch::default);
                if try_to_shrink_lruvec(cpu, memcg, lruvec, &mut sc) {
                    let node = &cpu.host().nodes[lruvec.node];
                    node.memcg_lru.lock().rotate(memcg.id, Rotation::Young);
                }
                sc.walk = None;
            }
            if sc.nr_reclaimed >= sc.nr_to_reclaim || cpu.has_error() || cpu.poll() {
                break;
            }
        }
        if sc.nr_reclaimed > 0 || cpu.has_error() {
            break;
        }
        filemap::flush_some(cpu, FLUSH_BATCH);
    }
    cpu.set_reclaiming(was);
    sc.nr_reclaimed
}

/// Charge pages to a memory cgroup (`try_charge_memcg()`): at `memory.max` the
/// task reclaims from it first; over `memory.high` it reclaims afterwards, and
/// is counted as throttled. A task that is reclaiming already may exceed both.
///
/// # Errors
/// `ENOMEM` when the limit cannot be kept.
pub(crate) fn charge(cpu: &Cpu, memcg: &Memcg, pages: u64) -> Result<()> {
    let mut retries = MAX_RETRIES;
    while !memcg.try_charge(pages) {
        if cpu.is_reclaiming() {
            memcg.force_charge(pages);
            return Ok(());
        }
        begin_direct_reclaim(cpu);
        let freed = try_to_free_memcg_pages(cpu, memcg, pages, false, None);
        cpu.check_error()?;
        // Huge pages are not worth insisting on: a base page will do.
        if memcg.margin() >= pages || (freed > 0 && pages <= 8) {
            continue;
        }
        if retries == 0 || pages > 8 || cpu.poll() {
            cpu.count(Counter::OomEvents);
            return Err(Error::new(
                Errno::ENOMEM,
                format!(
                    "memory cgroup {:?} is at its limit of {} pages, and nothing in it \
                     can be reclaimed",
                    memcg.name,
                    memcg.max.load(Ordering::Relaxed)
                ),
            ));
        }
        give_way(retries);
        retries -= 1;
    }
    if memcg.is_over_high() && !cpu.is_reclaiming() {
        // What a notifier raises here waits for the end of the pass: the pages
        // are charged.
        handle_over_high(cpu, memcg);
    }
    Ok(())
}

/// Let others run before the next try, longer each time
/// (`reclaim_throttle()`): what cannot be reclaimed now may be isolated by, or
/// waiting for the aging walk of, a thread that has no processor.
///
/// On a busy machine each yield takes as long as others run, so the time is
/// bounded too: a task that is out of memory is not to say so minutes later.
fn give_way(retries_left: u32) {
    let times = 1u32 << (MAX_RETRIES - retries_left.min(MAX_RETRIES));
    let start = Instant::now();
    for _ in 0..times {
        thread::yield_now();
        if start.elapsed() > GIVE_WAY * times {
            return;
        }
    }
}

/// Bring a memory cgroup back below `memory.high`, or slow the task down
/// (`mem_cgroup_handle_over_high()`).
fn handle_over_high(cpu: &Cpu, memcg: &Memcg) {
    let mut retries = MAX_RETRIES;
    let mut wanted = CHARGE_BATCH;
    loop {
        begin_direct_reclaim(cpu);
        let freed = try_to_free_memcg_pages(cpu, memcg, wanted, false, None);
        wanted = SWAP_CLUSTER_MAX;
        let penalty = high_penalty_ns(memcg);
        // Delays of up to 10 ms are not worth the bookkeeping.
        if penalty <= 10_000_000 || cpu.has_error() || cpu.poll() {
            return;
        }
        if freed == 0 {
            if retries == 0 {
                cpu.count_n(Counter::HighThrottleNs, penalty);
                cpu.host().clock.advance_ns(penalty);
                return;
            }
            retries -= 1;
        }
    }
}

/// How long a task over `memory.high` sleeps (`calculate_high_delay()`): the
/// square of the relative excess, at most two seconds.
fn high_penalty_ns(memcg: &Memcg) -> u64 {
    const PRECISION: u32 = 20;
    const SCALING: u32 = 14;
    let high = memcg.high.load(Ordering::Relaxed);
    let usage = memcg.usage();
    if usage <= high {
        return 0;
    }
    let overage = (u128::from(usage - high) << PRECISION) / u128::from(high.max(1));
    let ns = (overage * overage * 1_000_000_000) >> (PRECISION + SCALING);
    ns.min(2_000_000_000) as u64
}

/// Set `memory.high`, in pages, and reclaim down to it
/// (`memory_high_write()`).
///
/// # Errors
/// What a notifier raised; `EINTR`.
pub fn set_high(cpu: &Cpu, memcg: &Memcg, pages: u64) -> Result<()> {
    memcg.high.store(pages, Ordering::Relaxed);
    reclaim_down_to(cpu, memcg, pages)
}

/// Set `memory.max`, in pages, and reclaim down to it (`memory_max_write()`).
/// Where that fails the limit stands nevertheless.
///
/// # Errors
/// What a notifier raised; `EINTR`.
pub fn set_max(cpu: &Cpu, memcg: &Memcg, pages: u64) -> Result<()> {
    memcg.max.store(pages, Ordering::Relaxed);
    reclaim_down_to(cpu, memcg, pages)
}

fn reclaim_down_to(cpu: &Cpu, memcg: &Memcg, pages: u64) -> Result<()> {
    let mut retries = MAX_RETRIES;
    while pages != UNLIMITED && memcg.usage() > pages && !cpu.poll() {
        let wanted = memcg.usage() - pages;
        if try_to_free_memcg_pages(cpu, memcg, wanted, false, None) == 0 {
            if retries == 0 {
                break;
            }
            retries -= 1;
        }
        if cpu.has_error() {
            break;
        }
    }
    cpu.finish()
}

/// Reclaim pages from a memory cgroup because someone asked
/// (`memory.reclaim`). Returns how many were.
///
/// # Errors
/// `EAGAIN` when less than `nr_pages` could be had; `EINTR`; what a notifier
/// raised.
pub fn proactive_reclaim(
    cpu: &Cpu,
    memcg: &Memcg,
    nr_pages: u64,
    swappiness: Option<u32>,
) -> Result<u64> {
    let mut retries = MAX_RETRIES;
    let mut freed = 0;
    while freed < nr_pages && !cpu.poll() && !cpu.has_error() {
        // Converges on nothing, but reclaim has a least amount.
        let batch = (nr_pages - freed) / 4;
        let got = try_to_free_memcg_pages(cpu, memcg, batch, true, swappiness);
        if got == 0 {
            if retries == 0 {
                cpu.finish()?;
                return Err(Error::new(
                    Errno::EAGAIN,
                    format!(
                        "{freed} of {nr_pages} pages were reclaimed from memory cgroup {:?}",
                        memcg.name
                    ),
                ));
            }
            retries -= 1;
        }
        freed += got;
    }
    cpu.finish()?;
    Ok(freed)
}
