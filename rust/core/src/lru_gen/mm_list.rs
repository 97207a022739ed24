//! The mms of a memory cgroup, and how several walkers share them
//! (`mm/vmscan.c`, "mm_struct list").
//!
//! An iteration belongs to one sequence number of one lruvec. Any number of
//! walkers take part; each mm is given to one of them; the one that meets the
//! end of the list raises the state's number and is told to advance `max_seq`,
//! so every number has one winner.

use super::lruvec::{LruVec, NR_MM_STATS, hist_from_seq};
use crate::mm::Mm;
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::lock::SpinLock;
use std::sync::{Arc, Weak};

/// Places in the list: 0 is its end (and what is before its beginning), `n` the
/// n-th mm.
type Place = usize;
const END: Place = 0;

/// Where the iterations of one lruvec stand (`struct lru_gen_mm_state`).
#[derive(Clone, Copy, Default)]
struct Iteration {
    /// The mm given out last; the iteration continues after it.
    head: Option<Place>,
    /// The first mm that was added after the last iteration; none if no
    /// iteration has begun.
    tail: Option<Place>,
}

struct Fifo {
    mms: Vec<Weak<Mm>>,
    /// One per node.
    iterations: Vec<Iteration>,
}

/// The mms of a memory cgroup (`struct lru_gen_mm_list`).
pub struct MmList {
    fifo: SpinLock<Fifo>,
}

/// What [`MmList::next`] found.
pub struct Next {
    /// An mm to walk.
    pub mm: Option<Arc<Mm>>,
    /// This walker ended the iteration, and advances `max_seq`.
    pub last: bool,
    /// An mm that is new since the last iteration was met.
    pub force_scan: bool,
}

impl MmList {
    pub(crate) fn new(nodes: usize) -> Self {
        MmList {
            fifo: SpinLock::new(Fifo {
                mms: Vec::new(),
                iterations: vec![Iteration::default(); nodes],
            }),
        }
    }

    /// Put an mm at the end of the list (`lru_gen_add_mm()`).
    pub(crate) fn add(&self, mm: &Arc<Mm>) {
        let mut fifo = self.fifo.lock();
        fifo.mms.push(Arc::downgrade(mm));
        let place = fifo.mms.len();
        for iteration in &mut fifo.iterations {
            // The first addition since the last iteration.
            if iteration.tail == Some(END) {
                iteration.tail = Some(place);
            }
        }
    }

    /// Take an mm out, keeping running iterations in place
    /// (`lru_gen_del_mm()`).
    pub(crate) fn remove(&self, mm: &Arc<Mm>) {
        let mut fifo = self.fifo.lock();
        let Some(at) = fifo.mms.iter().position(|m| m.as_ptr() == Arc::as_ptr(mm)) else {
            return;
        };
        fifo.mms.remove(at);
        let place = at + 1;
        let len = fifo.mms.len();
        for iteration in &mut fifo.iterations {
            // To the one before it, whose place does not change.
            if let Some(head) = &mut iteration.head
                && *head >= place
            {
                *head -= 1;
            }
            match &mut iteration.tail {
                // To the one after it, which takes its place.
                Some(tail) if *tail == place => {
                    *tail = if place > len { END } else { place };
                }
                Some(tail) if *tail > place => *tail -= 1,
                _ => {}
            }
        }
    }

    /// Mms in the list.
    pub fn len(&self) -> usize {
        self.fifo.lock().mms.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Give out the next mm of the iteration for `seq`, beginning it if need be
    /// (`iterate_mm_list()`). The caller hands in the counts of the mm that it
    /// has walked, if it has walked one.
    pub(crate) fn next(
        &self,
        lruvec: &LruVec,
        seq: u64,
        mut force_scan: bool,
        walked: Option<&mut [u64; NR_MM_STATS]>,
    ) -> Next {
        let state = &lruvec.mm_state;
        let node = lruvec.node;
        let mut first = false;
        let mut last = false;
        let mut mm = None;
        {
            let mut fifo = self.fifo.lock();
            if seq > state.seq.load(Ordering::Relaxed) {
                let mut iteration = fifo.iterations[node];
                let mut head = iteration.head.unwrap_or(END);
                first = head == END;
                while mm.is_none() {
                    head = (head + 1) % (fifo.mms.len() + 1);
                    if head == END {
                        // Release: pairs with the acquire of whoever asks
                        // whether an iteration for this number is over.
                        state.seq.fetch_add(1, Ordering::Release);
                        last = true;
                        break;
                    }
                    if iteration.tail.is_none_or(|tail| tail == head) {
                        iteration.tail = Some((head + 1) % (fifo.mms.len() + 1));
                        force_scan = true;
                    }
                    mm = take(&fifo.mms[head - 1], node, force_scan);
                }
                iteration.head = Some(head);
                fifo.iterations[node] = iteration;
            }
            if last || walked.is_some() {
                add_stats(lruvec, seq, walked, last);
            }
        }
        if first && mm.is_some() {
            state.filters[(seq as usize + 1) % 2].reset();
        }
        Next {
            mm,
            last,
            force_scan,
        }
    }

    /// Advance the state without walking (`iterate_mm_list_nowalk()`); true
    /// for the one thread that did.
    pub(crate) fn skip(&self, lruvec: &LruVec, seq: u64) -> bool {
        let mut fifo = self.fifo.lock();
        let state = &lruvec.mm_state;
        if seq <= state.seq.load(Ordering::Relaxed) {
            return false;
        }
        fifo.iterations[lruvec.node] = Iteration::default();
        state.seq.fetch_add(1, Ordering::Release);
        true
    }
}

/// The mm, if it is alive and ran since it was last taken or if all are wanted
/// (`get_next_mm()`).
fn take(mm: &Weak<Mm>, node: usize, force_scan: bool) -> Option<Arc<Mm>> {
    let mm = mm.upgrade()?;
    let bit = 1 << (node % 64);
    if !force_scan && mm.ran.load(Ordering::Relaxed) & bit == 0 {
        return None;
    }
    mm.ran.fetch_and(!bit, Ordering::Relaxed);
    Some(mm)
}

/// Add a walk's counts to the generation's, and at the end of an iteration
/// clear those of the next (`reset_mm_stats()`). Under the list's lock.
fn add_stats(lruvec: &LruVec, seq: u64, walked: Option<&mut [u64; NR_MM_STATS]>, last: bool) {
    let stats = &lruvec.mm_state.stats;
    if let Some(walked) = walked {
        for (sum, n) in stats[hist_from_seq(seq)].iter().zip(walked.iter_mut()) {
            add(sum, std::mem::take(n));
        }
    }
    if last {
        for sum in &stats[hist_from_seq(seq + 1)] {
            sum.store(0, Ordering::Relaxed);
        }
    }
}

fn add(sum: &AtomicU64, n: u64) {
    // Relaxed, and not a read-modify-write: written under the list's lock only.
    sum.store(sum.load(Ordering::Relaxed) + n, Ordering::Relaxed);
}
