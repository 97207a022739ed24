//! Measuring: what `youngbit bench` runs.
//!
//! Every suite sets contestants side by side in one run and interleaves their
//! repetitions (A B A B), because times of two runs on one machine cannot be
//! compared and two neighbouring repetitions can. Each row is one contestant
//! and one figure: every repetition, median and spread, the ratio to the
//! contestant that it is held against, repetition by repetition, and the
//! counters of one repetition, without which a time says nothing. What a
//! repetition left behind is verified outside the timer.
//!
//! | file | what is measured |
//! |---|---|
//! | `contest` | the harness: repetitions, ratios, rows |
//! | `guest` | hosts and populated guests to measure on |
//! | `spte` | the atomic operations on one entry, against a flat array |
//! | `walk` | range walks, rmap chains, memslot walks |
//! | `aging` | whole passes through the per-page path |
//! | `contention` | vCPUs that fault while a pass follows another |
//! | `reclaim` | eviction, with look-around and without |

mod aging;
mod contention;
mod contest;
mod guest;
mod reclaim;
mod spte;
mod walk;

pub use contest::{Metric, Ratio, Row};
pub use guest::{Guest, GuestConfig};
pub use spte::{Flat, fill};
pub use walk::Chains;

use crate::error::{Errno, Error, Result};
use crate::sync::thread;
use contest::Stage;

/// A set of contests.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Suite {
    /// Operations on SPTEs in a flat array.
    Spte,
    /// Range walks, rmap chains, memslot walks.
    Walk,
    /// Whole aging passes, page by page.
    Aging,
    /// vCPUs that fault while a pass follows another.
    Contention,
    /// Eviction.
    Reclaim,
}

impl Suite {
    /// Every suite, in the order in which they are run.
    pub const ALL: &'static [Suite] = &[
        Suite::Spte,
        Suite::Walk,
        Suite::Aging,
        Suite::Contention,
        Suite::Reclaim,
    ];

    /// What users call it.
    pub const fn name(self) -> &'static str {
        match self {
            Suite::Spte => "spte",
            Suite::Walk => "walk",
            Suite::Aging => "aging",
            Suite::Contention => "contention",
            Suite::Reclaim => "reclaim",
        }
    }

    /// By name.
    pub fn by_name(name: &str) -> Option<Suite> {
        Self::ALL.iter().copied().find(|suite| suite.name() == name)
    }
}

/// How much is measured.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Scale {
    /// As little as exercises everything: for tests.
    Smallest,
    /// A minute or so.
    Quick,
    /// The sizes that the documentation states results for.
    Full,
    /// Those, and a guest of 64 GiB.
    Large,
}

/// How suites are run.
#[derive(Clone, Debug)]
pub struct Options {
    /// How much.
    pub scale: Scale,
    /// Seed of everything random.
    pub seed: u64,
    /// Repetitions of each contestant; `None` is what the scale says.
    pub repetitions: Option<usize>,
    /// Only cases whose name contains this.
    pub only: Option<String>,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            scale: Scale::Full,
            seed: 1,
            repetitions: None,
            only: None,
        }
    }
}

impl Options {
    fn repetitions(&self, full: usize) -> usize {
        self.repetitions.unwrap_or(match self.scale {
            Scale::Smallest => 1,
            Scale::Quick => full.min(5),
            Scale::Full | Scale::Large => full,
        })
    }

    /// The sizes of this scale.
    fn pick<T: Copy>(&self, smallest: T, quick: T, full: T, large: T) -> T {
        match self.scale {
            Scale::Smallest => smallest,
            Scale::Quick => quick,
            Scale::Full => full,
            Scale::Large => large,
        }
    }
}

/// Is told before each repetition what comes, and may stop the run.
pub type Progress<'a> = &'a mut dyn FnMut(&str) -> Result<()>;

/// Is given each row as soon as its contest is over, and may stop the run.
/// Whoever stops a run keeps what it was given.
pub type Finished<'a> = &'a mut dyn FnMut(Row) -> Result<()>;

/// Run a suite. It pins the calling thread for the time being.
///
/// # Errors
/// As those of [`run_each`].
pub fn run(suite: Suite, options: &Options, progress: Progress<'_>) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    run_each(suite, options, progress, &mut |row| {
        rows.push(row);
        Ok(())
    })?;
    Ok(rows)
}

