//! Contestants, interleaved repetitions, and the rows they give.

use super::{Finished, Options, Progress, Suite};
use crate::error::{Error, Result};
use crate::sync::thread::{self, Affinity};
use crate::trace::CounterValues;
use serde::Serialize;
use std::time::Instant;

/// A figure: its name, unit and direction.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct Metric {
    /// What users call it.
    pub name: &'static str,
    /// Its unit.
    pub unit: &'static str,
    /// Whether less is better; `None` where neither is.
    pub less_is_better: Option<bool>,
}

impl Metric {
    pub(super) const fn time(name: &'static str, unit: &'static str) -> Self {
        Metric {
            name,
            unit,
            less_is_better: Some(true),
        }
    }

    pub(super) const fn rate(name: &'static str, unit: &'static str) -> Self {
        Metric {
            name,
            unit,
            less_is_better: Some(false),
        }
    }

    pub(super) const fn count(name: &'static str, unit: &'static str) -> Self {
        Metric {
            name,
            unit,
            less_is_better: None,
        }
    }
}

/// Nanoseconds of processor time for each entry, page or SPTE: what the case
/// counts.
pub(super) const NS_PER_ITEM: Metric = Metric::time("ns_per_item", "ns");

/// What one repetition found.
pub(super) struct Sample {
    pub values: Vec<(Metric, f64)>,
    pub counters: CounterValues,
}

impl Sample {
    /// One figure: a time for each of `items`.
    pub fn per_item(ns: u64, items: u64, counters: CounterValues) -> Self {
        Sample {
            values: vec![(NS_PER_ITEM, ns as f64 / items.max(1) as f64)],
            counters,
        }
    }

    #[must_use]
    pub fn with(mut self, metric: Metric, value: f64) -> Self {
        self.values.push((metric, value));
        self
    }
}

/// Nanoseconds of real time that `work` took, and what it returned.
#[inline]
pub(super) fn timed<R>(work: impl FnOnce() -> R) -> (u64, R) {
    let start = Instant::now();
    let result = work();
    let ns = u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
    (ns, result)
}

/// Nanoseconds of processor time that `work` took in the calling thread: what
/// a single thread's work costs, whoever else uses the machine. Where the
/// system does not say, real time.
#[inline]
pub(super) fn worked<R>(work: impl FnOnce() -> R) -> (u64, R) {
    let before = thread::cpu_time();
    let (wall, result) = timed(work);
    match (before, thread::cpu_time()) {
        (Some((before, _)), Some((after, _))) => (after - before, result),
        _ => (wall, result),
    }
}

/// A contestant: a name, what it is held against, and one repetition.
pub(super) struct Contestant<'a> {
    name: String,
    against: Vec<(String, Option<f64>)>,
    repetition: Box<dyn FnMut() -> Result<Sample> + 'a>,
}

impl<'a> Contestant<'a> {
    pub fn new(name: impl Into<String>, repetition: impl FnMut() -> Result<Sample> + 'a) -> Self {
        Contestant {
            name: name.into(),
            against: Vec::new(),
            repetition: Box::new(repetition),
        }
    }

    /// Give the ratio to another contestant.
    #[must_use]
    pub fn against(mut self, other: &str) -> Self {
        self.against.push((other.to_owned(), None));
        self
    }

    /// The ratio of the first figure to the contestant named last is promised
    /// to be no more than this.
    #[must_use]
    pub fn at_most(mut self, bound: f64) -> Self {
        if let Some(last) = self.against.last_mut() {
            last.1 = Some(bound);
        }
        self
    }
}

/// A ratio to another contestant, from the ratios of repetitions that
/// followed each other.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Ratio {
    /// The other contestant.
    pub to: String,
    /// The median ratio.
    pub median: f64,
    /// The least.
    pub min: f64,
    /// The greatest.
    pub max: f64,
    /// What the ratio is promised not to exceed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bound: Option<f64>,
}

