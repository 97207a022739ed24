//! `access-tracking -p`: vCPUs populate memory while one aging pass follows
//! another, protocols side by side.
//!
//! As much memory as one to four vCPUs populate is populated beforehand. With
//! an empty guest most passes of a run are its first ones, over next to
//! nothing, and an average pass says little: each pass takes so much less time
//! than the faults that the guest grows by a tenth from one to the next.
//!
//! A fault of the model is what MM and KVM do under their locks and between
//! them, and takes a tenth of the time of a real one, which leaves the guest,
//! enters it again and clears a page. The same aging therefore meets ten times
//! as many faults. Cases are run with bare faults, which is the harsher
//! comparison, and with the rest of a fault beside each, as long as in the
//! published runs ([`AROUND_A_FAULT`]).

use super::contest::{Case, Contestant, Metric, Sample, Stage, timed};
use super::{Guest, GuestConfig, wrong};
use crate::cpu::Cpu;
use crate::error::Result;
use crate::kvm::MmuKind;
use crate::kvm::protocol::Protocol;
use crate::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use crate::sync::thread::{self, Affinity};
use crate::trace::{Counter, CounterValues};
use std::time::{Duration, Instant};

/// Real time of the slowest vCPU for each page that it populated.
const VCPU_WALL: Metric = Metric::time("vcpu_wall_ns_per_page", "ns");
/// Pages populated: fewer than asked for where time ran out.
const POPULATED: Metric = Metric::rate("pages_populated", "1");
/// Average time of an aging pass that asked about pages.
const PASS: Metric = Metric::time("aging_pass_seconds", "s");
/// Passes that asked about pages.
const PASSES: Metric = Metric::count("aging_passes", "1");
/// Passes that asked about none: whatever they tried to lock was taken.
const EMPTY: Metric = Metric::count("aging_passes_empty", "1");
/// Processor time of all vCPUs for each page that they populated.
const VCPU_CPU: Metric = Metric::time("vcpu_cpu_ns_per_page", "ns");
/// Processor time of an aging pass, on average over all passes.
const PASS_CPU: Metric = Metric::time("aging_pass_cpu_seconds", "s");
/// Real time for each page that a pass asked about.
const PAGE: Metric = Metric::time("aging_ns_per_page", "ns");
/// Processor time for each page that a pass asked about.
const PAGE_CPU: Metric = Metric::time("aging_cpu_ns_per_page", "ns");
/// How often `mmu_lock` was waited for, for each page populated.
const LOCK_WAITS: Metric = Metric::time("mmu_lock_waits_per_page", "1");
/// Time spent waiting for it, by all threads, for each page populated.
const LOCK_WAIT: Metric = Metric::time("mmu_lock_wait_ns_per_page", "ns");
/// Time that faults waited for the LRU lock, which the protocols share, for
/// each page populated.
const LRU_LOCK_WAIT: Metric = Metric::time("lru_lock_wait_ns_per_page", "ns");
/// Fault latencies, without what is around a fault.
const P10: Metric = Metric::time("fault_p10_ns", "ns");
const P50: Metric = Metric::time("fault_p50_ns", "ns");
const P90: Metric = Metric::time("fault_p90_ns", "ns");
const P99: Metric = Metric::time("fault_p99_ns", "ns");
const P999: Metric = Metric::time("fault_p999_ns", "ns");
const MAXIMUM: Metric = Metric::time("fault_maximum_ns", "ns");

/// What a fault of the published runs takes beyond what the model's does: a
/// page of 0.879 s / 262,144 (one vCPU, no aging), less 0.3 microseconds.
pub const AROUND_A_FAULT: Duration = Duration::from_nanos(3_000);

/// What ages meanwhile.
#[derive(Clone, Copy)]
enum Ager {
    Nobody,
    /// `v7`, of another guest on a host of its own: what the aging of any
    /// memory costs the vCPUs, by the caches and the memory that the
    /// processors share, before there is a lock or a word in common.
    Elsewhere,
    By(Protocol),
}

impl Ager {
    const ALL: [Ager; 5] = [
        Ager::Nobody,
        Ager::Elsewhere,
        Ager::By(Protocol::V7),
        Ager::By(Protocol::BASELINE),
        Ager::By(Protocol::V9),
    ];

