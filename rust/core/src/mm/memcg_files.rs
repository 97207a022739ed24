//! A memory cgroup's files, and `/proc/vmstat`, as text (`mm/memcontrol.c`,
//! `mm/vmstat.c`).
//!
//! Names, order and units are the kernel's; what the model has no counterpart
//! of is left out.

use super::memcg::{Memcg, UNLIMITED};
use super::memory::PAGE_SIZE;
use crate::cpu::Cpu;
use crate::error::{Errno, Error, Result};
use crate::host::Host;
use crate::lru_gen::lruvec::{ANON, FILE};
use crate::lru_gen::reclaim::{proactive_reclaim, set_high, set_max};
use crate::sync::atomic::Ordering;
use crate::text::quoted;
use crate::trace::Counter;
use std::fmt::Write;

/// Sizes of the LRU, by name, type and whether they are the active part.
const SIZES: [(&str, usize, bool); 4] = [
    ("inactive_anon", ANON, false),
    ("active_anon", ANON, true),
    ("inactive_file", FILE, false),
    ("active_file", FILE, true),
];

const WORKINGSET: [Counter; 6] = [
    Counter::RefaultAnon,
    Counter::RefaultFile,
    Counter::ActivateAnon,
    Counter::ActivateFile,
    Counter::RestoreAnon,
    Counter::RestoreFile,
];

const EVENTS: [Counter; 5] = [
    Counter::PgScan,
    Counter::PgSteal,
    Counter::PgFault,
    Counter::PgMajFault,
    Counter::PgRefill,
];

fn no_such_file(file: &str) -> Error {
    Error::new(
        Errno::ENOENT,
        format!(
            "a memory cgroup has no file {file:?}: expected memory.current, memory.high, \
             memory.max, memory.reclaim or memory.stat"
        ),
    )
}

fn limit(pages: u64) -> String {
    if pages == UNLIMITED {
        "max\n".to_owned()
    } else {
        format!("{}\n", pages.saturating_mul(PAGE_SIZE))
    }
}

/// What a file of a memory cgroup reads as.
///
/// # Errors
/// `ENOENT` for a file that is not there, `EINVAL` for `memory.reclaim`, which
/// is only written.
pub fn read(memcg: &Memcg, file: &str) -> Result<String> {
    match file {
        "memory.current" => Ok(format!("{}\n", memcg.usage() * PAGE_SIZE)),
        "memory.high" => Ok(limit(memcg.high.load(Ordering::Relaxed))),
        "memory.max" => Ok(limit(memcg.max.load(Ordering::Relaxed))),
        "memory.stat" => Ok(stat(memcg)),
        "memory.reclaim" => Err(Error::invalid("memory.reclaim is only written")),
        _ => Err(no_such_file(file)),
    }
}

fn stat(memcg: &Memcg) -> String {
    let mut text = String::new();
    for (name, ty, active) in SIZES {
        let lruvecs = memcg.lruvecs.iter();
        let pages: u64 = lruvecs.map(|lruvec| lruvec.lru_size(ty, active)).sum();
        let _ = writeln!(text, "{name} {}", pages * PAGE_SIZE);
    }
    for counter in WORKINGSET.into_iter().chain(EVENTS) {
        let _ = writeln!(text, "{} {}", counter.key(), memcg.stat.get(counter));
    }
    text
}

/// What `/proc/vmstat` reads as.
pub fn vmstat(host: &Host) -> String {
    let mut text = String::new();
    let nodes = 0..host.memory.nr_nodes();
    let free: u64 = nodes.map(|node| host.memory.nr_free(node)).sum();
    let _ = writeln!(text, "nr_free_pages {free}");
    let memcgs = host.memcgs();
    for (name, ty, active) in SIZES {
        let lruvecs = memcgs.iter().flat_map(|memcg| &memcg.lruvecs);
        let pages: u64 = lruvecs.map(|lruvec| lruvec.lru_size(ty, active)).sum();
        let _ = writeln!(text, "nr_{name} {pages}");
    }
    let sum = |counter| -> u64 { memcgs.iter().map(|memcg| memcg.stat.get(counter)).sum() };
    for counter in WORKINGSET.into_iter().chain(EVENTS) {
        let _ = writeln!(text, "{} {}", counter.key(), sum(counter));
    }
    // What no memory cgroup is charged with: of threads that have finished.
    let totals = host.totals.snapshot();
    for counter in [
        Counter::SwapIn,
        Counter::SwapOut,
        Counter::DirectReclaim,
        Counter::KswapdRuns,
    ] {
        let _ = writeln!(text, "{} {}", counter.key(), totals.get(counter));
    }
    text
}

/// A size in bytes, with a suffix, as pages (`page_counter_memparse()`); `max`
/// is none at all.
fn pages(word: &str) -> Option<u64> {
    if word == "max" {
        return Some(UNLIMITED);
    }
    let digits = word
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(word.len());
    let number: u64 = word[..digits].parse().ok()?;
    let shift = match &word[digits..] {
        "" => 0,
        "k" | "K" => 10,
        "m" | "M" => 20,
        "g" | "G" => 30,
        "t" | "T" => 40,
        _ => return None,
    };
    let bytes = u128::from(number) << shift;
    u64::try_from(bytes / u128::from(PAGE_SIZE)).ok()
}

/// Write to a file of a memory cgroup: a limit, which is kept by reclaim at
/// once, or an amount for `memory.reclaim`, after which `swappiness=N` may
/// stand.
///
/// # Errors
/// `ENOENT` for a file that is not there; `EINVAL` for another value, or a file
/// that is only read; `EAGAIN` when `memory.reclaim` could not have as much;
/// `EINTR`; what a notifier raised.
pub fn write(cpu: &Cpu, memcg: &Memcg, file: &str, value: &str) -> Result<()> {
    let mut words = value.split_ascii_whitespace();
    let invalid = || {
        Error::invalid(format!(
            "{file}: {} is not what it takes: expected bytes, with a suffix K, M, G or T, \
             or \"max\"",
            quoted(value.trim().as_bytes())
        ))
    };
    let mut amount = || words.next().and_then(pages).ok_or_else(invalid);
    match file {
        "memory.high" | "memory.max" => {
            let pages = amount()?;
            if words.next().is_some() {
                return Err(invalid());
            }
            if file == "memory.high" {
                set_high(cpu, memcg, pages)
            } else {
                set_max(cpu, memcg, pages)
            }
        }
        "memory.reclaim" => {
            let pages = amount()?;
            let mut swappiness = None;
            for word in words {
                let n = word
                    .strip_prefix("swappiness=")
                    .and_then(|n| n.parse().ok());
                swappiness = Some(n.filter(|&n| n <= 200).ok_or_else(invalid)?);
            }
            proactive_reclaim(cpu, memcg, pages, swappiness).map(|_| ())
        }
        "memory.current" | "memory.stat" => Err(Error::invalid(format!("{file} is only read"))),
        _ => Err(no_such_file(file)),
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_the_kernel_reads_them() {
        assert_eq!(pages("4M"), Some(1024));
        assert_eq!(pages("8191"), Some(1));
        assert_eq!(pages("1g"), Some(1 << 18));
        assert_eq!(pages("max"), Some(UNLIMITED));
        for wrong in ["", "M", "4Q", "-1", "4 M", "99999999999999999999"] {
            assert_eq!(pages(wrong), None, "{wrong:?}");
        }
    }
}
