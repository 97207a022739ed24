//! Torture: everything that a virtual machine can suffer at once, on real
//! threads, and what must hold afterwards (the selftest `mmu_stress_test`, and
//! `rcutorture` for the grace periods).
//!
//! A *round* is one machine of its own, drawn from a seed: format, levels,
//! aliases, limits. Its vCPUs make a given number of accesses each, while
//! others age it by every notifier, move and delete its memslots, unmap and
//! swap out its memory, log dirty pages, rewrite the guest's page tables and
//! subscribe to its notifiers. Then the round stops and everything is checked
//! and taken apart. What each thread does in which order is determined by the
//! seed; how the threads interleave is not, so a failure may take several runs
//! to come again.
//!
//! | file | what is in it |
//! |---|---|
//! | `room` | the machine of a round, and what every thread shares of it |
//! | `crew` | the threads: what each of them does, step by step |
//! | `execution` | what the guest lets be executed, and what its fetches must find |
//! | `exhibit` | objects whose readers keep their age: grace periods put to the test |
//! | `check` | what must hold when all is quiet, and that nothing is left |
//!
//! What is found while a round runs: an error where none may be; a panic (a
//! table freed twice, a reference dropped twice); a walker that meets poison; a
//! guest store to a page after its invalidation began; a fetch from what the
//! guest's own tables forbid to execute, or one refused that they allow; a reader that still
//! holds what a grace period has passed for; a callback after unregistering; no
//! access made for too long. What is found after it: a page whose last store is
//! not there, wherever the page has been; a copy that follows the dirty log and
//! differs; an SPTE that maps another frame than the process does, or that has
//! lost or gained a permission to read, write or execute; frames, swap
//! slots, LRU lists, rmap chains, counts that do not add up; tables, descriptors
//! or callbacks left over; and, when the room is gone, an object of the machine that
//! something still owns.

mod check;
mod crew;
mod execution;
mod exhibit;
mod room;

use crate::cpu::Cpu;
use crate::error::{Error, Result};
use crate::kvm::protocol::Protocol;
use crate::kvm::vm::MmuKind;
use crate::sync::atomic::Ordering;
use crate::sync::thread;
use crate::trace::CounterValues;
use room::Room;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Most vCPUs of a round.
pub const MAX_THREADS: u32 = 64;
/// Most threads that age.
pub const MAX_AGERS: u32 = 16;
/// How often the caller is asked whether to go on.
const POLL: Duration = Duration::from_millis(10);

/// What a round is to be.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Which MMU.
    pub mmu: MmuKind,
    /// How the machine is aged.
    pub protocol: Protocol,
    /// vCPUs, each a thread.
    pub vcpus: u32,
    /// Threads that age.
    pub agers: u32,
    /// Accesses that each vCPU makes.
    pub accesses: u64,
    /// What the round is drawn from.
    pub seed: u64,
    /// A round in which no access is made for so long has failed.
    pub patience: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            mmu: MmuKind::Tdp,
            protocol: Protocol::V7,
            vcpus: 2,
            agers: 2,
            accesses: 1 << 20,
            seed: 1,
            patience: Duration::from_secs(60),
        }
    }
}

impl Options {
    /// # Errors
    /// `EINVAL` names the first field that is out of range.
    pub fn check(&self) -> Result<()> {
        if !(1..=MAX_THREADS).contains(&self.vcpus) {
            return Err(Error::invalid(format!(
                "{} vCPU threads: expected 1 to {MAX_THREADS}",
                self.vcpus
            )));
        }
        if self.agers > MAX_AGERS {
            return Err(Error::invalid(format!(
                "{} aging threads: expected 0 to {MAX_AGERS}",
                self.agers
            )));
        }
        if self.accesses == 0 {
            return Err(Error::invalid("0 accesses a vCPU: expected at least 1"));
        }
        Ok(())
    }
}