/// [`run`], row by row.
///
/// # Errors
/// `EOPNOTSUPP` in a build with assertions, whose times mean nothing; what
/// `progress` or `finished` returns; `ENOMEM`; `EIO` when a verification
/// failed, with what it found.
pub fn run_each(
    suite: Suite,
    options: &Options,
    progress: Progress<'_>,
    finished: Finished<'_>,
) -> Result<()> {
    if cfg!(debug_assertions) {
        return Err(Error::new(
            Errno::EOPNOTSUPP,
            "this is a debug build, whose times mean nothing: build with --release",
        ));
    }
    run_any_build(suite, options, progress, finished)
}

/// [`run_each`] where the times do not matter.
fn run_any_build(
    suite: Suite,
    options: &Options,
    progress: Progress<'_>,
    finished: Finished<'_>,
) -> Result<()> {
    if options.repetitions == Some(0) {
        return Err(Error::invalid("0 repetitions: expected at least 1"));
    }
    let affinity = thread::Affinity::current();
    let mut stage = Stage::new(suite, options, progress, finished, affinity.clone());
    let result = match suite {
        Suite::Spte => spte::run(&mut stage),
        Suite::Walk => walk::run(&mut stage),
        Suite::Aging => aging::run(&mut stage),
        Suite::Contention => contention::run(&mut stage),
        Suite::Reclaim => reclaim::run(&mut stage),
    };
    affinity.apply();
    result
}

/// What a verification found.
fn wrong(what: impl Into<String>) -> Error {
    Error::new(Errno::EIO, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_a_debug_build_are_refused() {
        let result = run(Suite::Spte, &Options::default(), &mut |_| Ok(()));
        if cfg!(debug_assertions) {
            assert_eq!(result.expect_err("refused").errno(), Errno::EOPNOTSUPP);
        }
    }

    #[test]
    fn every_suite_runs_verifies_and_gives_whole_rows() {
        let options = Options {
            scale: Scale::Smallest,
            seed: 3,
            repetitions: Some(2),
            only: None,
        };
        for &suite in Suite::ALL {
            assert_eq!(Suite::by_name(suite.name()), Some(suite));
            let mut steps = 0;
            let mut rows: Vec<Row> = Vec::new();
            let mut count = |_: &str| {
                steps += 1;
                Ok(())
            };
            run_any_build(suite, &options, &mut count, &mut |row| {
                rows.push(row);
                Ok(())
            })
            .expect("runs");
            assert!(!rows.is_empty() && steps >= rows.len() / 8, "{suite:?}");
            for row in &rows {
                assert_eq!(row.suite, suite.name());
                assert!(!row.samples.is_empty(), "{row:?}");
                assert!(row.min <= row.median && row.median <= row.max, "{row:?}");
                // What is fitted to times is no time: a small term may come
                // out on either side of nothing.
                let fitted = row.metric.name.starts_with("fitted_");
                assert!(row.median.is_finite(), "{row:?}");
                assert!(fitted || row.min >= 0.0, "{row:?}");
                for ratio in &row.ratios {
                    assert!(
                        rows.iter()
                            .any(|r| r.case == row.case && r.contestant == ratio.to),
                        "{row:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn progress_can_stop_a_run_and_whole_rows_are_kept() {
        let options = Options {
            scale: Scale::Smallest,
            ..Options::default()
        };
        let mut contests = 0;
        let seen = std::cell::RefCell::new(Vec::new());
        let result = run_any_build(
            Suite::Spte,
            &options,
            &mut |_| {
                contests += usize::from(!seen.borrow().is_empty());
                if contests == 2 {
                    return Err(Error::new(Errno::EINTR, "asked to stop"));
                }
                Ok(())
            },
            &mut |row| {
                seen.borrow_mut().push(row);
                Ok(())
            },
        );
        assert_eq!(result.expect_err("stopped").errno(), Errno::EINTR);
        let rows = seen.into_inner();
        assert!(rows.len() > 1, "{rows:?}");
        assert!(rows.iter().all(|row| row.case == rows[0].case));
    }

    #[test]
    fn whoever_takes_the_rows_can_stop_a_run() {
        let options = Options {
            scale: Scale::Smallest,
            ..Options::default()
        };
        let mut rows = 0;
        let result = run_any_build(Suite::Spte, &options, &mut |_| Ok(()), &mut |_| {
            rows += 1;
            Err(Error::new(Errno::EINTR, "enough"))
        });
        assert_eq!(result.expect_err("stopped").errno(), Errno::EINTR);
        assert_eq!(rows, 1);
    }
}
