//! `access-tracking -p`: vCPUs populate memory while one aging pass follows
//! another, protocols side by side.

use super::contest::{Case, Contestant, Metric, Sample, Stage, timed};
use super::guest::sequential;
use super::{Guest, GuestConfig, wrong};
use crate::cpu::Cpu;
use crate::error::Result;
use crate::kvm::protocol::Protocol;
use crate::kvm::{MmuKind, RunOptions};
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::thread::{self, Affinity};
use crate::trace::{Counter, CounterValues};
use std::time::{Duration, Instant};

/// Real time of the slowest vCPU for each page that it populated.
const VCPU_WALL: Metric = Metric::time("vcpu_wall_ns_per_page", "ns");
/// Pages populated: fewer than asked for where time ran out.
const POPULATED: Metric = Metric::rate("pages_populated", "1");
/// Average time of an aging pass.
const PASS: Metric = Metric::time("aging_pass_seconds", "s");
/// Passes that were made.
const PASSES: Metric = Metric::count("aging_passes", "1");
/// Processor time of all vCPUs for each page that they populated.
const VCPU_CPU: Metric = Metric::time("vcpu_cpu_ns_per_page", "ns");
/// Processor time of an aging pass, on average.
const PASS_CPU: Metric = Metric::time("aging_pass_cpu_seconds", "s");
/// Time for each page that a pass asked about.
const PAGE: Metric = Metric::time("aging_ns_per_page", "ns");
/// How often `mmu_lock` was waited for, for each page populated.
const LOCK_WAITS: Metric = Metric::time("mmu_lock_waits_per_page", "1");
/// Time spent waiting for it, by all threads, for each page populated.
const LOCK_WAIT: Metric = Metric::time("mmu_lock_wait_ns_per_page", "ns");
/// Fault latencies.
const P50: Metric = Metric::time("fault_p50_ns", "ns");
const P99: Metric = Metric::time("fault_p99_ns", "ns");
const MAXIMUM: Metric = Metric::time("fault_maximum_ns", "ns");

/// What ages meanwhile.
#[derive(Clone, Copy)]
enum Ager {
    Nobody,
    By(Protocol),
}

impl Ager {
    const ALL: [Ager; 4] = [
        Ager::Nobody,
        Ager::By(Protocol::V7),
        Ager::By(Protocol::BASELINE),
        Ager::By(Protocol::V9),
    ];

    fn name(self) -> &'static str {
        match self {
            Ager::Nobody => "no aging",
            Ager::By(protocol) => protocol.name,
        }
    }

    fn protocol(self) -> Protocol {
        match self {
            Ager::Nobody => Protocol::V7,
            Ager::By(protocol) => protocol,
        }
    }
}

/// How a repetition is set up.
#[derive(Clone, Copy)]
struct Setup {
    mmu: MmuKind,
    vcpus: u64,
    pages_per_vcpu: u64,
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
        &[1, 2, 4, 16],
        &[1, 2, 4, 8, 16, 32],
        &[1, 2, 4, 8, 16, 32],
    );
    let total: u64 = options.pick(1 << 10, 1 << 16, 1 << 18, 1 << 18);
    let limit = Duration::from_millis(options.pick(10_000, 1000, 10_000, 10_000));
    for &(mmu, kind) in super::guest::MMUS {
        for &vcpus in counts {
            // The same memory for all vCPUs together up to 4, more beyond: a
            // pass must be long enough to be met by every vCPU.
            let setup = Setup {
                mmu: kind,
                vcpus,
                pages_per_vcpu: total / vcpus.min(4),
                limit,
            };
            let threads = vcpus as usize + 1;
            let parameters = vec![
                ("mmu", mmu.to_string()),
                ("vcpus", vcpus.to_string()),
                ("pages_per_vcpu", setup.pages_per_vcpu.to_string()),
            ];
            let affinity = &affinity;
            let contestants = |measure: fn(Setup, Ager, &Affinity) -> Result<Sample>| {
                Ager::ALL
                    .into_iter()
                    .map(move |ager| {
                        let contestant =
                            Contestant::new(ager.name(), move || measure(setup, ager, affinity));
                        match ager {
                            Ager::Nobody => contestant,
                            Ager::By(Protocol::V7) if vcpus == 1 => {
                                contestant.against("no aging").at_most(1.05)
                            }
                            Ager::By(Protocol::V7) => contestant.against("no aging"),
                            Ager::By(_) => contestant.against("no aging").against("v7"),
                        }
                    })
                    .collect::<Vec<_>>()
            };
            let case = |what: &str| Case {
                name: format!("{mmu}, {vcpus} vCPUs, {what}"),
                parameters: parameters.clone(),
                threads,
                repetitions: options.repetitions(7),
                warm_up: 1,
            };
            stage.contest(&case("throughput"), contestants(throughput))?;
            stage.contest(&case("fault latency"), contestants(latency))?;
        }
    }
    Ok(())
}