    fn name(self) -> &'static str {
        match self {
            Ager::Nobody => "no aging",
            Ager::Elsewhere => "v7 elsewhere",
            Ager::By(protocol) => protocol.name,
        }
    }

    fn protocol(self) -> Protocol {
        match self {
            Ager::Nobody | Ager::Elsewhere => Protocol::V7,
            Ager::By(protocol) => protocol,
        }
    }
}

/// How a repetition is set up.
#[derive(Clone, Copy)]
struct Setup {
    mmu: MmuKind,
    vcpus: u64,
    /// Pages that are populated before anything is measured.
    before: u64,
    pages_per_vcpu: u64,
    /// Buffers that a vCPU clears beside each fault.
    clears: u64,
    /// When vCPUs are stopped short of populating everything: with more
    /// threads than processors, waiting for a lock is waiting for the
    /// scheduler, without end in sight.
    limit: Duration,
}

pub(super) fn run(stage: &mut Stage<'_>) -> Result<()> {
    let options = stage.options.clone();
    let affinity = stage.affinity.clone();
    let counts: &[u64] = options.pick(
        &[1, 2][..],
        &[1, 2, 4, 8, 16, 32],
        &[1, 2, 4, 8, 16, 32],
        &[1, 2, 4, 8, 16, 32],
    );
    let total: u64 = options.pick(1 << 10, 1 << 16, 1 << 18, 1 << 18);
    let limit = Duration::from_millis(options.pick(10_000, 1000, 10_000, 10_000));
    // Up to so many vCPUs share the memory that is populated; with more there
    // is more of it, for a pass must be long enough to be met by every vCPU.
    let most_sharing = options.pick(4, 32, 4, 4);
    // With more vCPUs than that, only bare faults: what is around them only
    // queues for the processors.
    let most_whole = options.pick(1, 1, 4, 4);
    let clears = clears_in(AROUND_A_FAULT);
    for &(mmu, kind) in super::guest::MMUS {
        for &vcpus in counts {
            for (faults, clears) in [("bare", 0), ("whole", clears)] {
                if clears != 0 && vcpus > most_whole {
                    continue;
                }
                let setup = Setup {
                    mmu: kind,
                    vcpus,
                    before: total,
                    pages_per_vcpu: total / vcpus.min(most_sharing),
                    clears,
                    limit,
                };
                let case = Case {
                    name: format!("{mmu}, {vcpus} vCPUs, {faults} faults"),
                    parameters: vec![
                        ("mmu", mmu.to_string()),
                        ("vcpus", vcpus.to_string()),
                        ("pages_before", setup.before.to_string()),
                        ("pages_per_vcpu", setup.pages_per_vcpu.to_string()),
                        ("buffers_cleared_per_fault", clears.to_string()),
                    ],
                    threads: vcpus as usize + 1,
                    repetitions: options.repetitions(7),
                    warm_up: 1,
                };
                // Where threads outnumber processors, they are what costs.
                let agers = Ager::ALL
                    .into_iter()
                    .filter(|ager| vcpus == 1 || !matches!(ager, Ager::Elsewhere));
                let contestants = agers.map(|ager| {
                    let affinity = &affinity;
                    let measured = move || measure(setup, ager, affinity);
                    let contestant = Contestant::new(ager.name(), measured);
                    match ager {
                        Ager::Nobody => contestant,
                        Ager::Elsewhere => contestant.against("no aging"),
                        Ager::By(Protocol::V7) if vcpus == 1 && clears != 0 => {
                            contestant.against("no aging").at_most(1.05)
                        }
                        Ager::By(Protocol::V7) => contestant.against("no aging"),
                        Ager::By(_) => contestant.against("no aging").against("v7"),
                    }
                });
                stage.contest(&case, contestants.collect())?;
            }
        }
    }
    Ok(())
}

/// The page that is cleared beside a fault.
type Buffer = [u8; 4096];

/// How many buffers are cleared in a time.
fn clears_in(time: Duration) -> u64 {
    const TRIES: u64 = 1000;
    let mut buffer: Buffer = [0; 4096];
    clear(&mut buffer, TRIES);
    let (ns, ()) = timed(|| clear(&mut buffer, TRIES));
    let all = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    (all * TRIES / ns.max(1)).max(1)
}

