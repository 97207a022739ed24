//! Guest access streams: what a vCPU touches, in which order.
//!
//! A [`Stream`] is a description; [`Stream::start`] makes the iterator that a
//! vCPU runs. The same description, memory and vCPU number give the same
//! accesses. Random numbers come from xoshiro256++, one sequence a vCPU, 2^128
//! draws apart; which accesses write is drawn from a sequence of its own, so
//! that the share of writes does not change which pages are touched.

use crate::error::{Error, Result};
use rand::{Rng, SeedableRng};
use rand_distr::{Distribution, Zipf};
use rand_xoshiro::Xoshiro256PlusPlus;
use std::sync::Arc;

/// One access of a guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Access {
    /// Which page of the VM's memory, counted from its start.
    pub page: u64,
    /// Whether it writes.
    pub write: bool,
}

/// A time during which one part of the region is hot.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Phase {
    /// How many accesses it lasts.
    pub accesses: u64,
    /// Where the hot part starts, as a fraction of the region.
    pub start: f64,
    /// Size of the hot part, as a fraction of the region.
    pub fraction: f64,
    /// Share of the accesses that goes to the hot part; the others go anywhere.
    pub probability: f64,
}

/// Which pages, in which order.
#[derive(Clone, Debug)]
pub enum Pattern {
    /// Every page in order, `passes` times.
    Sequential {
        /// How many times.
        passes: u64,
    },
    /// Every `stride`-th page from `offset` on, `passes` times.
    Strided {
        /// Pages from one access to the next.
        stride: u64,
        /// First page, in the region.
        offset: u64,
        /// How many times.
        passes: u64,
    },
    /// Pages drawn uniformly.
    Uniform {
        /// How many.
        accesses: u64,
    },
    /// The page of rank k drawn in proportion to k to the power of -`exponent`.
    Zipf {
        /// Positive.
        exponent: f64,
        /// How many.
        accesses: u64,
        /// Spread the ranks over the region; else page 0 has rank 1.
        shuffle: bool,
    },
    /// Mostly a hot part, phase by phase.
    HotCold {
        /// One after another.
        phases: Vec<Phase>,
    },
    /// Given one by one: pages of the VM's memory, and whether each is written.
    Recorded {
        /// Pages.
        pages: Arc<[u32]>,
        /// As many flags.
        writes: Arc<[bool]>,
        /// The part to run.
        part: std::ops::Range<usize>,
    },
}

/// A description of guest accesses.
#[derive(Clone, Debug)]
pub struct Stream {
    /// Which pages.
    pub pattern: Pattern,
    /// Share of accesses that write, 0 to 1. Recorded accesses know it themselves.
    pub write: f64,
    /// Of everything random.
    pub seed: u64,
    /// First page and length; otherwise the region given to [`Stream::start`].
    pub region: Option<(u64, u64)>,
}

enum Writes {
    Never,
    Always,
    Share(f64, Box<Xoshiro256PlusPlus>),
}

enum State {
    Steps {
        first: u64,
        next: u64,
        stride: u64,
    },
    Uniform,
    Zipf {
        ranks: Zipf<f64>,
        multiplier: u64,
        offset: u64,
    },
    HotCold {
        phases: std::vec::IntoIter<Phase>,
        left: u64,
        start: u64,
        len: u64,
        probability: f64,
    },
    Recorded {
        pages: Arc<[u32]>,
        writes: Arc<[bool]>,
        next: usize,
    },
}

