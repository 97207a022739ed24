//! Making new generations, and retiring old ones (`try_to_inc_max_seq()`,
//! `inc_max_seq()`, `inc_min_seq()`, `should_run_aging()` of `mm/vmscan.c`).

use super::folio::inc_gen_word;
use super::lruvec::{
    ANON, FILE, Lists, LruVec, MAX_LRU_BATCH, MAX_NR_GENS, MIN_NR_GENS, NR_TYPES, gen_from_seq,
};
use super::walk::MmWalk;
use crate::cpu::Cpu;
use crate::error::{Errno, Error, Result};
use crate::mm::Memcg;
use crate::mm::PhysMem;
use crate::mutant::{self, Mutant};
use crate::sync::atomic::Ordering;
use crate::trace::{Counter, CounterValues};
use std::time::{Duration, Instant};

/// What one aging pass did.
#[derive(Clone, Debug)]
pub struct PassStats {
    /// The youngest generation when the pass began.
    pub seq: u64,
    /// Whether this pass made the next one; false when another ager did.
    pub advanced: bool,
    /// How long it took.
    pub elapsed: Duration,
    /// How much of that was walking page tables; the rest made the generation,
    /// and folded the oldest one into the next where that was in the way.
    pub walking: Duration,
    /// What was counted in the pass.
    pub counters: CounterValues,
}

/// One aging pass at the current youngest generation, as the `+` command makes
/// it.
///
/// # Errors
/// `EINVAL` for a node that is not there, `ERANGE` without `force_scan` when
/// all generations exist; what a notifier's callback raised; `EINTR`.
pub fn age(
    cpu: &Cpu,
    memcg: &Memcg,
    node: usize,
    can_swap: bool,
    force_scan: bool,
) -> Result<PassStats> {
    let lruvec = memcg.lruvecs.get(node).ok_or_else(|| {
        Error::invalid(format!(
            "node {node}: the host has {} nodes",
            memcg.lruvecs.len()
        ))
    })?;
    let before = cpu.counters.snapshot();
    let start = Instant::now();
    let seq = lruvec.max_seq();
    let mut walking = Duration::ZERO;
    let aging = Aging {
        cpu,
        memcg,
        lruvec,
        seq,
        can_swap,
        force_scan,
    };
    let advanced = aging.run(&mut walking)?;
    Ok(PassStats {
        seq,
        advanced,
        elapsed: start.elapsed(),
        walking,
        counters: cpu.counters.snapshot().since(&before),
    })
}

/// Age generation `seq` (`run_aging()`): an older one does nothing. Returns
/// whether this call made the next generation.
///
/// # Errors
/// `EINVAL` for a number above the youngest, `ERANGE` without `force_scan` when
/// all generations exist; what a notifier's callback raised; `EINTR`.
pub fn run_aging(
    cpu: &Cpu,
    memcg: &Memcg,
    lruvec: &LruVec,
    seq: u64,
    can_swap: bool,
    force_scan: bool,
) -> Result<bool> {
    let mut walking = Duration::ZERO;
    Aging {
        cpu,
        memcg,
        lruvec,
        seq,
        can_swap,
        force_scan,
    }
    .run(&mut walking)
}

/// Take part in the iteration for `seq`, and make the next generation if this
/// thread ends it (`try_to_inc_max_seq()`).
pub(crate) fn try_to_inc_max_seq(
    cpu: &Cpu,
    memcg: &Memcg,
    lruvec: &LruVec,
    seq: u64,
    can_swap: bool,
) -> bool {
    let mut walking = Duration::ZERO;
    Aging {
        cpu,
        memcg,
        lruvec,
        seq,
        can_swap,
        force_scan: false,
    }
    .iterate_and_inc(&mut walking)
}

/// One thread's part in aging a generation.
struct Aging<'a> {
    cpu: &'a Cpu,
    memcg: &'a Memcg,
    lruvec: &'a LruVec,
    seq: u64,
    can_swap: bool,
    force_scan: bool,
}