/// What a round did.
#[derive(Clone, Debug)]
pub struct Round {
    /// The machine that was drawn, in words.
    pub machine: String,
    /// Guest accesses made.
    pub accesses: u64,
    /// Whether it ended because `poll` said so.
    pub interrupted: bool,
    /// How long it took, checks included, in nanoseconds.
    pub wall_ns: u64,
    /// How often each thing was done to the machine, by name.
    pub deeds: Vec<(&'static str, u64)>,
    /// What all threads counted.
    pub counters: CounterValues,
    /// What went wrong first, or nothing.
    pub failure: Option<String>,
}

/// Run one round. `poll` is told every 10 ms how many accesses have been made,
/// and ends the round by returning false; its checks are made nevertheless.
///
/// # Errors
/// As [`Options::check`]; `ENOMEM` and the like while the machine is made. What
/// goes wrong in the round is in [`Round::failure`].
pub fn round(options: &Options, poll: &mut dyn FnMut(u64) -> bool) -> Result<Round> {
    options.check()?;
    let start = Instant::now();
    let room = Arc::new(Room::new(options)?);
    let mut done = round_in(room, options, poll);
    done.wall_ns = u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
    Ok(done)
}

/// [`round`], in a room that is there.
fn round_in(room: Arc<Room>, options: &Options, poll: &mut dyn FnMut(u64) -> bool) -> Round {
    let crew = crew::hire(options, &room);
    let threads: Vec<_> = crew
        .into_iter()
        .map(|member| {
            let room = Arc::clone(&room);
            thread::spawn(move || {
                let name = member.name();
                // One that ends by a panic stops the others and is reported.
                match catch_unwind(AssertUnwindSafe(|| member.work(&room))) {
                    Ok(Ok(())) => {}
                    Ok(Err(what)) => room.fail(format!("{name}: {what}")),
                    Err(panic) => room.fail(format!("{name} panicked: {}", words(&*panic))),
                }
                room.leave();
            })
        })
        .collect();

    let mut interrupted = false;
    let mut last = (0, Instant::now());
    // Once the room is stopped its threads have as long to leave it.
    let stalled = loop {
        if room.wait(POLL) {
            break false;
        }
        let made = room.accesses();
        let stopping = room.is_stopped();
        if made != last.0 && !stopping {
            last = (made, Instant::now());
        } else if last.1.elapsed() > options.patience {
            break true;
        }
        if !stopping && !poll(made) {
            interrupted = true;
            room.stop();
            last.1 = Instant::now();
        }
    };
    if stalled {
        // Nobody can end a thread that waits for ever; the room stays with it.
        room.fail(format!(
            "stalled: no access was made for {} s",
            options.patience.as_secs()
        ));
        let left = room.leaving();
        room.fail(format!("{left} threads did not end"));
    } else {
        for thread in threads {
            // Its panic was caught and told.
            let _ = thread.join();
        }
        if room.failure().is_none() {
            match catch_unwind(AssertUnwindSafe(|| check::all(&room))) {
                Ok(Ok(())) => {}
                Ok(Err(what)) => room.fail(what),
                Err(panic) => room.fail(format!("the checks panicked: {}", words(&*panic))),
            }
        }
    }
    let mut done = Round {
        machine: room.describe(),
        accesses: room.accesses(),
        interrupted,
        wall_ns: 0,
        deeds: room.deeds(),
        counters: room.host.totals.snapshot(),
        failure: room.failure(),
    };
    if !stalled {
        let owned = room.owned();
        drop(room);
        let left: Vec<&str> = owned.iter().filter_map(|alive| alive()).collect();
        if !left.is_empty() {
            let what = format!("never freed: {}", left.join(", "));
            done.failure.get_or_insert(what);
        }
    }
    done
}

/// The seed of the round that follows one, so that every round has a seed that
/// it can be repeated by (SplitMix64).
pub fn next_seed(seed: u64) -> u64 {
    let z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    // Python and JSON keep it exact.
    (z ^ (z >> 31)) >> 1
}

/// What a panic said.
fn words(panic: &(dyn std::any::Any + Send)) -> String {
    panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("without words")
        .to_owned()
}

/// A per-CPU area for a thread of the crew or the checker.
fn cpu(room: &Room) -> Cpu {
    Cpu::new(&room.host)
}

/// Relaxed: counts and flags of the room carry nothing but themselves.
const RELAXED: Ordering = Ordering::Relaxed;

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_stall_is_noticed() {
        let options = Options {
            patience: Duration::from_millis(50),
            ..Options::default()
        };
        let room = Arc::new(Room::new(&options).expect("a valid machine"));
        let blocked = Arc::clone(&room);
        // Nothing is mapped yet, and no fault gets past this.
        let _held = blocked.vm.mmu_lock.write();
        let round = round_in(room, &options, &mut |_| true);
        let said = round.failure.expect("a stall");
        assert!(said.contains("stalled"), "{said}");
        assert_eq!(round.accesses, 0);
    }
}