fn make(setup: Setup, ager: Ager) -> Result<Guest> {
    Guest::new(&GuestConfig {
        pages: setup.vcpus * setup.pages_per_vcpu,
        protocol: ager.protocol(),
        mmu: setup.mmu,
        vcpus: setup.vcpus as u32,
        ..GuestConfig::default()
    })
}

/// What the aging thread did.
#[derive(Default)]
struct Aging {
    passes: u64,
    ns: u64,
    cpu_ns: u64,
    counters: CounterValues,
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
        stats?;
        aging.ns += ns;
        aging.passes += 1;
        if done() {
            break;
        }
    }
    aging.cpu_ns = thread::cpu_time().map_or(0, |(mine, _)| mine) - before;
    aging.counters = cpu.counters.snapshot();
    Ok(aging)
}

impl Aging {
    /// The figures of the aging side, if there was a pass.
    fn add_to(&self, mut sample: Sample) -> Sample {
        let asked = self.counters.get(Counter::NotifierClearYoungFast)
            + self.counters.get(Counter::NotifierClearYoungSlow);
        if self.passes > 0 {
            let passes = self.passes as f64;
            sample = sample
                .with(PASS, self.ns as f64 * 1e-9 / passes)
                .with(PASS_CPU, self.cpu_ns as f64 * 1e-9 / passes)
                .with(PASSES, passes)
                .with(PAGE, self.ns as f64 / asked.max(1) as f64);
        }
        sample.counters.merge(&self.counters);
        let pages = sample.counters.get(Counter::GuestAccesses).max(1) as f64;
        let waits = sample.counters.get(Counter::MmuLockContended) as f64;
        let waited = sample.counters.get(Counter::MmuLockWaitNs) as f64;
        sample
            .with(LOCK_WAITS, waits / pages)
            .with(LOCK_WAIT, waited / pages)
            .with(POPULATED, pages)
    }
}

/// Threads of their own processors where there are enough: the ager on the
/// first, the vCPU on the second. Else the scheduler places them.
fn place(setup: Setup, affinity: &Affinity, ager: bool) {
    if setup.vcpus == 1 {
        affinity.pin(usize::from(!ager));
    } else {
        affinity.apply();
    }
}