fn clear(buffer: &mut Buffer, times: u64) {
    for _ in 0..times {
        std::hint::black_box(&mut *buffer).fill(0);
    }
}

fn make(setup: Setup, ager: Ager) -> Result<Guest> {
    let guest = Guest::new(&GuestConfig {
        pages: setup.before + setup.vcpus * setup.pages_per_vcpu,
        protocol: ager.protocol(),
        mmu: setup.mmu,
        vcpus: setup.vcpus as u32,
        ..GuestConfig::default()
    })?;
    let cpu = Cpu::new(&guest.host);
    guest.sweep(&cpu, 0, setup.before)?;
    drop(cpu);
    Ok(guest)
}

/// What the aging thread did.
#[derive(Default)]
struct Aging {
    passes: u64,
    empty: u64,
    /// Of the passes that were not empty.
    ns: u64,
    cpu_ns: u64,
    asked: u64,
    counters: CounterValues,
}

/// The notifier calls of aging, which is to say the pages asked about.
fn asked(counters: &CounterValues) -> u64 {
    counters.get(Counter::NotifierClearYoungFast) + counters.get(Counter::NotifierClearYoungSlow)
}

/// Age in a loop until the vCPUs are done; stop them when it takes too long.
fn age_until(
    guest: &Guest,
    ager: Ager,
    limit: Duration,
    stop: &AtomicBool,
    done: impl Fn() -> bool,
) -> Result<Aging> {
    let mut aging = Aging::default();
    if matches!(ager, Ager::Nobody) {
        return Ok(aging);
    }
    let cpu = Cpu::new(&guest.host);
    let start = Instant::now();
    let before = thread::cpu_time().map_or(0, |(mine, _)| mine);
    // At least one pass, so that every repetition has the same figures.
    loop {
        if start.elapsed() > limit {
            // Relaxed: they look again soon.
            stop.store(true, Ordering::Relaxed);
        }
        let (ns, stats) = timed(|| guest.age(&cpu));
        let asked = asked(&stats?.counters);
        if asked == 0 {
            aging.empty += 1;
        } else {
            aging.passes += 1;
            aging.ns += ns;
            aging.asked += asked;
        }
        if done() {
            break;
        }
    }
    aging.cpu_ns = thread::cpu_time().map_or(0, |(mine, _)| mine) - before;
    aging.counters = cpu.counters.snapshot();
    Ok(aging)
}

impl Aging {
    /// The figures of the aging side.
    fn add_to(&self, mut sample: Sample) -> Sample {
        let all = self.passes + self.empty;
        if all > 0 {
            let passes = self.passes.max(1) as f64;
            let asked = self.asked.max(1) as f64;
            sample = sample
                .with(PASS, self.ns as f64 * 1e-9 / passes)
                .with(PASS_CPU, self.cpu_ns as f64 * 1e-9 / all as f64)
                .with(PASSES, self.passes as f64)
                .with(EMPTY, self.empty as f64)
                .with(PAGE, self.ns as f64 / asked)
                .with(PAGE_CPU, self.cpu_ns as f64 / asked);
        }
        sample.counters.merge(&self.counters);
        let pages = sample.counters.get(Counter::GuestAccesses).max(1) as f64;
        let waits = sample.counters.get(Counter::MmuLockContended) as f64;
        let waited = sample.counters.get(Counter::MmuLockWaitNs) as f64;
        let lru_waited = sample.counters.get(Counter::LruLockWaitNs) as f64;
        sample
            .with(LOCK_WAITS, waits / pages)
            .with(LOCK_WAIT, waited / pages)
            .with(LRU_LOCK_WAIT, lru_waited / pages)
            .with(POPULATED, pages)
    }
}

/// The ager on a processor of its own, the vCPUs on the others, which they
/// share where there are too few. An ager that loses its processor to vCPUs, or
/// they theirs to it, would be measured with whatever the scheduler made of it.
fn place(affinity: &Affinity, vcpu: Option<u64>) {
    affinity.pin_apart(vcpu.map(|n| n as usize));
}