/// The accesses of one vCPU.
pub struct Accesses {
    state: State,
    rng: Xoshiro256PlusPlus,
    writes: Writes,
    /// First page and length of the region.
    region: (u64, u64),
    left: u64,
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

fn rng(seed: u64, vcpu: u32) -> Xoshiro256PlusPlus {
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
    for _ in 0..vcpu {
        rng.jump();
    }
    rng
}

fn is_share(value: f64) -> bool {
    (0.0..=1.0).contains(&value)
}

impl Stream {
    /// Start the stream for one vCPU of a VM with `guest_pages` pages. `share`
    /// is its region (first page, length) where the stream names none.
    ///
    /// # Errors
    /// `EINVAL` when the region or a recorded page is not in the VM's memory,
    /// or a parameter makes no sense.
    pub fn start(&self, share: (u64, u64), guest_pages: u64, vcpu: u32) -> Result<Accesses> {
        let region = self.region.unwrap_or(share);
        let (first, len) = region;
        let end = first.checked_add(len).filter(|&end| end <= guest_pages);
        if len == 0 || end.is_none() || len > u64::from(u32::MAX) {
            return Err(Error::invalid(format!(
                "the stream's region of {len} pages at page {first} is not within the guest's \
                 {guest_pages} pages"
            )));
        }
        if !is_share(self.write) {
            return Err(Error::invalid(format!(
                "the share of writes, {}, is not between 0 and 1",
                self.write
            )));
        }
        let mut pages = rng(self.seed, vcpu);
        let (state, left) = match &self.pattern {
            Pattern::Sequential { passes } => Self::steps(0, 1, *passes, len)?,
            Pattern::Strided {
                stride,
                offset,
                passes,
            } => Self::steps(*offset, *stride, *passes, len)?,
            Pattern::Uniform { accesses } => (State::Uniform, *accesses),
            Pattern::Zipf {
                exponent,
                accesses,
                shuffle,
            } => {
                let ranks = Zipf::new(len as f64, *exponent)
                    .ok()
                    .filter(|_| *exponent > 0.0)
                    .ok_or_else(|| {
                        Error::invalid(format!("Zipf exponent {exponent} is not positive"))
                    })?;
                // An affine permutation; the same for every vCPU, so that they
                // agree on which page is hot.
                let mut choice = rng(!self.seed, 0);
                let (multiplier, offset) = if *shuffle {
                    let mut multiplier = choice.random_range(1..=len);
                    while gcd(multiplier, len) != 1 {
                        multiplier = choice.random_range(1..=len);
                    }
                    (multiplier, choice.random_range(0..len))
                } else {
                    (1, 0)
                };
                let state = State::Zipf {
                    ranks,
                    multiplier,
                    offset,
                };
                (state, *accesses)
            }
            Pattern::HotCold { phases } => {
                for phase in phases {
                    let Phase {
                        start,
                        fraction,
                        probability,
                        ..
                    } = *phase;
                    if ![start, fraction, probability].into_iter().all(is_share) {
                        return Err(Error::invalid(format!("{phase:?} has a share beyond 0..1")));
                    }
                }
                let left = phases.iter().map(|phase| phase.accesses).sum();
                let state = State::HotCold {
                    phases: phases.clone().into_iter(),
                    left: 0,
                    start: 0,
                    len: 1,
                    probability: 0.0,
                };
                (state, left)
            }
            Pattern::Recorded {
                pages,
                writes,
                part,
            } => {
                let (Some(mine), Some(_)) = (pages.get(part.clone()), writes.get(part.clone()))
                else {
                    return Err(Error::invalid(format!(
                        "part {part:?} of a recording of {} pages and {} writes",
                        pages.len(),
                        writes.len()
                    )));
                };
                if let Some(at) = mine.iter().position(|&p| u64::from(p) >= guest_pages) {
                    return Err(Error::invalid(format!(
                        "access {} is to page {}, and the guest has {guest_pages} pages",
                        part.start + at,
                        mine[at]
                    )));
                }
                let state = State::Recorded {
                    pages: Arc::clone(pages),
                    writes: Arc::clone(writes),
                    next: part.start,
                };
                (state, mine.len() as u64)
            }
        };
        let writes = if self.write == 0.0 {
            Writes::Never
        } else if self.write == 1.0 {
            Writes::Always
        } else {
            let mut draws = rng(self.seed, vcpu);
            draws.long_jump();
            Writes::Share(self.write, Box::new(draws))
        };
        // The first draw is not the seed's own mixing.
        let _: u64 = pages.random();
        Ok(Accesses {
            state,
            rng: pages,
            writes,
            region,
            left,
        })
    }

