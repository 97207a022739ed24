//! A sampler of memory regions, as DAMON is (`mm/damon/core.c`,
//! `mm/damon/vaddr.c`).
//!
//! Memory is divided into regions whose pages are thought to be used alike.
//! Before each sampling interval one page of each region, drawn at random, is
//! made old ([`Damon::prepare`]); after it the page is asked whether it is young
//! again ([`Damon::check`]). After some intervals neighbours that were found
//! young about as often are merged, and what is left is split at random places
//! ([`Damon::aggregate`]). The cost is bounded by the number of regions, whatever
//! the size of memory; the price is that a region has one answer for all of its
//! pages.
//!
//! A page is made old through the *accurate* `clear_young` notifier, and asked
//! through the accurate `test_young`: DAMON is the second user of the notifiers
//! that the series touches. The idle flag remembers for the sampler what others
//! clear meanwhile, the young flag remembers for reclaim what the sampler clears.

use super::PAGE_SIZE;
use super::folio::{FolioWord, IDLE, LRU, Pfn, Word, YOUNG};
use super::mm::{Entry, Mm};
use super::pagetable::{SPECIAL, TASK_SIZE, level_size};
use super::young::{Flush, clear_young_notify};
use crate::cpu::Cpu;
use crate::error::{Error, Result};
use rand::{Rng, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;

/// Most regions that may be asked for. The kernel's limit is its memory; here a
/// number that is meant for something else is not to take all of the host's.
pub const MAX_REGIONS: u32 = 1 << 20;

/// How a [`Damon`] samples (`struct damon_attrs`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Attrs {
    /// Sampling intervals in an aggregation interval.
    pub samples: u32,
    /// Regions there are at least, where memory has as many pages.
    pub min_regions: u32,
    /// Regions there are at most, but for a moment after a split.
    pub max_regions: u32,
}

impl Default for Attrs {
    /// The kernel's: 5 ms in 100 ms, 10 to 1000 regions.
    fn default() -> Self {
        Attrs {
            samples: 20,
            min_regions: 10,
            max_regions: 1000,
        }
    }
}

/// Pages that are thought to be used alike (`struct damon_region`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Region {
    /// Its first page, counted from the start of what is watched.
    pub start: u64,
    /// One past its last page.
    pub end: u64,
    /// Sampling intervals of this aggregation in which its page was young.
    pub nr_accesses: u32,
    /// The same of the aggregation before.
    pub last_nr_accesses: u32,
    /// Aggregations for which it has been used about as much.
    pub age: u32,
    /// The page that is watched in this sampling interval.
    sampled: u64,
}

impl Region {
    fn new(start: u64, end: u64) -> Self {
        Region {
            start,
            end,
            nr_accesses: 0,
            last_nr_accesses: 0,
            age: 0,
            sampled: start,
        }
    }

    /// How many pages.
    pub fn pages(&self) -> u64 {
        self.end - self.start
    }
}

/// A sampler of a range of an mm's memory.
pub struct Damon {
    start: u64,
    attrs: Attrs,
    regions: Vec<Region>,
    /// Pages that a merged region may have.
    size_limit: u64,
    /// Regions before the last split.
    last_nr_regions: usize,
    rng: Xoshiro256PlusPlus,
}

impl Damon {
    /// A sampler of `pages` pages at `start`, in equal regions at first.
    ///
    /// # Errors
    /// `EINVAL` for a range that is none, or for attributes that contradict each
    /// other.
    pub fn new(start: u64, pages: u64, attrs: Attrs, seed: u64) -> Result<Self> {
        let end = pages
            .checked_mul(PAGE_SIZE)
            .and_then(|length| start.checked_add(length));
        if pages == 0 || !start.is_multiple_of(PAGE_SIZE) || end.is_none_or(|end| end > TASK_SIZE) {
            return Err(Error::invalid(format!(
                "{pages} pages at {start:#x}: expected whole pages below {TASK_SIZE:#x}"
            )));
        }
        if attrs.samples == 0
            || attrs.min_regions < 3
            || attrs.min_regions > attrs.max_regions
            || attrs.max_regions > MAX_REGIONS
        {
            return Err(Error::invalid(format!(
                "{} samples, {} to {} regions: expected at least 1 sample, and 3 to {MAX_REGIONS} \
                 regions",
                attrs.samples, attrs.min_regions, attrs.max_regions
            )));
        }
        let size = (pages / u64::from(attrs.min_regions)).max(1);
        let count = pages / size;
        let regions = (0..count)
            .map(|n| {
                let end = if n + 1 == count {
                    pages
                } else {
                    (n + 1) * size
                };
                Region::new(n * size, end)
            })
            .collect();
        Ok(Damon {
            start,
            attrs,
            regions,
            size_limit: size,
            last_nr_regions: 0,
            rng: Xoshiro256PlusPlus::seed_from_u64(seed),
        })
    }

