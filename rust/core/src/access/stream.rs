//! Patterns of access.

use super::Access;
use crate::error::{Error, Result};
use rand::{RngCore, SeedableRng};
use rand_distr::{Distribution, Zipf};
use rand_xoshiro::Xoshiro256PlusPlus;
use std::sync::Arc;

/// The most pages a stream can range over.
pub const MAX_PAGES: u64 = 1 << 32;

/// A time in which one part of the footprint is hot.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Phase {
    /// How many accesses it lasts.
    pub accesses: u64,
    /// First hot page, relative to the footprint.
    pub hot_start: u64,
    /// Hot pages.
    pub hot_pages: u64,
    /// Share of accesses that go to hot pages, 0 to 1.
    pub hot_share: f64,
}

/// Which page comes next.
#[derive(Clone, Debug)]
pub enum Pattern {
    /// Every page in turn, and round again.
    Sequential,
    /// Every `stride`-th page, and round again; a stride that divides the
    /// footprint moves on by one page each round, so that all are reached.
    Strided {
        /// Pages from one access to the next.
        stride: u64,
    },
    /// Any page, all alike.
    Uniform,
    /// Page of rank r with a probability proportional to 1 / r^exponent.
    Zipf {
        /// The exponent, 0 (uniform) or more.
        exponent: f64,
        /// Ranks are scattered over the footprint by the seed; else rank is
        /// page order.
        scatter: bool,
    },
    /// Hot pages and the rest, phase after phase, and round again.
    HotCold {
        /// The phases, in order.
        phases: Arc<[Phase]>,
    },
    /// Given pages in given order, relative to the footprint, and round again:
    /// a recorded trace.
    Explicit {
        /// The pages.
        pages: Arc<[u64]>,
        /// Whether each is written; without, the write ratio decides.
        writes: Option<Arc<[bool]>>,
    },
}

/// What a stream is made of.
#[derive(Clone, Debug)]
pub struct StreamConfig {
    /// Which page comes next.
    pub pattern: Pattern,
    /// First page of the footprint, in the guest's memory.
    pub start: u64,
    /// One past its last page.
    pub end: u64,
    /// How many accesses.
    pub accesses: u64,
    /// Share of them that write, 0 to 1.
    pub write_ratio: f64,
    /// Seed of everything random in it.
    pub seed: u64,
}

impl StreamConfig {
    /// # Errors
    /// `EINVAL` names the first field that is out of range.
    pub fn check(&self) -> Result<()> {
        let pages = self.end.saturating_sub(self.start);
        if pages == 0 || pages > MAX_PAGES {
            return Err(Error::invalid(format!(
                "footprint [{}, {}): expected 1 to {MAX_PAGES} pages",
                self.start, self.end
            )));
        }
        share("write_ratio", self.write_ratio)?;
        match &self.pattern {
            Pattern::Sequential | Pattern::Uniform => {}
            Pattern::Strided { stride } => {
                if *stride == 0 || *stride > MAX_PAGES {
                    return Err(Error::invalid(format!(
                        "stride {stride}: expected 1 to {MAX_PAGES} pages"
                    )));
                }
            }
            Pattern::Zipf { exponent, .. } => {
                if !exponent.is_finite() || *exponent < 0.0 {
                    return Err(Error::invalid(format!(
                        "zipf exponent {exponent}: expected 0 or more"
                    )));
                }
            }
            Pattern::HotCold { phases } => {
                if phases.is_empty() {
                    return Err(Error::invalid("hot_cold without phases"));
                }
                for (n, phase) in phases.iter().enumerate() {
                    share(&format!("hot_share of phase {n}"), phase.hot_share)?;
                    let hot_end = phase.hot_start.checked_add(phase.hot_pages);
                    if phase.accesses == 0
                        || phase.hot_pages == 0
                        || hot_end.is_none_or(|end| end > pages)
                    {
                        return Err(Error::invalid(format!(
                            "phase {n} of {} accesses, hot pages from {} on, {} of them: expected \
                             at least one access and hot pages inside the footprint of {pages}",
                            phase.accesses, phase.hot_start, phase.hot_pages
                        )));
                    }
                }
            }
            Pattern::Explicit {
                pages: given,
                writes,
            } => {
                if let Some((n, page)) = given.iter().enumerate().find(|&(_, &p)| p >= pages) {
                    return Err(Error::invalid(format!(
                        "access {n} is to page {page}, outside the footprint of {pages} pages"
                    )));
                }
                if given.is_empty() && self.accesses > 0 {
                    return Err(Error::invalid(
                        "accesses wanted from an empty list of pages",
                    ));
                }
                if let Some(writes) = writes
                    && writes.len() != given.len()
                {
                    return Err(Error::invalid(format!(
                        "{} pages but {} write flags",
                        given.len(),
                        writes.len()
                    )));
                }
            }
        }
        Ok(())
    }
}