/// One repetition.
fn measure(setup: Setup, ager: Ager, affinity: &Affinity) -> Result<Sample> {
    place(affinity, None);
    let guest = make(setup, ager)?;
    let other = match ager {
        // As large as the first one is on average.
        Ager::Elsewhere => Some(make(
            Setup {
                before: setup.before + setup.vcpus * setup.pages_per_vcpu / 2,
                pages_per_vcpu: 0,
                ..setup
            },
            ager,
        )?),
        Ager::Nobody | Ager::By(_) => None,
    };
    let aged = other.as_ref().unwrap_or(&guest);
    let stop = AtomicBool::new(false);
    let ready = AtomicUsize::new(0);
    let all = setup.vcpus as usize;
    let (ran, aging, cpu_ns) = thread::scope(|scope| {
        let vcpus: Vec<_> = (0..setup.vcpus)
            .map(|n| {
                let (guest, stop, ready) = (&guest, &stop, &ready);
                scope.spawn(move || {
                    place(affinity, Some(n));
                    populate(guest, setup, n, ready, stop)
                })
            })
            .collect();
        // Threads take time to start. Passes over a guest that does not run
        // yet would count as passes over one that does.
        while ready.load(Ordering::Acquire) < all {
            thread::yield_now();
        }
        let before = thread::cpu_time().map_or(0, |(_, all)| all);
        let aging = age_until(aged, ager, setup.limit, &stop, || {
            vcpus.iter().all(thread::ScopedJoinHandle::is_finished)
        });
        let ran: Result<Vec<_>> = vcpus
            .into_iter()
            .map(|vcpu| match vcpu.join() {
                Ok(ran) => ran,
                Err(panic) => std::panic::resume_unwind(panic),
            })
            .collect();
        let after = thread::cpu_time().map_or(0, |(_, all)| all);
        (ran, aging, after - before)
    });
    let (ran, aging) = (ran?, aging?);
    let mut counters = CounterValues::default();
    let mut latencies = Vec::new();
    let mut slowest = 0f64;
    for mut vcpu in ran {
        slowest = slowest.max(vcpu.wall_ns as f64 / vcpu.latencies.len().max(1) as f64);
        latencies.append(&mut vcpu.latencies);
        counters.merge(&vcpu.counters);
    }
    check(
        &guest,
        setup,
        ager,
        &counters,
        &aging,
        stop.load(Ordering::Relaxed),
    )?;
    latencies.sort_unstable();
    let at = |share: f64| {
        let last = latencies.len().saturating_sub(1);
        latencies
            .get((last as f64 * share) as usize)
            .map_or(0.0, |&ns| f64::from(ns))
    };
    let pages = latencies.len().max(1) as f64;
    let vcpu_cpu = cpu_ns.saturating_sub(aging.cpu_ns) as f64 / pages;
    let sample = Sample {
        values: vec![
            (VCPU_WALL, slowest),
            (VCPU_CPU, vcpu_cpu),
            (P10, at(0.1)),
            (P50, at(0.5)),
            (P90, at(0.9)),
            (P99, at(0.99)),
            (P999, at(0.999)),
            (MAXIMUM, at(1.0)),
        ],
        counters,
    };
    Ok(aging.add_to(sample))
}

/// Pages that the walks of primary page tables came to, which know nothing of
/// notifiers and locks.
fn pages_looked_at(aging: &CounterValues) -> u64 {
    aging.get(Counter::MmLeafOld) + aging.get(Counter::MmLeafYoung)
}

