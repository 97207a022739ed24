//! The text interface: `/sys/kernel/mm/lru_gen/` and
//! `/sys/kernel/debug/lru_gen`, `lru_gen_full` (`mm/vmscan.c`, "sysfs
//! interface" and "debugfs interface").

use super::evict::run_eviction;
use super::histogram::{self, Letters};
use super::{Asking, caps, default_swappiness, run_aging};
use crate::cpu::Cpu;
use crate::error::{Error, Result};
use crate::host::Host;
use crate::mm::Memcg;
use crate::text::{Cursor, is_space, kstrtouint, quoted};

/// The highest swappiness.
const MAX_SWAPPINESS: u64 = 200;

/// The letters that a host's kernel prints in `lru_gen_full`.
pub fn letters(host: &Host) -> Letters {
    match host.lru_gen.asking() {
        Asking::Accurate => Letters::Four,
        Asking::None | Asking::FastOnly => Letters::Six,
    }
}

/// What `lru_gen` reads as.
pub fn show(host: &Host) -> String {
    histogram::print(&histogram::of_host(host, None))
}

/// What `lru_gen_full` reads as.
pub fn show_full(host: &Host) -> String {
    histogram::print(&histogram::of_host(host, Some(letters(host))))
}

/// What `enabled` reads as.
pub fn show_enabled(host: &Host) -> String {
    format!("0x{:04x}\n", host.lru_gen.caps())
}

/// Write `enabled`: `y`, `n` or a mask, of which unknown bits are ignored.
///
/// # Errors
/// `EINVAL` for anything else.
pub fn write_enabled(host: &Host, text: &[u8]) -> Result<()> {
    let mask = match text.first() {
        Some(b'n' | b'N') => 0,
        Some(b'y' | b'Y') => caps::ALL,
        _ => kstrtouint(text).ok_or_else(|| {
            let found = quoted(text);
            Error::invalid(format!(
                "lru_gen/enabled: line 1, column 1: expected y, n or a mask, found {found}"
            ))
        })?,
    };
    host.lru_gen.set_caps(mask);
    Ok(())
}

/// What `min_ttl_ms` reads as.
pub fn show_min_ttl_ms(host: &Host) -> String {
    format!("{}\n", host.lru_gen.min_ttl_ms())
}

/// Write `min_ttl_ms`.
///
/// # Errors
/// `EINVAL` when it is not a number of 32 bits.
pub fn write_min_ttl_ms(host: &Host, text: &[u8]) -> Result<()> {
    let ms = kstrtouint(text).ok_or_else(|| {
        let found = quoted(text);
        Error::invalid(format!(
            "lru_gen/min_ttl_ms: line 1, column 1: expected milliseconds, found {found}"
        ))
    })?;
    host.lru_gen.set_min_ttl_ms(ms);
    Ok(())
}

/// One command of `lru_gen`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Command {
    /// `+`, `-`, or what stood there.
    pub letter: u8,
    /// The memory cgroup's number.
    pub memcg: u32,
    /// The node.
    pub node: u32,
    /// The generation.
    pub seq: u64,
    /// Swappiness, or whether anonymous pages can be swapped; none given, the
    /// memory cgroup's own.
    pub swappiness: Option<u64>,
    /// `force_scan` or `nr_to_reclaim`; none given, the largest.
    pub option: Option<u64>,
}

/// Read one command; the cursor stands at its letter.
///
/// # Errors
/// `EINVAL` with line and column.
pub fn parse_command(cursor: &mut Cursor<'_>) -> Result<Command> {
    let letter = cursor.bump().ok_or_else(|| cursor.expected("+ or -"))?;
    // Numbers are cut to the kernel's widths, as its sscanf() does.
    let memcg = cursor.wrapping_number("a memcg number")? as u32;
    let node = cursor.wrapping_number("a node number")? as u32;
    let seq = cursor.wrapping_number("a generation")?;
    let mut optional = [None; 2];
    let whats = ["swappiness", "an option"];
    for (value, what) in optional.iter_mut().zip(whats) {
        cursor.skip_spaces();
        if cursor.rest().is_empty() {
            break;
        }
        *value = Some(cursor.wrapping_number(what)?);
    }
    cursor.end()?;
    let [swappiness, option] = optional;
    Ok(Command {
        letter,
        memcg,
        node,
        seq,
        // A signed 32-bit number; a negative one is as good as none.
        swappiness: swappiness
            .map(|n| u64::from(n as u32))
            .filter(|&n| n <= i32::MAX as u64),
        option,
    })
}