fn share(what: &str, value: f64) -> Result<()> {
    if (0.0..=1.0).contains(&value) {
        return Ok(());
    }
    Err(Error::invalid(format!("{what} {value}: expected 0 to 1")))
}

/// A number below `n`, from 32 random bits (multiply and shift).
#[inline]
fn below(rng: &mut Xoshiro256PlusPlus, n: u64) -> u64 {
    ((u128::from(rng.next_u64()) * u128::from(n)) >> 64) as u64
}

/// A share as a threshold for 32 random bits; all of them for 1.
fn threshold(share: f64) -> u64 {
    (share * (1u64 << 32) as f64) as u64
}

/// Ranks scattered over pages: a one-to-one map, `rank * step + shift` modulo
/// the number of pages.
struct Scatter {
    step: u64,
    shift: u64,
}

impl Scatter {
    fn new(rng: &mut Xoshiro256PlusPlus, pages: u64) -> Self {
        let shift = below(rng, pages);
        let step = loop {
            let step = below(rng, pages).max(1);
            if gcd(step, pages) == 1 {
                break step;
            }
        };
        Scatter { step, shift }
    }

    #[inline]
    fn page(&self, rank: u64, pages: u64) -> u64 {
        ((u128::from(rank) * u128::from(self.step) + u128::from(self.shift)) % u128::from(pages))
            as u64
    }
}

fn gcd(mut a: u64, mut b: u64) -> u64 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

enum Next {
    Sequential,
    Strided(u64),
    Uniform,
    Zipf(Zipf<f64>, Option<Scatter>),
    HotCold {
        phases: Arc<[Phase]>,
        phase: usize,
        left: u64,
    },
    Explicit {
        pages: Arc<[u64]>,
        writes: Option<Arc<[bool]>>,
    },
}

/// A stream of accesses. It can be run in parts: it goes on where it stopped.
pub struct Stream {
    next: Next,
    rng: Xoshiro256PlusPlus,
    /// A sequence of its own, so that the share of writes does not change which
    /// pages are touched.
    write_rng: Xoshiro256PlusPlus,
    start: u64,
    pages: u64,
    at: u64,
    left: u64,
    write_below: u64,
}

impl Stream {
    /// # Errors
    /// As [`StreamConfig::check`].
    pub fn new(config: &StreamConfig) -> Result<Self> {
        config.check()?;
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(config.seed);
        let pages = config.end - config.start;
        let next = match &config.pattern {
            Pattern::Sequential => Next::Sequential,
            Pattern::Strided { stride } => Next::Strided(*stride),
            Pattern::Uniform => Next::Uniform,
            Pattern::Zipf { exponent, scatter } => {
                let zipf = Zipf::new(pages as f64, *exponent)
                    .map_err(|e| Error::invalid(format!("zipf exponent {exponent}: {e}")))?;
                Next::Zipf(zipf, scatter.then(|| Scatter::new(&mut rng, pages)))
            }
            Pattern::HotCold { phases } => Next::HotCold {
                left: phases[0].accesses,
                phases: Arc::clone(phases),
                phase: 0,
            },
            Pattern::Explicit { pages, writes } => Next::Explicit {
                pages: Arc::clone(pages),
                writes: writes.clone(),
            },
        };
        Ok(Stream {
            next,
            write_rng: {
                let mut rng = Xoshiro256PlusPlus::seed_from_u64(config.seed);
                rng.long_jump();
                rng
            },
            rng,
            start: config.start,
            pages,
            at: 0,
            left: config.accesses,
            write_below: threshold(config.write_ratio),
        })
    }

