//! What reclaim could do with a stream of accesses, had it known more: the
//! future, where the page that is used again last goes first (Belady's MIN), or
//! the whole past, where the page that was used least recently does (LRU).
//!
//! No way of reclaiming on demand from the same stream brings pages back less
//! often than MIN, so that is what an estimate of the working set is held
//! against. LRU is what generations come near to: where it does no better than
//! they do, no knowledge of accesses helps.

use std::collections::BinaryHeap;

/// A time that never comes.
const NEVER: u64 = u64::MAX;

/// When the oracle evicts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum When {
    /// As soon as a page would be one too many.
    OnDemand,
    /// At the end of each tick, down to what may stay. Within a tick there may
    /// be more, up to the number given.
    EachTick {
        /// Pages that may be resident within a tick.
        limit: u64,
    },
}

/// Which page goes first.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Choice {
    /// The one that is used again last (Belady's MIN).
    UsedLast,
    /// The one that was used least recently (LRU).
    LeastRecent,
}

/// Ticks: the first one may be shorter or longer than the others.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ticks {
    /// Accesses in the first.
    pub first: u64,
    /// Accesses in each of the others.
    pub every: u64,
}

/// What the oracle did in one tick.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Tick {
    /// Pages evicted.
    pub evicted: u64,
    /// Of them used again within the window.
    pub hot: u64,
    /// Of those evicted, used within the window before.
    pub recent: u64,
    /// Pages that came back after they had been evicted.
    pub refaults: u64,
}

/// Page numbers are below this.
pub const MAX_PAGE: u64 = 1 << 32;

struct Oracle {
    /// When each page is used next.
    next: Vec<u64>,
    /// When each page was last used.
    last: Vec<u64>,
    /// What each page was last put in the heap by.
    rank: Vec<u64>,
    resident: Vec<bool>,
    nr_resident: u64,
    /// Candidates, the best first; those that were used since are stale.
    heap: BinaryHeap<(u64, u32)>,
    window: u64,
}

impl Oracle {
    /// Evict the page that the choice ranks highest.
    fn evict(&mut self, now: u64, tick: &mut Tick) {
        while let Some((rank, page)) = self.heap.pop() {
            let n = page as usize;
            if !self.resident[n] || self.rank[n] != rank {
                continue;
            }
            let next = self.next[n];
            self.resident[n] = false;
            self.nr_resident -= 1;
            tick.evicted += 1;
            tick.hot += u64::from(next != NEVER && next - now <= self.window);
            tick.recent += u64::from(now - self.last[n] < self.window);
            return;
        }
    }
}