/// Write `lru_gen`: commands separated by newline, `,` or `;`. The first error
/// stops; what was done before it stays done.
///
/// # Errors
/// `EINVAL` for what cannot be read, an unknown letter, memcg or node,
/// trailing words, or swappiness over 200, and where there is no command;
/// `ERANGE` and `EINVAL` of aging and eviction; `EINTR`.
pub fn write(cpu: &Cpu, text: &[u8]) -> Result<()> {
    // The kernel reads a string, which ends at its first null byte.
    let text = text.split(|&byte| byte == 0).next().unwrap_or_default();
    let mut any = false;
    for (line, number) in text.split(|&byte| byte == b'\n').zip(1..) {
        let mut start = 0;
        for part in line.split(|&byte| matches!(byte, b',' | b';')) {
            let end = start + part.len();
            let mut cursor = Cursor::new(&line[..end], number, start);
            start = end + 1;
            cursor.skip_spaces();
            if cursor.rest().is_empty() {
                continue;
            }
            let place = cursor.clone();
            let command = parse_command(&mut cursor)?;
            run(cpu, &command, &place)?;
            any = true;
        }
    }
    if any {
        Ok(())
    } else {
        debug_assert!(
            text.iter()
                .all(|&b| is_space(b) || matches!(b, b',' | b';'))
        );
        Err(Cursor::new(&[], 1, 0).expected("a command"))
    }
}

/// The command `-`, by its arguments; without swappiness the memory cgroup's own,
/// and without a number of pages as many as there are. Returns the pages
/// reclaimed.
///
/// # Errors
/// `EINVAL` for a node that is not there, swappiness over 200, and one of the two
/// youngest generations; `EINTR`; what a notifier raised.
pub fn evict(
    cpu: &Cpu,
    memcg: &Memcg,
    node: usize,
    seq: u64,
    swappiness: Option<u32>,
    nr_to_reclaim: Option<u64>,
) -> Result<u64> {
    let lruvec = memcg
        .lruvecs
        .get(node)
        .ok_or_else(|| Error::invalid(format!("the host has no node {node}")))?;
    let swappiness = match swappiness {
        None => default_swappiness(cpu),
        Some(n) if u64::from(n) <= MAX_SWAPPINESS => n,
        Some(n) => {
            return Err(Error::invalid(format!(
                "swappiness {n}: expected at most {MAX_SWAPPINESS}"
            )));
        }
    };
    let nr_to_reclaim = nr_to_reclaim.unwrap_or(u64::MAX);
    run_eviction(cpu, memcg, lruvec, seq, swappiness, nr_to_reclaim)
}

fn run(cpu: &Cpu, command: &Command, place: &Cursor<'_>) -> Result<()> {
    let host = cpu.host();
    if command.node as usize >= host.memory.nr_nodes() {
        return Err(place.expected(&format!(
            "a node below {}, not {},",
            host.memory.nr_nodes(),
            command.node
        )));
    }
    let memcg = u16::try_from(command.memcg)
        .ok()
        .and_then(|id| host.memcg(id));
    let memcg = memcg
        .ok_or_else(|| place.expected(&format!("the number of a memcg, not {},", command.memcg)))?;
    let lruvec = &memcg.lruvecs[command.node as usize];
    let swappiness = match command.swappiness {
        None => default_swappiness(cpu),
        Some(n) if n <= MAX_SWAPPINESS => n as u32,
        Some(n) => {
            return Err(place.expected(&format!("swappiness of at most 200, not {n},")));
        }
    };
    match command.letter {
        b'+' => {
            let force_scan = command.option != Some(0);
            run_aging(
                cpu,
                &memcg,
                lruvec,
                command.seq,
                swappiness != 0,
                force_scan,
            )
            .map(|_| ())
        }
        b'-' => {
            let nr_to_reclaim = command.option.unwrap_or(u64::MAX);
            run_eviction(cpu, &memcg, lruvec, command.seq, swappiness, nr_to_reclaim).map(|_| ())
        }
        _ => Err(place.expected("+ or -")),
    }
}