    /// Accesses still to come.
    pub fn remaining(&self) -> u64 {
        self.left
    }

    #[inline]
    fn writes(&mut self) -> bool {
        match self.write_below {
            0 => false,
            all if all >= 1 << 32 => true,
            below => (self.write_rng.next_u64() >> 32) < below,
        }
    }

    /// Replace the buffer's contents by the next accesses, at most `max`; none
    /// when the stream is over.
    pub fn fill(&mut self, buffer: &mut Vec<Access>, max: usize) {
        buffer.clear();
        let count = self.left.min(max as u64);
        self.left -= count;
        for _ in 0..count {
            let at = self.at;
            let mut write = None;
            let page = match &mut self.next {
                Next::Sequential => {
                    self.at = if at + 1 == self.pages { 0 } else { at + 1 };
                    at
                }
                Next::Strided(stride) => {
                    let next = at + *stride;
                    self.at = if next < self.pages {
                        next
                    } else {
                        // The next round starts one page further on, within
                        // the stride.
                        let first = at % *stride + 1;
                        if first < (*stride).min(self.pages) {
                            first
                        } else {
                            0
                        }
                    };
                    at
                }
                Next::Uniform => below(&mut self.rng, self.pages),
                Next::Zipf(zipf, scatter) => {
                    let rank = (zipf.sample(&mut self.rng) as u64).clamp(1, self.pages) - 1;
                    match scatter {
                        Some(scatter) => scatter.page(rank, self.pages),
                        None => rank,
                    }
                }
                Next::HotCold {
                    phases,
                    phase,
                    left,
                } => {
                    if *left == 0 {
                        *phase = (*phase + 1) % phases.len();
                        *left = phases[*phase].accesses;
                    }
                    *left -= 1;
                    let now = phases[*phase];
                    let cold = self.pages - now.hot_pages;
                    let hot = (self.rng.next_u64() >> 32) < threshold(now.hot_share);
                    if hot || cold == 0 {
                        now.hot_start + below(&mut self.rng, now.hot_pages)
                    } else {
                        let n = below(&mut self.rng, cold);
                        if n < now.hot_start {
                            n
                        } else {
                            n + now.hot_pages
                        }
                    }
                }
                Next::Explicit { pages, writes } => {
                    self.at = if at as usize + 1 == pages.len() {
                        0
                    } else {
                        at + 1
                    };
                    write = writes.as_ref().map(|writes| writes[at as usize]);
                    pages[at as usize]
                }
            };
            let write = match write {
                Some(write) => write,
                None => self.writes(),
            };
            buffer.push(Access::new(self.start + page, write));
        }
    }
}

/// How several vCPUs share a footprint.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Partition {
    /// Each has a part of its own.
    Own,
    /// Each has the whole.
    Overlap,
}