    /// The regions as they are now, in order of their pages.
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }

    /// Draw a page of each region and make it old
    /// (`damon_va_prepare_access_checks()`).
    pub fn prepare(&mut self, cpu: &Cpu, mm: &Mm) {
        for region in &mut self.regions {
            region.sampled = self.rng.random_range(region.start..region.end);
            make_old(cpu, mm, self.start + region.sampled * PAGE_SIZE);
        }
    }

    /// Ask the pages drawn whether they were accessed since
    /// (`damon_va_check_accesses()`).
    pub fn check(&mut self, cpu: &Cpu, mm: &Mm) {
        for region in &mut self.regions {
            let young = is_young(cpu, mm, self.start + region.sampled * PAGE_SIZE);
            region.nr_accesses += u32::from(young);
        }
    }

    /// End an aggregation interval: merge neighbours that are alike, hand out
    /// what was found, count from 0 again and split (`kdamond_merge_regions()`,
    /// `kdamond_reset_aggregated()`, `kdamond_split_regions()`).
    pub fn aggregate(&mut self) -> Vec<Region> {
        self.merge();
        let found = self.regions.clone();
        for region in &mut self.regions {
            region.last_nr_accesses = region.nr_accesses;
            region.nr_accesses = 0;
        }
        self.split();
        found
    }

    fn merge(&mut self) {
        let most = self.regions.iter().map(|r| r.nr_accesses).max();
        let mut threshold = most.unwrap_or(0) / 10;
        for region in &mut self.regions {
            if region.nr_accesses.abs_diff(region.last_nr_accesses) > threshold {
                region.age = 0;
            } else {
                region.age += 1;
            }
        }
        loop {
            self.merge_alike(threshold);
            let too_many = self.regions.len() > self.attrs.max_regions as usize;
            if !too_many || threshold >= self.attrs.samples {
                return;
            }
            // Regions less alike than wanted, rather than too many.
            threshold = threshold.saturating_mul(2).clamp(1, self.attrs.samples);
        }
    }

    fn merge_alike(&mut self, threshold: u32) {
        let limit = self.size_limit;
        self.regions.dedup_by(|next, before| {
            let (left, right) = (before.pages(), next.pages());
            let alike = before.nr_accesses.abs_diff(next.nr_accesses) <= threshold;
            if !alike || left + right > limit {
                return false;
            }
            let mean = |a: u32, b: u32| {
                ((u64::from(a) * left + u64::from(b) * right) / (left + right)) as u32
            };
            before.nr_accesses = mean(before.nr_accesses, next.nr_accesses);
            before.age = mean(before.age, next.age);
            before.end = next.end;
            true
        });
    }

    fn split(&mut self) {
        let (count, most) = (self.regions.len(), self.attrs.max_regions as usize);
        if count > most / 2 {
            return;
        }
        // Where two parts brought nothing new, three may.
        let parts = if self.last_nr_regions == count && count < most / 3 {
            3
        } else {
            2
        };
        let mut split = Vec::with_capacity(count * parts);
        for mut region in self.regions.drain(..) {
            let at = split.len();
            for _ in 1..parts {
                let pages = region.pages();
                // From a tenth to nine tenths stay on the left, and are what the
                // next cut is made in.
                let left = self.rng.random_range(1..10) * pages / 10;
                if pages > 2 && left > 0 {
                    let mut right = region;
                    right.start = region.start + left;
                    region.end = right.start;
                    split.insert(at, right);
                }
            }
            split.insert(at, region);
        }
        self.regions = split;
        self.last_nr_regions = count;
    }
}