    fn steps(offset: u64, stride: u64, passes: u64, len: u64) -> Result<(State, u64)> {
        if stride == 0 || offset >= len {
            return Err(Error::invalid(format!(
                "a stride of {stride} from page {offset} of {len}: expected a positive stride \
                 from a page of the region"
            )));
        }
        let left = passes.checked_mul((len - offset).div_ceil(stride));
        let left = left.ok_or_else(|| Error::invalid(format!("{passes} passes are too many")))?;
        let state = State::Steps {
            first: offset,
            next: offset,
            stride,
        };
        Ok((state, left))
    }
}

impl Iterator for Accesses {
    type Item = Access;

    #[inline]
    fn next(&mut self) -> Option<Access> {
        self.left = self.left.checked_sub(1)?;
        let (first, len) = self.region;
        let page = match &mut self.state {
            State::Steps {
                first: start,
                next,
                stride,
            } => {
                let page = *next;
                *next = match page.checked_add(*stride) {
                    Some(after) if after < len => after,
                    _ => *start,
                };
                page
            }
            State::Uniform => self.rng.random_range(0..len),
            State::Zipf {
                ranks,
                multiplier,
                offset,
            } => {
                let rank = (ranks.sample(&mut self.rng) as u64).clamp(1, len) - 1;
                // Below 2^64: the region has at most 2^32 pages.
                (rank * *multiplier + *offset) % len
            }
            State::HotCold {
                phases,
                left,
                start,
                len: hot,
                probability,
            } => {
                while *left == 0 {
                    let phase = phases.next()?;
                    *left = phase.accesses;
                    *start = ((phase.start * len as f64) as u64).min(len - 1);
                    let size = (phase.fraction * len as f64).ceil() as u64;
                    *hot = size.clamp(1, len - *start);
                    *probability = phase.probability;
                }
                *left -= 1;
                if self.rng.random::<f64>() < *probability {
                    *start + self.rng.random_range(0..*hot)
                } else {
                    self.rng.random_range(0..len)
                }
            }
            State::Recorded {
                pages,
                writes,
                next,
            } => {
                let at = *next;
                *next += 1;
                return Some(Access {
                    page: u64::from(pages[at]),
                    write: writes[at],
                });
            }
        };
        let write = match &mut self.writes {
            Writes::Never => false,
            Writes::Always => true,
            Writes::Share(share, draws) => draws.random::<f64>() < *share,
        };
        Some(Access {
            page: first + page,
            write,
        })
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = usize::try_from(self.left).unwrap_or(usize::MAX);
        (left, Some(left))
    }
}

impl ExactSizeIterator for Accesses {}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(pattern: Pattern) -> Stream {
        Stream {
            pattern,
            write: 0.0,
            seed: 7,
            region: None,
        }
    }

    fn pages(stream: &Stream, len: u64, vcpu: u32) -> Vec<u64> {
        let accesses = stream.start((0, len), len, vcpu).unwrap();
        let expected = accesses.len();
        let pages: Vec<u64> = accesses.map(|access| access.page).collect();
        assert_eq!(pages.len(), expected);
        pages
    }

    #[test]
    fn steps() {
        let sequential = stream(Pattern::Sequential { passes: 2 });
        assert_eq!(pages(&sequential, 3, 0), [0, 1, 2, 0, 1, 2]);
        let strided = stream(Pattern::Strided {
            stride: 4,
            offset: 1,
            passes: 2,
        });
        assert_eq!(pages(&strided, 10, 0), [1, 5, 9, 1, 5, 9]);
    }

