//! Whether a run did what a recording did: one set of rules for all.
//!
//! A recorder's worker has pages of its own, so a bin may differ by some;
//! calls of hooks are counted with those pages in. What a rule allows is given
//! beside it.

use super::record::{Header, Record, Recording, RegionState, TraceCounts};

/// Pages that an anonymous bin may differ by: the worker's own.
const ANON_SLACK: u64 = 16;
/// Pages that a file bin may differ by.
const FILE_SLACK: u64 = 2;
/// Pages that a region's counts may differ by, before the first eviction and
/// from then on: whole batches are evicted, in which the worker's own pages
/// lie, and what an eviction left stays to be counted.
const REGION_SLACK: [u64; 2] = [2, 4];
/// Calls of a hook.
const CALL_SLACK: u64 = 16;
/// Calls for the regions' own pages; or 1 percent, where that is more.
const REGION_CALL_SLACK: u64 = 8;

/// What a comparison found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Comparison {
    /// Steps of the recording.
    pub steps: usize,
    /// Of them equal.
    pub equal_steps: usize,
    /// The first difference, in words.
    pub first_difference: Option<String>,
}

impl Comparison {
    /// Whether all is equal.
    pub fn is_equal(&self) -> bool {
        self.first_difference.is_none()
    }
}

/// Compare a run with a recording, step by step.
pub fn compare(recorded: &Recording, ours: &[Record]) -> Comparison {
    let mut first_difference = None;
    let mut equal_steps = 0;
    let mut evicted = false;
    for (n, theirs) in recorded.records.iter().enumerate() {
        evicted |= evicts(theirs);
        let slack = REGION_SLACK[usize::from(evicted)];
        let difference = match ours.get(n) {
            Some(mine) => step(&recorded.header, n, theirs, mine, slack).err(),
            None => Some("the run has no such step".to_owned()),
        };
        match difference {
            None => equal_steps += 1,
            Some(text) if first_difference.is_none() => {
                let (op, args) = (&theirs.op, &theirs.args);
                first_difference = Some(format!("step {n} ({op} {args}): {text}"));
            }
            Some(_) => {}
        }
    }
    if ours.len() > recorded.records.len() && first_difference.is_none() {
        first_difference = Some(format!(
            "the run has {} steps, the recording {}",
            ours.len(),
            recorded.records.len()
        ));
    }
    Comparison {
        steps: recorded.records.len(),
        equal_steps,
        first_difference,
    }
}

/// Whether a step may evict: the commands that do, and limits set.
fn evicts(record: &Record) -> bool {
    match record.op.as_str() {
        "evict" | "memset" => true,
        "raw" => record.args.contains('-'),
        _ => false,
    }
}

fn within(what: &str, theirs: u64, ours: u64, slack: u64) -> Result<(), String> {
    if theirs.abs_diff(ours) <= slack {
        Ok(())
    } else {
        Err(format!(
            "{what}: recorded {theirs}, here {ours}, allowed to differ by {slack}"
        ))
    }
}

fn step(
    header: &Header,
    n: usize,
    theirs: &Record,
    ours: &Record,
    slack: u64,
) -> Result<(), String> {
    if (&theirs.op, &theirs.args) != (&ours.op, &ours.args) {
        return Err(format!("the run's step is {} {}", ours.op, ours.args));
    }
    if theirs.errno != ours.errno {
        return Err(format!(
            "errno: recorded {}, here {}",
            theirs.errno, ours.errno
        ));
    }
    if !theirs.generations.keys().eq(ours.generations.keys()) {
        return Err(format!(
            "generations: recorded {:?}, here {:?}",
            theirs.generations, ours.generations
        ));
    }
    for (seq, mine) in &ours.generations {
        let recorded = theirs.generations[seq];
        within(
            &format!("anon pages of generation {seq}"),
            recorded[0],
            mine[0],
            ANON_SLACK,
        )?;
        within(
            &format!("file pages of generation {seq}"),
            recorded[1],
            mine[1],
            FILE_SLACK,
        )?;
    }
    for (name, recorded) in &theirs.regions {
        let mine = ours.regions.get(name);
        region(
            name,
            recorded,
            mine.ok_or(format!("no region {name}"))?,
            slack,
        )?;
    }
    // The first record counts from when the machine's trace was last read, which
    // was before the scenario: those calls are another run's.
    if let Some(recorded) = theirs.trace.as_ref().filter(|_| n > 0) {
        let mine = ours.trace.as_ref().ok_or("no trace in the run")?;
        trace(header, theirs, recorded, mine)?;
    }
    Ok(())
}

fn region(name: &str, theirs: &RegionState, ours: &RegionState, slack: u64) -> Result<(), String> {
    within(
        &format!("present pages of {name}"),
        theirs.present,
        ours.present,
        slack,
    )?;
    within(
        &format!("swapped pages of {name}"),
        theirs.swapped,
        ours.swapped,
        slack,
    )?;
    match (theirs.incore, ours.incore) {
        (Some(theirs), Some(ours)) => {
            within(&format!("cached pages of {name}"), theirs, ours, slack)
        }
        (Some(_), None) => Err(format!("cached pages of {name} are not known")),
        (None, _) => Ok(()),
    }
}

fn trace(
    header: &Header,
    step: &Record,
    theirs: &TraceCounts,
    ours: &TraceCounts,
) -> Result<(), String> {
    within(
        "kvm_age_hva",
        theirs.kvm_age_hva,
        ours.kvm_age_hva,
        CALL_SLACK,
    )?;
    let pairs = [
        (
            "fast calls for regions",
            theirs.region_age_hva_fast,
            ours.region_age_hva_fast,
        ),
        (
            "slow calls for regions",
            theirs.region_age_hva_slow,
            ours.region_age_hva_slow,
        ),
    ];
    for (what, theirs, ours) in pairs {
        if let Some(theirs) = theirs {
            let ours = ours.ok_or(format!("{what} are not known"))?;
            within(what, theirs, ours, REGION_CALL_SLACK.max(theirs / 100))?;
        }
    }
    if header.kernel.starts_with("linux-v7") {
        v7_calls(step, ours)?;
    }
    Ok(())
}

/// What holds in v7 without exception.
fn v7_calls(step: &Record, ours: &TraceCounts) -> Result<(), String> {
    if ours.kvm_test_age_hva != 0 {
        return Err(format!(
            "kvm_test_age_hva was called {} times",
            ours.kvm_test_age_hva
        ));
    }
    if step.op == "age" && ours.region_age_hva_slow.unwrap_or(0) != 0 {
        return Err("aging made slow calls".to_owned());
    }
    Ok(())
}