/// Every page was faulted in once, unless time ran out, no walker met a freed
/// table, and `mmu_lock` was taken as the protocol says: by `baseline` once a
/// notifier call, by the lockless ones not at all.
fn check(
    guest: &Guest,
    setup: Setup,
    ager: Ager,
    vcpus: &CounterValues,
    aging: &Aging,
    stopped: bool,
) -> Result<()> {
    let accesses = vcpus.get(Counter::GuestAccesses);
    let usage = guest.memcg().usage();
    let poison = vcpus.get(Counter::PoisonReads) + aging.counters.get(Counter::PoisonReads);
    // A guest on the shadow MMU keeps page tables of its own in memory.
    let own = usage.checked_sub(setup.before + accesses);
    if (setup.before + accesses != guest.pages && !stopped)
        || own.is_none_or(|own| own > guest.pages / 64)
        || poison != 0
    {
        return Err(wrong(format!(
            "{} pages were populated by {} accesses; {usage} are charged, and freed \
             tables were met {poison} times",
            guest.pages,
            setup.before + accesses
        )));
    }
    // What the kernel before the series did, and what the series is about, by
    // name: not what the protocol says of itself.
    let locked = match ager.name() {
        "baseline" => pages_looked_at(&aging.counters),
        _ => 0,
    };
    let locks =
        aging.counters.get(Counter::MmuLockWrite) + aging.counters.get(Counter::MmuLockRead);
    if locks != locked || aging.asked != pages_looked_at(&aging.counters) {
        return Err(wrong(format!(
            "aging by {} took mmu_lock {locks} times, expected {locked}: it looked at {} pages \
             and called notifiers for {}",
            ager.name(),
            pages_looked_at(&aging.counters),
            aging.asked
        )));
    }
    Ok(())
}

/// What one vCPU did.
struct Ran {
    /// Nanoseconds of each fault.
    latencies: Vec<u32>,
    wall_ns: u64,
    counters: CounterValues,
}

/// Populate a vCPU's pages one by one, when all are ready to.
fn populate(
    guest: &Guest,
    setup: Setup,
    vcpu: u64,
    ready: &AtomicUsize,
    stop: &AtomicBool,
) -> Result<Ran> {
    let cpu = Cpu::new(&guest.host);
    cpu.set_lru_batching(true);
    let pages = setup.pages_per_vcpu;
    let first = setup.before + vcpu * pages;
    let mut buffer: Buffer = [0; 4096];
    // Written, so that the host's own faults are over.
    let mut latencies = vec![1u32; pages as usize];
    // Release: pairs with the acquire of whoever counts.
    ready.fetch_add(1, Ordering::Release);
    while ready.load(Ordering::Acquire) < setup.vcpus as usize {
        thread::yield_now();
    }
    let mut held = guest.vm.hold_vcpu(vcpu as u32)?;
    let start = Instant::now();
    let mut populated = 0;
    for latency in &mut latencies {
        let page = first + populated as u64;
        let (ns, done) = timed(|| held.access(&cpu, page, true, None));
        done?;
        *latency = u32::try_from(ns).unwrap_or(u32::MAX);
        clear(&mut buffer, setup.clears);
        populated += 1;
        if stop.load(Ordering::Relaxed) {
            break;
        }
    }
    let wall_ns = u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
    latencies.truncate(populated);
    Ok(Ran {
        latencies,
        wall_ns,
        counters: cpu.counters.snapshot(),
    })
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    /// A guest that one pass of an ager aged, and what that counted.
    fn aged_by(protocol: Protocol, mmu: MmuKind) -> (Setup, Guest, Aging) {
        let setup = Setup {
            mmu,
            vcpus: 1,
            before: 600,
            pages_per_vcpu: 0,
            clears: 0,
            limit: Duration::from_secs(60),
        };
        let ager = Ager::By(protocol);
        let guest = make(setup, ager).expect("a guest");
        let stop = AtomicBool::new(false);
        let aging = age_until(&guest, ager, setup.limit, &stop, || true).expect("ages");
        (setup, guest, aging)
    }

    #[test]
    fn a_protocol_that_locks_otherwise_than_its_name_says_is_refused() {
        let all = [Protocol::BASELINE, Protocol::V7, Protocol::V9];
        for mmu in [MmuKind::Tdp, MmuKind::Shadow] {
            for did in all {
                let (setup, guest, mut aging) = aged_by(did, mmu);
                assert!(aging.asked >= setup.before);
                let none = CounterValues::default();
                let locks = |protocol: Protocol| protocol.name == "baseline";
                for said in all {
                    let found = check(&guest, setup, Ager::By(said), &none, &aging, false);
                    assert_eq!(
                        found.is_ok(),
                        locks(did) == locks(said),
                        "{mmu:?}: {} said to be {}",
                        did.name,
                        said.name
                    );
                }
                // A page that nobody was asked about.
                aging.asked -= 1;
                assert!(check(&guest, setup, Ager::By(did), &none, &aging, false).is_err());
            }
        }
    }
}
