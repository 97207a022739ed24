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
use crate::lru_gen::controller::MAX_SWAPPINESS;
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
    // What happened in a memory cgroup has happened also when that is removed.
    let ever = host.memcgs_ever();
    let sum = |counter| -> u64 { ever.iter().map(|memcg| memcg.stat.get(counter)).sum() };
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

/// What `strstrip()` takes off both ends; a string ends at its first null byte.
fn strip(text: &str) -> &str {
    let text = text.split('\0').next().unwrap_or_default();
    text.trim_matches(|c: char| c.is_ascii_whitespace() || c == '\x0b')
}

/// A number in C's notation, and what follows it (`simple_strtoull()` with base
/// 0): hexadecimal after `0x`, octal after `0`. Too large a one wraps; none is 0.
fn strtoull(text: &str) -> (u64, &str) {
    let bytes = text.as_bytes();
    let hex = matches!(bytes, [b'0', b'x' | b'X', digit, ..] if digit.is_ascii_hexdigit());
    let (base, digits) = match bytes {
        _ if hex => (16, &text[2..]),
        [b'0', ..] => (8, text),
        _ => (10, text),
    };
    let end = digits
        .find(|c: char| !c.is_digit(base))
        .unwrap_or(digits.len());
    let (digits, rest) = digits.split_at(end);
    let number = digits.chars().filter_map(|c| c.to_digit(base));
    let number = number.fold(0u64, |n, digit| {
        n.wrapping_mul(base.into()).wrapping_add(digit.into())
    });
    (number, rest)
}

/// A number of bytes with a suffix, and what follows it (`memparse()`). A suffix
/// alone is 0 bytes.
fn memparse(text: &str) -> (u64, &str) {
    let (number, rest) = strtoull(text);
    let suffix = rest.chars().next().map(|c| c.to_ascii_lowercase());
    let Some(power) = suffix.and_then(|c| "kmgtpe".find(c)) else {
        return (number, rest);
    };
    // What is beyond 64 bits is lost.
    (number << (10 * (power + 1)), &rest[1..])
}

/// A limit in pages (`page_counter_memparse()`): `max`, or bytes and nothing
/// after them; more than a counter holds is none, and no text is 0.
fn limit_pages(text: &str) -> Option<u64> {
    /// `PAGE_COUNTER_MAX`.
    const MAX: u64 = i64::MAX as u64 / PAGE_SIZE;
    let text = strip(text);
    if text == "max" {
        return Some(UNLIMITED);
    }
    match memparse(text) {
        (bytes, "") if bytes / PAGE_SIZE < MAX => Some(bytes / PAGE_SIZE),
        (_, "") => Some(UNLIMITED),
        _ => None,
    }
}

/// What `memory.reclaim` is to do: how many pages, and with which swappiness
/// (`memory_reclaim()`). A limit's `max` is none: its `m` is a suffix, and `ax`
/// nothing that is known.
fn reclaim_request(text: &str) -> Option<(u64, Option<u32>)> {
    let text = strip(text);
    let (bytes, rest) = memparse(text);
    if rest.len() == text.len() {
        return None;
    }
    let mut swappiness = None;
    for word in strip(rest).split(' ').filter(|word| !word.is_empty()) {
        let (n, rest) = strtol(word.strip_prefix("swappiness=")?)?;
        let n = u32::try_from(n).ok().filter(|&n| n <= MAX_SWAPPINESS);
        swappiness = Some(n.filter(|_| rest.is_empty())?);
    }
    Some((bytes / PAGE_SIZE, swappiness))
}

/// A signed number, and what follows it (`simple_strtol()`); `None` for none. A
/// minus alone is 0.
fn strtol(text: &str) -> Option<(i64, &str)> {
    let digits = text.strip_prefix('-').unwrap_or(text);
    let (n, rest) = strtoull(digits);
    let n = if digits.len() < text.len() {
        n.wrapping_neg()
    } else {
        n
    };
    (rest.len() < text.len()).then_some((n as i64, rest))
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
    let expected = |what: &str| {
        Error::invalid(format!(
            "{file}: {} is not what it takes: expected bytes, with a suffix K, M, G, T, P or E, \
             {what}",
            quoted(value.trim().as_bytes())
        ))
    };
    match file {
        "memory.high" | "memory.max" => {
            let pages = limit_pages(value).ok_or_else(|| expected("or \"max\""))?;
            if file == "memory.high" {
                set_high(cpu, memcg, pages)
            } else {
                set_max(cpu, memcg, pages)
            }
        }
        "memory.reclaim" => {
            let request = reclaim_request(value);
            let (pages, swappiness) =
                request.ok_or_else(|| expected("and swappiness=N of 0 to 200 if wanted"))?;
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
    fn limits_are_read_as_the_kernel_reads_them() {
        let cases = [
            ("4M", Some(1024)),
            ("8191", Some(1)),
            ("1g", Some(1 << 18)),
            ("max", Some(UNLIMITED)),
            (" max\n", Some(UNLIMITED)),
            ("0x400000", Some(1024)),
            ("0X1000k", Some(1024)),
            ("010000", Some(1)),
            ("1P", Some(1 << 38)),
            ("1e", Some(1 << 48)),
            // No digits are 0, with a suffix or without.
            ("", Some(0)),
            ("M", Some(0)),
            ("4M\0 and more", Some(1024)),
            // More than a counter holds is no limit; what wraps is not noticed.
            ("8E", Some(UNLIMITED)),
            ("18446744073709555712", Some(1)),
            ("16E", Some(0)),
            ("0x", None),
            ("08", None),
            ("Max", None),
            ("maximum", None),
            ("4Q", None),
            ("4KB", None),
            ("-1", None),
            ("+1", None),
            ("4 M", None),
            ("4M 4M", None),
        ];
        for (text, pages) in cases {
            assert_eq!(limit_pages(text), pages, "{text:?}");
        }
    }

    #[test]
    fn memory_reclaim_is_read_as_the_kernel_reads_it() {
        let cases = [
            ("4M", Some((1024, None))),
            ("4M swappiness=60", Some((1024, Some(60)))),
            (" 0x400000\tswappiness=0x3c\n", Some((1024, Some(60)))),
            ("4Mswappiness=60", Some((1024, Some(60)))),
            ("4M  swappiness=1 swappiness=-0", Some((1024, Some(0)))),
            ("4M swappiness=-", Some((1024, Some(0)))),
            ("K", Some((0, None))),
            ("16E", Some((0, None))),
            // The `m` is a suffix, and `ax` no word that is known.
            ("max", None),
            ("", None),
            ("swappiness=60", None),
            ("-1", None),
            ("4M M", None),
            ("4M swappiness", None),
            ("4M swappiness=", None),
            ("4M swappiness=201", None),
            ("4M swappiness=-1", None),
            ("4M swappiness=max", None),
            ("4M swappiness=60\tswappiness=60", None),
        ];
        for (text, request) in cases {
            assert_eq!(reclaim_request(text), request, "{text:?}");
        }
    }
}