impl Aging<'_> {
    /// [`run_aging`], which adds the time for which it walks page tables.
    fn run(&self, walking: &mut Duration) -> Result<bool> {
        let (seq, max_seq) = (self.seq, self.lruvec.max_seq());
        if seq < max_seq {
            return Ok(false);
        }
        if seq > max_seq {
            return Err(Error::invalid(format!(
                "generation {seq} is younger than the youngest, {max_seq}"
            )));
        }
        let oldest = self.lruvec.min_seq(usize::from(!self.can_swap));
        if !self.force_scan && oldest + MAX_NR_GENS as u64 - 1 <= max_seq {
            return Err(Error::new(
                Errno::ERANGE,
                format!(
                    "generations {oldest} to {max_seq} exist, which is all {MAX_NR_GENS}: \
                     another needs force_scan"
                ),
            ));
        }
        let advanced = self.iterate_and_inc(walking);
        self.cpu.check_error()?;
        Ok(advanced)
    }

    fn iterate_and_inc(&self, walking: &mut Duration) -> bool {
        // Acquire: pairs with the release where an iteration ends.
        if self.seq <= self.lruvec.mm_state.seq.load(Ordering::Acquire) {
            return false;
        }
        let mine = if self.cpu.host().lru_gen.walks_mmu() {
            let start = Instant::now();
            let last = self.iterate();
            *walking += start.elapsed();
            last
        } else {
            self.memcg.mm_list.skip(self.lruvec, self.seq)
        };
        let mine = mine || mutant::active(Mutant::DoubleIncrement);
        mine && inc_max_seq(self.cpu, self.lruvec, self.seq, self.can_swap)
    }

    /// Walk mms until the iteration ends; true if this thread ended it.
    fn iterate(&self) -> bool {
        let (cpu, lruvec, seq) = (self.cpu, self.lruvec, self.seq);
        let mut walk = MmWalk::new(cpu, lruvec, seq, self.can_swap, self.force_scan);
        let mut walked = false;
        loop {
            let counts = walk.stats;
            let stats = walked.then_some(&mut walk.stats);
            let next = self.memcg.mm_list.next(lruvec, seq, walk.force_scan, stats);
            count(cpu, &counts, walked);
            walk.force_scan = next.force_scan;
            let Some(mm) = next.mm else {
                return next.last;
            };
            walk.walk_mm(cpu, &mm);
            walked = true;
            if walk.stopped {
                // Not the end of the iteration: the next ager goes on after
                // this mm, or meets the end and makes the generation.
                count(cpu, &walk.stats, true);
                return false;
            }
        }
    }
}

fn count(cpu: &Cpu, counts: &[u64; super::lruvec::NR_MM_STATS], walked: bool) {
    const COUNTERS: [Counter; super::lruvec::NR_MM_STATS] = [
        Counter::MmLeafTotal,
        Counter::MmLeafOld,
        Counter::MmLeafYoung,
        Counter::MmNonleafTotal,
        Counter::MmNonleafFound,
        Counter::MmNonleafAdded,
    ];
    if walked {
        for (counter, &n) in COUNTERS.into_iter().zip(counts) {
            cpu.count_n(counter, n);
        }
    }
}