/// The leaf that maps an address, with the folio's frame, if that is user memory
/// (`damon_get_folio()`).
fn user_leaf(cpu: &Cpu, mm: &Mm, address: u64) -> Option<(Entry, Pfn, bool)> {
    let (entry, pte) = mm.lookup(address);
    if !pte.is_leaf(entry.level) || pte.has(SPECIAL) {
        return None;
    }
    let memory = &cpu.host().memory;
    let offset = (address & (level_size(entry.level) - 1)) / PAGE_SIZE;
    let head = memory.head(Pfn(pte.pfn().0 + offset as u32));
    let on_lru = memory.word(head).get().has(LRU);
    on_lru.then(|| (entry, head, pte.is_young()))
}

/// Clear what says that a page was accessed, and mark it idle
/// (`damon_va_mkold()`).
fn make_old(cpu: &Cpu, mm: &Mm, address: u64) {
    let _section = cpu.rcu.lock();
    let Some((entry, head, _)) = user_leaf(cpu, mm, address) else {
        return;
    };
    let size = level_size(entry.level);
    let young = clear_young_notify(cpu, mm, entry, address & !(size - 1), size, Flush::No);
    cpu.host().memory.word(head).modify(|word| {
        let young = if young { YOUNG } else { 0 };
        let new = Word(word.0 | IDLE | young);
        (word.has(LRU) && new != word).then_some(new)
    });
}

/// Whether a page was accessed since it was made old (`damon_va_young()`).
fn is_young(cpu: &Cpu, mm: &Mm, address: u64) -> bool {
    let _section = cpu.rcu.lock();
    let Some((_, head, young)) = user_leaf(cpu, mm, address) else {
        return false;
    };
    young
        || !cpu.host().memory.word(head).get().has(IDLE)
        || mm.notifiers.test_young(cpu, address, false)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole(damon: &Damon, pages: u64) {
        let mut at = 0;
        for region in damon.regions() {
            assert_eq!(region.start, at);
            assert!(region.pages() > 0);
            at = region.end;
        }
        assert_eq!(at, pages);
    }

    #[test]
    fn regions_always_cover_everything_once() {
        for pages in [1, 2, 9, 10, 11, 1000, 123_457] {
            let attrs = Attrs {
                max_regions: 60,
                ..Attrs::default()
            };
            let mut damon = Damon::new(PAGE_SIZE, pages, attrs, pages).expect("a sampler");
            whole(&damon, pages);
            for round in 0..40 {
                for (n, region) in damon.regions.iter_mut().enumerate() {
                    region.nr_accesses = (n as u32 * 7 + round) % 21;
                }
                let found = damon.aggregate();
                assert!(
                    found.len() <= 60.max(pages.min(10) as usize + 1),
                    "{}",
                    found.len()
                );
                whole(&damon, pages);
            }
        }
    }

    #[test]
    fn the_alike_are_merged_up_to_a_size_and_the_others_are_not() {
        let mut damon = Damon::new(0, 100, Attrs::default(), 1).expect("a sampler");
        damon.size_limit = 30;
        for (n, region) in damon.regions.iter_mut().enumerate() {
            region.nr_accesses = if n < 5 { 20 } else { 0 };
            region.last_nr_accesses = 20;
            region.age = 3;
        }
        let found = damon.aggregate();
        let shown: Vec<_> = found
            .iter()
            .map(|r| (r.start, r.end, r.nr_accesses, r.age))
            .collect();
        assert_eq!(
            shown,
            [
                (0, 30, 20, 4),
                (30, 50, 20, 4),
                (50, 80, 0, 0),
                (80, 100, 0, 0)
            ]
        );
    }

    #[test]
    fn contradictory_attributes_are_refused() {
        for (samples, min_regions, max_regions) in [(0, 10, 100), (1, 2, 100), (1, 11, 10)] {
            let attrs = Attrs {
                samples,
                min_regions,
                max_regions,
            };
            assert!(Damon::new(0, 10, attrs, 0).is_err(), "{attrs:?}");
        }
        assert!(Damon::new(1, 10, Attrs::default(), 0).is_err());
        assert!(Damon::new(0, u64::MAX, Attrs::default(), 0).is_err());
        assert!(Damon::new(0, 0, Attrs::default(), 0).is_err());
    }
}