/// Run the oracle over pages accessed one after the other, with room for
/// `capacity` of them.
///
/// A page evicted counts as hot when it is used again within `window`
/// accesses: of the access that pushed it out, or of the end of the tick.
pub fn replay(
    pages: &[u32],
    capacity: u64,
    ticks: Ticks,
    window: u64,
    when: When,
    choice: Choice,
) -> Vec<Tick> {
    let (capacity, every) = (capacity.max(1), ticks.every.max(1));
    let mut end = ticks.first.max(1);
    let nr_pages = pages.iter().max().map_or(0, |&page| page as usize + 1);
    // Backwards: the next access to the same page.
    let mut next = vec![NEVER; pages.len()];
    let mut last = vec![NEVER; nr_pages];
    for (at, &page) in pages.iter().enumerate().rev() {
        next[at] = last[page as usize];
        last[page as usize] = at as u64;
    }
    let mut seen = vec![false; nr_pages];
    let mut oracle = Oracle {
        next: vec![NEVER; nr_pages],
        last: vec![0; nr_pages],
        rank: vec![0; nr_pages],
        resident: vec![false; nr_pages],
        nr_resident: 0,
        heap: BinaryHeap::new(),
        window,
    };
    let mut done = Vec::with_capacity(pages.len().div_ceil(every as usize));
    let room = match when {
        When::OnDemand => capacity,
        When::EachTick { limit } => limit.max(capacity),
    };
    let mut tick = Tick::default();
    for (at, &page) in pages.iter().enumerate() {
        let (n, now) = (page as usize, at as u64);
        if !oracle.resident[n] {
            while oracle.nr_resident >= room {
                oracle.evict(now, &mut tick);
            }
            oracle.resident[n] = true;
            oracle.nr_resident += 1;
            tick.refaults += u64::from(seen[n]);
            seen[n] = true;
        }
        oracle.next[n] = next[at];
        oracle.last[n] = now;
        oracle.rank[n] = match choice {
            Choice::UsedLast => next[at],
            Choice::LeastRecent => NEVER - now,
        };
        oracle.heap.push((oracle.rank[n], page));
        if now + 1 == end || at + 1 == pages.len() {
            end += every;
            while oracle.nr_resident > capacity {
                oracle.evict(now, &mut tick);
            }
            done.push(std::mem::take(&mut tick));
        }
    }
    done
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{RngCore, SeedableRng};
    use rand_xoshiro::Xoshiro256PlusPlus;

    fn optimal(pages: &[u32], capacity: u64, every: u64, window: u64, when: When) -> Vec<Tick> {
        let ticks = Ticks {
            first: every,
            every,
        };
        replay(pages, capacity, ticks, window, when, Choice::UsedLast)
    }

    fn sum(ticks: &[Tick]) -> Tick {
        ticks.iter().fold(Tick::default(), |a, b| Tick {
            evicted: a.evicted + b.evicted,
            hot: a.hot + b.hot,
            recent: a.recent + b.recent,
            refaults: a.refaults + b.refaults,
        })
    }

    #[test]
    fn the_textbook_string_has_the_textbook_faults() {
        let pages = [7, 0, 1, 2, 0, 3, 0, 4, 2, 3, 0, 3, 2, 1, 2, 0, 1, 7, 0, 1];
        let found = sum(&optimal(&pages, 3, 5, 3, When::OnDemand));
        // Nine faults, six of them first touches.
        assert_eq!(found.refaults, 9 - 6);
        assert_eq!(found.evicted, 9 - 3);
    }

    /// The fewest refaults, by trying everything.
    fn least(pages: &[u32], resident: u32, seen: u32, room: u32) -> u64 {
        let Some((&page, rest)) = pages.split_first() else {
            return 0;
        };
        let bit = 1 << page;
        if resident & bit != 0 {
            return least(rest, resident, seen, room);
        }
        let cost = u64::from(seen & bit != 0);
        let seen = seen | bit;
        if resident.count_ones() < room {
            return cost + least(rest, resident | bit, seen, room);
        }
        (0..32)
            .filter(|n| resident & 1 << n != 0)
            .map(|n| cost + least(rest, resident & !(1 << n) | bit, seen, room))
            .min()
            .expect("something is resident")
    }

    #[test]
    fn nothing_does_better() {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(3);
        for _ in 0..200 {
            let pages: Vec<u32> = (0..10).map(|_| (rng.next_u64() % 5) as u32).collect();
            let found = sum(&optimal(&pages, 2, 4, 4, When::OnDemand));
            assert_eq!(found.refaults, least(&pages, 0, 0, 2), "{pages:?}");
        }
    }

    #[test]
    fn at_the_end_of_a_tick_it_evicts_down_to_what_may_stay() {
        let pages = [0, 1, 2, 3, 3, 0, 1, 2];
        let found = optimal(&pages, 2, 4, 2, When::EachTick { limit: 4 });
        // 3 and 0 are used first; 1 and 2 come 3 and 4 accesses after the end.
        assert_eq!((found[0].evicted, found[0].hot), (2, 0));
        assert_eq!(found[1].refaults, 2);
        assert_eq!(found.len(), 2);
        let narrow = sum(&optimal(&pages, 2, 4, 8, When::EachTick { limit: 2 }));
        assert!(narrow.refaults >= 2 && narrow.hot >= narrow.refaults);
    }

    /// LRU as a list, the most recent last: refaults and hot evictions of ticks.
    fn lru(pages: &[u32], capacity: usize, ticks: Ticks, window: u64, when: When) -> Vec<Tick> {
        let (mut list, mut seen): (Vec<u32>, Vec<u32>) = (Vec::new(), Vec::new());
        let (mut done, mut tick, mut end) = (Vec::new(), Tick::default(), ticks.first);
        let evict = |list: &mut Vec<u32>, now: usize, tick: &mut Tick| {
            let page = list.remove(0);
            let next = pages[now..].iter().position(|&other| other == page);
            tick.evicted += 1;
            tick.hot += u64::from(next.is_some_and(|n| n as u64 <= window));
            let before = (now + 1).saturating_sub(window as usize);
            tick.recent += u64::from(pages[before..=now].contains(&page));
        };
        let room = match when {
            When::OnDemand => capacity,
            When::EachTick { limit } => limit as usize,
        };
        for (at, &page) in pages.iter().enumerate() {
            if let Some(n) = list.iter().position(|&other| other == page) {
                list.remove(n);
            } else {
                while list.len() >= room {
                    evict(&mut list, at, &mut tick);
                }
                tick.refaults += u64::from(seen.contains(&page));
                seen.push(page);
            }
            list.push(page);
            if at as u64 + 1 == end || at + 1 == pages.len() {
                end += ticks.every;
                while list.len() > capacity {
                    evict(&mut list, at, &mut tick);
                }
                done.push(std::mem::take(&mut tick));
            }
        }
        done
    }

    #[test]
    fn lru_is_the_list() {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(5);
        for round in 0..200 {
            let pages: Vec<u32> = (0..60).map(|_| (rng.next_u64() % 9) as u32).collect();
            let ticks = Ticks {
                first: 1 + round % 7,
                every: 5,
            };
            for when in [When::OnDemand, When::EachTick { limit: 7 }] {
                let found = replay(&pages, 4, ticks, 6, when, Choice::LeastRecent);
                assert_eq!(found, lru(&pages, 4, ticks, 6, when), "{pages:?}");
                let best = replay(&pages, 4, ticks, 6, when, Choice::UsedLast);
                assert_eq!(best.len(), found.len());
                assert!(sum(&best).refaults <= sum(&found).refaults);
            }
        }
    }
}