    #[test]
    fn regions_shift_and_limit() {
        let mut s = stream(Pattern::Sequential { passes: 1 });
        s.region = Some((5, 2));
        let found: Vec<u64> = s.start((0, 1), 7, 0).unwrap().map(|a| a.page).collect();
        assert_eq!(found, [5, 6]);
        for region in [(5, 3), (u64::MAX, 2), (0, 0)] {
            s.region = Some(region);
            assert!(s.start((0, 1), 7, 0).is_err(), "{region:?}");
        }
    }

    #[test]
    fn same_seed_same_accesses_and_vcpus_differ() {
        for pattern in [
            Pattern::Uniform { accesses: 1000 },
            Pattern::Zipf {
                exponent: 1.0,
                accesses: 1000,
                shuffle: true,
            },
            Pattern::HotCold {
                phases: vec![Phase {
                    accesses: 1000,
                    start: 0.5,
                    fraction: 0.1,
                    probability: 0.5,
                }],
            },
        ] {
            let s = stream(pattern);
            assert_eq!(pages(&s, 512, 0), pages(&s, 512, 0));
            assert_ne!(pages(&s, 512, 0), pages(&s, 512, 1));
            let mut other = s.clone();
            other.seed += 1;
            assert_ne!(pages(&s, 512, 0), pages(&other, 512, 0));
            let mut writing = s.clone();
            writing.write = 0.25;
            assert_eq!(pages(&s, 512, 0), pages(&writing, 512, 0));
            let writes = writing.start((0, 512), 512, 0).unwrap();
            let writes = writes.filter(|access| access.write).count();
            assert!((150..350).contains(&writes), "{writes}");
        }
    }

    #[test]
    fn zipf_is_skewed_as_it_says() {
        let s = stream(Pattern::Zipf {
            exponent: 1.0,
            accesses: 200_000,
            shuffle: false,
        });
        let mut counts = vec![0u32; 1000];
        for page in pages(&s, 1000, 0) {
            counts[page as usize] += 1;
        }
        // The harmonic number of 1000 is 7.485: rank k is drawn 26,720 / k times.
        for rank in [1u32, 2, 10, 100] {
            let expected = 200_000.0 / 7.485 / f64::from(rank);
            let found = f64::from(counts[rank as usize - 1]);
            assert!(
                (found / expected - 1.0).abs() < 0.15,
                "{rank}: {found} {expected}"
            );
        }
    }

    #[test]
    fn shuffled_ranks_are_a_permutation() {
        let s = stream(Pattern::Zipf {
            exponent: 0.1,
            accesses: 60_000,
            shuffle: true,
        });
        let mut found = pages(&s, 1000, 0);
        found.sort_unstable();
        found.dedup();
        assert_eq!(found.len(), 1000);
    }

    #[test]
    fn hot_part_is_hot_and_moves() {
        let phase = |start| Phase {
            accesses: 10_000,
            start,
            fraction: 0.1,
            probability: 0.9,
        };
        let s = stream(Pattern::HotCold {
            phases: vec![phase(0.0), phase(0.9)],
        });
        let found = pages(&s, 1000, 0);
        let hot = |part: &[u64], from: u64| {
            part.iter()
                .filter(|p| (from..from + 100).contains(p))
                .count()
        };
        // 0.9 of them by choice, a tenth of the others by chance.
        assert!((8900..9300).contains(&hot(&found[..10_000], 0)));
        assert!((8900..9300).contains(&hot(&found[10_000..], 900)));
    }

    #[test]
    fn recorded_parts() {
        let mut s = stream(Pattern::Recorded {
            pages: Arc::from([3, 1, 2, 9]),
            writes: Arc::from([true, false, true, false]),
            part: 0..3,
        });
        let found: Vec<Access> = s.start((0, 4), 4, 0).unwrap().collect();
        assert_eq!(found.len(), 3);
        assert_eq!(
            found[0],
            Access {
                page: 3,
                write: true
            }
        );
        if let Pattern::Recorded { part, .. } = &mut s.pattern {
            *part = 2..4;
        }
        let error = s.start((0, 4), 4, 0).err().unwrap().to_string();
        assert!(error.contains("access 3 is to page 9"), "{error}");
    }
}