/// Wall and processor time.
fn throughput(setup: Setup, ager: Ager, affinity: &Affinity) -> Result<Sample> {
    let guest = make(setup, ager)?;
    let mut streams = (0..setup.vcpus)
        .map(|n| sequential(n * setup.pages_per_vcpu, (n + 1) * setup.pages_per_vcpu))
        .collect::<Result<Vec<_>>>()?;
    place(setup, affinity, true);
    let stop = AtomicBool::new(false);
    let options = RunOptions {
        stop: Some(&stop),
        quantum: 64,
        ..RunOptions::default()
    };
    let before = thread::cpu_time().map_or(0, |(_, all)| all);
    let (ran, aging) = thread::scope(|scope| {
        let runner = scope.spawn(|| {
            // Its threads inherit where it may run.
            place(setup, affinity, false);
            let cpu = Cpu::new(&guest.host);
            guest.vm.run_live(&cpu, &mut streams, &options)
        });
        let aging = age_until(&guest, ager, setup.limit, &stop, || runner.is_finished());
        match runner.join() {
            Ok(ran) => (ran, aging),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    });
    let cpu_ns = thread::cpu_time().map_or(0, |(_, all)| all) - before;
    let (ran, aging) = (ran?, aging?);
    let mut counters = CounterValues::default();
    for vcpu in &ran.vcpus {
        counters.merge(&vcpu.counters);
    }
    check(&guest, &counters, &aging, ran.stopped)?;
    let each = ran.vcpus.iter();
    let slowest = each
        .map(|vcpu| vcpu.wall_ns as f64 / vcpu.accesses.max(1) as f64)
        .fold(0.0, f64::max);
    let pages = counters.get(Counter::GuestAccesses).max(1) as f64;
    let sample = Sample {
        values: vec![
            (VCPU_WALL, slowest),
            (VCPU_CPU, cpu_ns.saturating_sub(aging.cpu_ns) as f64 / pages),
        ],
        counters,
    };
    Ok(aging.add_to(sample))
}

/// Every page was faulted in once, unless time ran out, and no walker met a
/// freed table.
fn check(guest: &Guest, vcpus: &CounterValues, aging: &Aging, stopped: bool) -> Result<()> {
    let accesses = vcpus.get(Counter::GuestAccesses);
    let usage = guest.memcg().usage();
    let poison = vcpus.get(Counter::PoisonReads) + aging.counters.get(Counter::PoisonReads);
    // A guest on the shadow MMU keeps page tables of its own in memory.
    let own = usage.checked_sub(accesses);
    if (accesses != guest.pages && !stopped)
        || own.is_none_or(|own| own > guest.pages / 64)
        || poison != 0
    {
        return Err(wrong(format!(
            "{} pages were populated by {accesses} accesses; {usage} are charged, and freed \
             tables were met {poison} times",
            guest.pages
        )));
    }
    Ok(())
}

/// Latency of each fault, as the guest sees it.
fn latency(setup: Setup, ager: Ager, affinity: &Affinity) -> Result<Sample> {
    let guest = make(setup, ager)?;
    place(setup, affinity, true);
    let stop = AtomicBool::new(false);
    let (ran, aging) = thread::scope(|scope| {
        let vcpus: Vec<_> = (0..setup.vcpus)
            .map(|n| {
                let (guest, stop) = (&guest, &stop);
                scope.spawn(move || {
                    place(setup, affinity, false);
                    latencies(guest, n, setup.pages_per_vcpu, stop)
                })
            })
            .collect();
        let aging = age_until(&guest, ager, setup.limit, &stop, || {
            vcpus.iter().all(thread::ScopedJoinHandle::is_finished)
        });
        let ran: Result<Vec<_>> = vcpus
            .into_iter()
            .map(|vcpu| match vcpu.join() {
                Ok(ran) => ran,
                Err(panic) => std::panic::resume_unwind(panic),
            })
            .collect();
        (ran, aging)
    });
    let (ran, aging) = (ran?, aging?);
    let mut counters = CounterValues::default();
    let mut all = Vec::with_capacity(guest.pages as usize);
    for (mut latencies, counted) in ran {
        all.append(&mut latencies);
        counters.merge(&counted);
    }
    check(&guest, &counters, &aging, stop.load(Ordering::Relaxed))?;
    all.sort_unstable();
    let at = |share: f64| f64::from(all[((all.len() - 1) as f64 * share) as usize]);
    let sample = Sample {
        values: vec![(P99, at(0.99)), (P50, at(0.5)), (MAXIMUM, at(1.0))],
        counters,
    };
    Ok(aging.add_to(sample))
}

/// Populate a vCPU's pages one by one; nanoseconds of each.
fn latencies(
    guest: &Guest,
    vcpu: u64,
    pages: u64,
    stop: &AtomicBool,
) -> Result<(Vec<u32>, CounterValues)> {
    let cpu = Cpu::new(&guest.host);
    let mut latencies = Vec::with_capacity(pages as usize);
    for page in vcpu * pages..(vcpu + 1) * pages {
        let (ns, done) = timed(|| guest.vm.access(&cpu, vcpu as u32, page, true, None));
        done?;
        latencies.push(u32::try_from(ns).unwrap_or(u32::MAX));
        if stop.load(Ordering::Relaxed) {
            break;
        }
    }
    Ok((latencies, cpu.counters.snapshot()))
}