/// Make the generation after `seq` (`inc_max_seq()`).
fn inc_max_seq(cpu: &Cpu, lruvec: &LruVec, seq: u64, can_swap: bool) -> bool {
    let host = cpu.host();
    loop {
        if seq < lruvec.max_seq() {
            return false;
        }
        let mut lists = lruvec.lru_lock.lock();
        if seq != lruvec.max_seq() && !mutant::active(Mutant::DoubleIncrement) {
            return false;
        }
        // The new generation takes the oldest one's slot, which must be free.
        let emptied = [FILE, ANON].into_iter().all(|ty| {
            lruvec.nr_gens(ty) != MAX_NR_GENS
                || inc_min_seq(cpu, lruvec, &mut lists, &host.memory, ty, can_swap)
        });
        if !emptied {
            // A batch was moved: let others have the lock, then go on.
            lruvec.lru_lock.pass_on(lists);
            continue;
        }
        // vmstat: the second youngest becomes inactive. The slot of the new
        // youngest becomes active with what is in it, for it is not empty when
        // unswappable anonymous pages wrap round into it.
        let prev = gen_from_seq(seq - 1);
        let next = gen_from_seq(seq + 1);
        for ty in 0..NR_TYPES {
            let delta = lruvec.nr_pages(prev, ty) - lruvec.nr_pages(next, ty);
            lruvec.deactivate_pages(&mut lists, ty, delta);
            lruvec.reset_ctrl_pos(&mut lists, ty, false);
        }
        lruvec.publish_max_seq(&mut lists, host.clock.now_ns());
        return true;
    }
}

/// Empty the oldest generation of a type into the next and retire it
/// (`inc_min_seq()`); false when a lock hold's worth of folios was moved and
/// more are left. Anonymous pages that cannot be swapped stay in their slot,
/// which the generation after the youngest then reuses.
fn inc_min_seq(
    cpu: &Cpu,
    lruvec: &LruVec,
    lists: &mut Lists,
    memory: &PhysMem,
    ty: usize,
    can_swap: bool,
) -> bool {
    if ty == FILE || can_swap {
        let oldest = gen_from_seq(lruvec.min_seq(ty));
        let next = gen_from_seq(lruvec.min_seq(ty) + 1);
        let mut pages = 0;
        let folios = lists.move_from_tail(memory, oldest, ty, MAX_LRU_BATCH, |pfn| {
            let (moved, generation) = inc_gen_word(memory, pfn, oldest, false);
            pages += moved.map_or(0, |word| word.nr_pages() as i64);
            generation
        });
        // Once for all of them: nobody sees the sizes in between.
        lruvec.add_pages(lists, oldest, ty, -pages);
        lruvec.add_pages(lists, next, ty, pages);
        cpu.count_n(Counter::FoliosAged, folios as u64);
        if folios == MAX_LRU_BATCH {
            return false;
        }
    }
    lruvec.reset_ctrl_pos(lists, ty, true);
    let next = lruvec.min_seq(ty) + 1;
    lruvec.set_min_seq(lists, ty, next);
    true
}

/// Retire empty oldest generations (`try_to_inc_min_seq()`). With swapping
/// both types advance together, to the smaller of what each could do alone,
/// except that a file number already ahead stays; without, file alone.
pub(crate) fn try_to_inc_min_seq(lruvec: &LruVec, lists: &mut Lists, can_swap: bool) -> bool {
    let max_seq = lruvec.max_seq();
    let mut min_seq = [lruvec.min_seq(ANON), lruvec.min_seq(FILE)];
    let first = usize::from(!can_swap);
    for (ty, seq) in min_seq.iter_mut().enumerate().skip(first) {
        while *seq + MIN_NR_GENS as u64 <= max_seq && lists.is_empty(gen_from_seq(*seq), ty) {
            *seq += 1;
        }
    }
    if can_swap {
        min_seq[ANON] = min_seq[ANON].min(min_seq[FILE]);
        min_seq[FILE] = min_seq[ANON].max(lruvec.min_seq(FILE));
    }
    let mut advanced = false;
    for (ty, &seq) in min_seq.iter().enumerate().skip(first) {
        if seq != lruvec.min_seq(ty) {
            lruvec.reset_ctrl_pos(lists, ty, true);
            lruvec.set_min_seq(lists, ty, seq);
            advanced = true;
        }
    }
    advanced
}