/// The footprint `[start, end)` of each of `vcpus` vCPUs. Parts of their own
/// are equal; what is left over goes to the last.
///
/// # Errors
/// `EINVAL` when there are more vCPUs than pages.
pub fn partition(start: u64, end: u64, vcpus: u64, how: Partition) -> Result<Vec<(u64, u64)>> {
    let pages = end.saturating_sub(start);
    if vcpus == 0 || pages < vcpus {
        return Err(Error::invalid(format!(
            "footprint [{start}, {end}) for {vcpus} vCPUs: expected at least one vCPU and a page \
             for each"
        )));
    }
    Ok((0..vcpus)
        .map(|n| match how {
            Partition::Overlap => (start, end),
            Partition::Own => {
                let part = pages / vcpus;
                let first = start + n * part;
                (first, if n + 1 == vcpus { end } else { first + part })
            }
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(config: &StreamConfig) -> Vec<(u64, bool)> {
        let mut stream = Stream::new(config).expect("a valid stream");
        let mut buffer = Vec::new();
        let mut seen = Vec::new();
        loop {
            // An odd batch, so that parts join where they should.
            stream.fill(&mut buffer, 7);
            if buffer.is_empty() {
                return seen;
            }
            seen.extend(buffer.iter().map(|a| (a.page(), a.is_write())));
        }
    }

    fn config(pattern: Pattern, start: u64, end: u64, accesses: u64) -> StreamConfig {
        StreamConfig {
            pattern,
            start,
            end,
            accesses,
            write_ratio: 0.0,
            seed: 42,
        }
    }

    fn pages(config: &StreamConfig) -> Vec<u64> {
        all(config).into_iter().map(|(page, _)| page).collect()
    }

    #[test]
    fn sequential_and_strided_go_round() {
        assert_eq!(
            pages(&config(Pattern::Sequential, 10, 13, 7)),
            [10, 11, 12, 10, 11, 12, 10]
        );
        let strided = |stride, end, n| pages(&config(Pattern::Strided { stride }, 0, end, n));
        assert_eq!(strided(2, 6, 8), [0, 2, 4, 1, 3, 5, 0, 2]);
        assert_eq!(strided(5, 3, 4), [0, 1, 2, 0]);
        let mut reached = strided(3, 10, 10);
        reached.sort_unstable();
        assert_eq!(reached, (0..10).collect::<Vec<_>>());
    }

    #[test]
    fn the_same_seed_gives_the_same_stream_and_another_does_not() {
        for pattern in [
            Pattern::Uniform,
            Pattern::Zipf {
                exponent: 1.0,
                scatter: true,
            },
        ] {
            let mut config = config(pattern, 0, 1000, 500);
            config.write_ratio = 0.3;
            let first = all(&config);
            assert_eq!(first, all(&config));
            let touched = pages(&config);
            config.write_ratio = 0.8;
            assert_eq!(touched, pages(&config));
            config.write_ratio = 0.3;
            config.seed += 1;
            assert_ne!(first, all(&config));
        }
    }

    #[test]
    fn zipf_ranks_fall_off_as_they_should() {
        let n = 100_000;
        let mut counts = vec![0u64; 1000];
        let zipf = Pattern::Zipf {
            exponent: 1.0,
            scatter: false,
        };
        for page in pages(&config(zipf, 0, 1000, n)) {
            counts[page as usize] += 1;
        }
        let harmonic: f64 = (1..=1000).map(|r| 1.0 / f64::from(r)).sum();
        for rank in [1usize, 2, 10] {
            let expected = n as f64 / harmonic / rank as f64;
            let seen = counts[rank - 1] as f64;
            assert!(
                (seen - expected).abs() < 5.0 * expected.sqrt(),
                "rank {rank}: {seen} for {expected}"
            );
        }
        let scattered = Pattern::Zipf {
            exponent: 1.0,
            scatter: true,
        };
        let mut other = vec![0u64; 1000];
        for page in pages(&config(scattered, 0, 1000, n)) {
            other[page as usize] += 1;
        }
        assert_ne!(counts.iter().max(), Some(&other[0]));
        let mut sorted = other.clone();
        sorted.sort_unstable();
        assert!(sorted[999] > sorted[500] * 50, "scattering keeps the shape");
    }

    #[test]
    fn scattering_is_one_to_one() {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(1);
        for pages in [1u64, 2, 12, 1000, 1024] {
            let scatter = Scatter::new(&mut rng, pages);
            let mut seen: Vec<u64> = (0..pages).map(|r| scatter.page(r, pages)).collect();
            seen.sort_unstable();
            assert_eq!(seen, (0..pages).collect::<Vec<_>>());
        }
    }

    #[test]
    fn hot_pages_move_with_the_phases() {
        let phase = |hot_start| Phase {
            accesses: 1000,
            hot_start,
            hot_pages: 10,
            hot_share: 0.9,
        };
        let phases = [phase(0), phase(90)].into();
        let seen = pages(&config(Pattern::HotCold { phases }, 0, 100, 3000));
        for (n, hot) in [(0, 0..10), (1, 90..100), (2, 0..10)] {
            let part = &seen[n * 1000..][..1000];
            let hits = part.iter().filter(|page| hot.contains(*page)).count();
            assert!((860..940).contains(&hits), "phase {n}: {hits}");
        }
        assert!(seen.iter().all(|&page| page < 100));
    }

    #[test]
    fn given_pages_come_as_given() {
        let given = Pattern::Explicit {
            pages: [3, 1, 2].into(),
            writes: Some([true, false, false].into()),
        };
        assert_eq!(
            all(&config(given, 100, 104, 4)),
            [(103, true), (101, false), (102, false), (103, true)]
        );
    }

    #[test]
    fn the_write_ratio_is_kept() {
        let mut config = config(Pattern::Sequential, 0, 10, 10_000);
        for (ratio, range) in [(0.0, 0..1), (0.25, 2300..2700), (1.0, 10_000..10_001)] {
            config.write_ratio = ratio;
            let writes = all(&config).iter().filter(|&&(_, write)| write).count();
            assert!(range.contains(&writes), "{ratio}: {writes}");
        }
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let phases = |phase: Phase| Pattern::HotCold {
            phases: [phase].into(),
        };
        let good = Phase {
            accesses: 1,
            hot_start: 0,
            hot_pages: 1,
            hot_share: 0.5,
        };
        let bad = [
            config(Pattern::Sequential, 5, 5, 1),
            config(Pattern::Sequential, 6, 5, 1),
            config(Pattern::Strided { stride: 0 }, 0, 5, 1),
            config(
                Pattern::Zipf {
                    exponent: -1.0,
                    scatter: true,
                },
                0,
                5,
                1,
            ),
            config(
                Pattern::Zipf {
                    exponent: f64::NAN,
                    scatter: true,
                },
                0,
                5,
                1,
            ),
            config(
                Pattern::HotCold {
                    phases: Arc::new([]),
                },
                0,
                5,
                1,
            ),
            config(
                phases(Phase {
                    hot_pages: 6,
                    ..good
                }),
                0,
                5,
                1,
            ),
            config(
                phases(Phase {
                    accesses: 0,
                    ..good
                }),
                0,
                5,
                1,
            ),
            config(
                phases(Phase {
                    hot_share: 1.1,
                    ..good
                }),
                0,
                5,
                1,
            ),
            config(
                Pattern::Explicit {
                    pages: [5].into(),
                    writes: None,
                },
                0,
                5,
                1,
            ),
            config(
                Pattern::Explicit {
                    pages: [1, 2].into(),
                    writes: Some([true].into()),
                },
                0,
                5,
                1,
            ),
            StreamConfig {
                write_ratio: -0.1,
                ..config(Pattern::Uniform, 0, 5, 1)
            },
        ];
        for config in bad {
            assert!(Stream::new(&config).is_err(), "{config:?}");
        }
    }

    #[test]
    fn partitions_cover_the_footprint() {
        assert_eq!(
            partition(10, 20, 3, Partition::Own).expect("room"),
            [(10, 13), (13, 16), (16, 20)]
        );
        assert_eq!(
            partition(0, 8, 2, Partition::Overlap).expect("room"),
            [(0, 8), (0, 8)]
        );
        assert!(partition(0, 2, 3, Partition::Own).is_err());
    }
}