/// One figure of one contestant.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Row {
    /// The suite.
    pub suite: &'static str,
    /// What was set up; contestants of one case were interleaved.
    pub case: String,
    /// The parameters of the case, by name.
    pub parameters: Vec<(&'static str, String)>,
    /// What was measured.
    pub contestant: String,
    /// The figure.
    pub metric: Metric,
    /// Its median over the repetitions.
    pub median: f64,
    /// Its least value.
    pub min: f64,
    /// Its greatest value.
    pub max: f64,
    /// Every repetition, in order.
    pub samples: Vec<f64>,
    /// Held against other contestants.
    pub ratios: Vec<Ratio>,
    /// What the last repetition counted; those that stayed 0 are left out.
    pub counters: Vec<(&'static str, u64)>,
    /// Threads that worked at the same time.
    pub threads: usize,
    /// There were more of them than processors: the scheduler is part of the
    /// figure.
    pub oversubscribed: bool,
    /// Threads were kept on processors of their own.
    pub pinned: bool,
    /// The seed.
    pub seed: u64,
}

impl Row {
    /// The row as one line of JSON.
    ///
    /// # Errors
    /// `EINVAL` for a figure that JSON has no number for: NaN, infinity.
    pub fn to_json(&self) -> Result<String> {
        let figures = [self.median, self.min, self.max];
        let ratios = self.ratios.iter().flat_map(|r| [r.median, r.min, r.max]);
        let mut all = figures
            .into_iter()
            .chain(ratios)
            .chain(self.samples.iter().copied());
        if let Some(odd) = all.find(|figure| !figure.is_finite()) {
            return Err(Error::invalid(format!(
                "{}, {}, {}: {odd} is no number",
                self.case, self.contestant, self.metric.name
            )));
        }
        serde_json::to_string(self).map_err(|error| Error::invalid(error.to_string()))
    }
}

/// A case: what is set up, and by how many threads it is worked on.
pub(super) struct Case {
    pub name: String,
    pub parameters: Vec<(&'static str, String)>,
    pub threads: usize,
    pub repetitions: usize,
    /// Repetitions that are not counted: caches, memory and clocks settle.
    pub warm_up: usize,
}

/// Where contests are held.
pub(super) struct Stage<'p> {
    suite: Suite,
    pub options: Options,
    progress: Progress<'p>,
    finished: Finished<'p>,
    cores: usize,
    /// Where the threads of a run may work.
    pub affinity: Affinity,
    pinned: bool,
}

impl<'p> Stage<'p> {
    pub fn new(
        suite: Suite,
        options: &Options,
        progress: Progress<'p>,
        finished: Finished<'p>,
        affinity: Affinity,
    ) -> Self {
        Stage {
            suite,
            options: options.clone(),
            progress,
            finished,
            cores: thread::available_parallelism().map_or(1, usize::from),
            pinned: affinity.pin(0),
            affinity,
        }
    }

    /// Say what comes, and see whether to go on.
    pub fn progress(&mut self, what: &str) -> Result<()> {
        (self.progress)(what)
    }

    /// Run the contestants in turn, again and again, and keep their rows.
    pub fn contest(&mut self, case: &Case, mut contestants: Vec<Contestant<'_>>) -> Result<()> {
        if let Some(only) = &self.options.only
            && !case.name.contains(only.as_str())
        {
            return Ok(());
        }
        let mut samples: Vec<Vec<Sample>> = contestants.iter().map(|_| Vec::new()).collect();
        for round in 0..case.warm_up + case.repetitions {
            for (contestant, samples) in contestants.iter_mut().zip(&mut samples) {
                (self.progress)(&format!(
                    "{} {}: {}",
                    self.suite.name(),
                    case.name,
                    contestant.name
                ))?;
                let sample = (contestant.repetition)()?;
                if round >= case.warm_up {
                    samples.push(sample);
                }
            }
        }
        let names: Vec<&str> = contestants.iter().map(|c| c.name.as_str()).collect();
        for (contestant, mine) in contestants.iter().zip(&samples) {
            let metrics = mine.first().map_or(&[][..], |sample| &sample.values);
            for (n, &(metric, _)) in metrics.iter().enumerate() {
                let value = |sample: &Sample| sample.values[n].1;
                let values: Vec<f64> = mine.iter().map(value).collect();
                let ratios = contestant.against.iter().filter_map(|(to, bound)| {
                    let theirs = &samples[names.iter().position(|name| name == to)?];
                    let ratios: Vec<f64> = mine
                        .iter()
                        .zip(theirs)
                        .filter_map(|(mine, theirs)| {
                            let theirs = theirs.values.iter().find(|v| v.0 == metric)?;
                            Some(value(mine) / theirs.1)
                        })
                        .filter(|ratio| ratio.is_finite())
                        .collect();
                    let (min, median, max) = spread(&ratios)?;
                    Some(Ratio {
                        to: to.clone(),
                        median,
                        min,
                        max,
                        bound: bound.filter(|_| n == 0),
                    })
                });
                let ratios = ratios.collect();
                let Some((min, median, max)) = spread(&values) else {
                    continue;
                };
                let counters = mine.last().map_or_else(Vec::new, |sample| {
                    sample.counters.iter().filter(|&(_, n)| n != 0).collect()
                });
                (self.finished)(Row {
                    suite: self.suite.name(),
                    case: case.name.clone(),
                    parameters: case.parameters.clone(),
                    contestant: contestant.name.clone(),
                    metric,
                    median,
                    min,
                    max,
                    samples: values,
                    ratios,
                    counters,
                    threads: case.threads,
                    oversubscribed: case.threads > self.cores,
                    pinned: self.pinned && case.threads <= self.cores,
                    seed: self.options.seed,
                })?;
            }
        }
        Ok(())
    }
}

/// Least, median and greatest of some values, unless there are none.
fn spread(values: &[f64]) -> Option<(f64, f64, f64)> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let (first, last) = (*sorted.first()?, *sorted.last()?);
    let middle = sorted.len() / 2;
    let median = if sorted.len() % 2 == 1 {
        sorted[middle]
    } else {
        f64::midpoint(sorted[middle - 1], sorted[middle])
    };
    Some((first, median, last))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::Options;

    #[test]
    fn repetitions_are_interleaved_and_ratios_are_of_neighbours() {
        let order = std::cell::RefCell::new(String::new());
        let mut progress = |_: &str| Ok(());
        let mut rows = Vec::new();
        let mut finished = |row| {
            rows.push(row);
            Ok(())
        };
        let mut stage = Stage::new(
            Suite::Spte,
            &Options::default(),
            &mut progress,
            &mut finished,
            Affinity::current(),
        );
        let case = Case {
            name: "a case".into(),
            parameters: vec![("size", "3".into())],
            threads: 1,
            repetitions: 3,
            warm_up: 1,
        };
        let sample = |letter: char, values: [u64; 4]| {
            let mut values = values.into_iter();
            let order = &order;
            move || {
                order.borrow_mut().push(letter);
                let ns = values.next().expect("as many as repetitions");
                Ok(Sample::per_item(ns, 1, CounterValues::default()))
            }
        };
        let contestants = vec![
            Contestant::new("limit", sample('a', [99, 10, 20, 40])),
            Contestant::new("ours", sample('b', [99, 30, 40, 200]))
                .against("limit")
                .at_most(2.5),
        ];
        stage.contest(&case, contestants).expect("runs");
        assert_eq!(*order.borrow(), "abababab");
        assert_eq!(rows[1].samples, [30.0, 40.0, 200.0]);
        assert_eq!(
            (rows[1].min, rows[1].median, rows[1].max),
            (30.0, 40.0, 200.0)
        );
        let ratio = &rows[1].ratios[0];
        assert_eq!((ratio.min, ratio.median, ratio.max), (2.0, 3.0, 5.0));
        assert_eq!((ratio.to.as_str(), ratio.bound), ("limit", Some(2.5)));
        assert!(rows[0].ratios.is_empty());
        let json: serde_json::Value =
            serde_json::from_str(&rows[1].to_json().expect("finite")).expect("JSON");
        assert_eq!(json["ratios"][0]["median"], 3.0);
        rows[1].samples[1] = f64::NAN;
        let odd = rows[1].to_json().expect_err("NaN is no JSON");
        assert_eq!(odd.errno(), crate::error::Errno::EINVAL);
        assert_eq!(spread(&[4.0, 1.0, 2.0, 3.0]), Some((1.0, 2.5, 4.0)));
        assert_eq!(spread(&[]), None);
    }
}