/// Whether reclaim should age before it evicts, and how many pages it could
/// scan (`should_run_aging()`).
pub(crate) fn should_run_aging(lruvec: &LruVec, max_seq: u64, can_swap: bool) -> (bool, u64) {
    let min_nr_gens = MIN_NR_GENS as u64;
    let min_seq = [lruvec.min_seq(ANON), lruvec.min_seq(FILE)];
    let oldest = min_seq[usize::from(!can_swap)];
    if oldest + min_nr_gens > max_seq {
        return (true, 0);
    }
    let mut total = 0;
    let mut young = 0;
    let mut old = 0;
    for (ty, &first) in min_seq.iter().enumerate().skip(usize::from(!can_swap)) {
        for seq in first..=max_seq {
            let size = lruvec.nr_pages(gen_from_seq(seq), ty).max(0) as u64;
            total += size;
            if seq == max_seq {
                young += size;
            } else if seq + min_nr_gens == max_seq {
                old += size;
            }
        }
    }
    // The ideal is one generation more than must be left: more than that and
    // there is enough to evict, else the pages should be spread evenly.
    let advice = oldest + min_nr_gens == max_seq
        && (young * min_nr_gens > total || old * (min_nr_gens + 2) < total);
    (advice, total)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    /// A lruvec of four generations of anonymous pages, of which `min_seq` are
    /// retired, with pages in each.
    fn lruvec(min_seq: u64, anon: [i64; 4]) -> LruVec {
        let lruvec = LruVec::new(1, 0, 0);
        {
            let mut lists = lruvec.lru_lock.lock();
            for ty in [ANON, FILE] {
                lruvec.set_min_seq(&mut lists, ty, min_seq);
            }
            for (generation, pages) in anon.into_iter().enumerate() {
                lruvec.add_pages(&mut lists, generation, ANON, pages);
            }
        }
        lruvec
    }

    #[test]
    fn aging_is_advised_when_cold_pages_run_out_or_are_badly_spread() {
        let advice = |min_seq, anon| should_run_aging(&lruvec(min_seq, anon), 3, true);
        assert_eq!(
            advice(2, [0, 0, 50, 50]),
            (true, 0),
            "nothing may be evicted"
        );
        assert_eq!(advice(0, [0, 0, 0, 900]), (false, 900), "four are enough");
        assert_eq!(advice(1, [0, 25, 25, 50]), (false, 100), "evenly spread");
        assert_eq!(
            advice(1, [0, 25, 24, 51]),
            (true, 100),
            "more than half are young"
        );
        assert_eq!(
            advice(1, [0, 24, 38, 38]),
            (true, 100),
            "less than a quarter are old"
        );
        // A size that a walk has not applied yet counts as none.
        assert_eq!(advice(1, [0, 50, -30, 50]), (false, 100));
        // Without swapping, only file pages and their generations count.
        assert_eq!(
            should_run_aging(&lruvec(1, [0, 9, 9, 9]), 3, false),
            (false, 0)
        );
    }

    #[test]
    fn empty_generations_retire_together() {
        let host = crate::Host::new(&crate::HostConfig {
            nodes: vec![64],
            swap_pages: 0,
            virtual_clock: true,
        })
        .expect("a valid host");
        let retire = |fill: &[(usize, usize)], swap| {
            let lruvec = LruVec::new(1, 0, 0);
            let mut lists = lruvec.lru_lock.lock();
            for (n, &(generation, ty)) in fill.iter().enumerate() {
                lists.add_head(&host.memory, generation, ty, crate::mm::Pfn(n as u32 + 1));
            }
            let advanced = try_to_inc_min_seq(&lruvec, &mut lists, swap);
            (advanced, lruvec.min_seq(ANON), lruvec.min_seq(FILE))
        };
        assert_eq!(retire(&[], true), (true, 2, 2), "down to two");
        assert_eq!(
            retire(&[(1, ANON)], true),
            (true, 1, 1),
            "to the smaller of both"
        );
        assert_eq!(retire(&[(1, FILE), (2, ANON)], true), (true, 1, 1));
        assert_eq!(retire(&[(0, ANON)], true), (false, 0, 0));
        assert_eq!(retire(&[(0, ANON)], false), (true, 0, 2), "file alone");
    }
}
