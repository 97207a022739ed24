//! Range walks, rmap chains and memslot walks.

use super::contest::{Case, Contestant, Metric, Sample, Stage, worked};
use super::guest::sequential;
use super::spte::{Flat, fill};
use super::{Guest, GuestConfig, wrong};
use crate::cpu::Cpu;
use crate::error::Result;
use crate::kvm::RunOptions;
use crate::kvm::mmu::rmap::{DescArena, DescCache, PTE_LIST_EXT, RmapHead, SptePtr};
use crate::kvm::mmu::spte::{ACC_ALL, LEVEL_4K, Leaf, SpteFormat};
use crate::kvm::protocol::Protocol;
use crate::mm::{PAGE_SIZE, Pfn};
use crate::sync::atomic::{AtomicU64, Ordering, zeroed};
use crate::sync::thread::{self, Affinity};
use crate::table::{Arena, TABLE_ENTRIES, TableId};
use crate::trace::{Counter, CounterValues, Counters};
use std::hint::black_box;

pub(super) fn run(stage: &mut Stage<'_>) -> Result<()> {
    tdp(stage)?;
    huge(stage)?;
    beside_faults(stage)?;
    chains(stage)?;
    memslots(stage)
}

/// Age the whole guest by one call, and see that it found what it should.
fn age_range(guest: &Guest, young: bool, items: u64) -> Result<Sample> {
    let cpu = Cpu::new(&guest.host);
    let (start, end) = (guest.hva, guest.end());
    let (ns, found) = worked(|| {
        let found = guest.mm.notifiers.clear_young(&cpu, start, end, false);
        black_box(found)
    });
    let counters = cpu.counters.snapshot();
    let aged = counters.get(Counter::SptesAged);
    if found != young || aged != if young { items } else { 0 } {
        return Err(wrong(format!(
            "a range walk over {items} leaves, {} young, said {found} and aged {aged}",
            if young { "all" } else { "none" }
        )));
    }
    Ok(Sample::per_item(ns, items, counters))
}

fn label(protocol: &Protocol) -> String {
    format!("{}, range", protocol.name)
}

/// Range walks over 4 KiB leaves, against a flat array of as many words.
fn tdp(stage: &mut Stage<'_>) -> Result<()> {
    let options = stage.options.clone();
    let sizes: &[u64] = options.pick(
        &[1 << 10][..],
        &[1 << 20],
        &[1 << 20, 16 << 20],
        &[1 << 20, 16 << 20],
    );
    for &pages in sizes {
        // Two guests of the largest size are too much for a small machine.
        let protocols: &[Protocol] = if pages > 1 << 20 {
            &[Protocol::V7]
        } else {
            &[Protocol::V7, Protocol::BASELINE]
        };
        let guests = protocols
            .iter()
            .map(|&protocol| {
                let guest = Guest::new(&GuestConfig {
                    pages,
                    protocol,
                    ..GuestConfig::default()
                })?;
                guest.populate(stage, &format!("walk: populating {pages} pages"))?;
                Ok((protocol, guest))
            })
            .collect::<Result<Vec<_>>>()?;
        let flat = Flat::new(pages as usize, SpteFormat::EPT);
        for young in [true, false] {
            let limit = if young { "flat fetch_and" } else { "flat scan" };
            let share = if young { 100 } else { 0 };
            let bound = if pages > 1 << 20 { 1.25 } else { 1.5 };
            fill(&flat, share, 0);
            let mut contestants = vec![Contestant::new(limit, || {
                if young {
                    fill(&flat, share, 0);
                }
                let work = if young { Flat::fetch_and } else { Flat::scan };
                let (ns, found) = worked(|| black_box(work(black_box(&flat))));
                if !young && found != 0 {
                    return Err(wrong(format!("{limit} found {found} young of {pages}")));
                }
                Ok(Sample::per_item(ns, pages, CounterValues::default()))
            })];
            let ahead = "flat scan, ahead";
            if !young {
                contestants.push(Contestant::new(ahead, || {
                    let (ns, found) = worked(|| black_box(black_box(&flat).scan_ahead()));
                    if found != 0 {
                        return Err(wrong(format!("{ahead} found {found} young of {pages}")));
                    }
                    Ok(Sample::per_item(ns, pages, CounterValues::default()))
                }));
            }
            for (protocol, guest) in &guests {
                let contestant = Contestant::new(label(protocol), move || {
                    if young {
                        guest.sweep(&Cpu::new(&guest.host), 0, pages)?;
                    }
                    age_range(guest, young, pages)
                });
                contestants.push(if protocol.name == "v7" {
                    contestant.against(limit).at_most(bound).against(ahead)
                } else {
                    contestant.against("v7, range")
                });
            }
            let case = Case {
                name: format!("tdp 4k, {pages} leaves, {share}% young"),
                parameters: vec![
                    ("mmu", "tdp".into()),
                    ("leaves", pages.to_string()),
                    ("leaf_bytes", PAGE_SIZE.to_string()),
                    ("young_percent", share.to_string()),
                ],
                threads: 1,
                repetitions: options.repetitions(9),
                warm_up: 1,
            };
            stage.contest(&case, contestants)?;
        }
    }
    Ok(())
}

/// Range walks over 2 MiB leaves.
fn huge(stage: &mut Stage<'_>) -> Result<()> {
    let options = stage.options.clone();
    let pages: u64 = options.pick(4, 1024, 8192, 32_768) * TABLE_ENTRIES as u64;
    let leaves = pages / TABLE_ENTRIES as u64;
    let guests = [Protocol::V7, Protocol::BASELINE]
        .into_iter()
        .map(|protocol| {
            let guest = Guest::new(&GuestConfig {
                pages,
                protocol,
                huge: true,
                ..GuestConfig::default()
            })?;
            touch_huge(&guest)?;
            Ok((protocol, guest))
        })
        .collect::<Result<Vec<_>>>()?;
    for young in [true, false] {
        let contestants = guests
            .iter()
            .map(|(protocol, guest)| {
                let contestant = Contestant::new(label(protocol), move || {
                    if young {
                        touch_huge(guest)?;
                    }
                    age_range(guest, young, leaves)
                });
                if protocol.name == "v7" {
                    contestant
                } else {
                    contestant.against("v7, range")
                }
            })
            .collect();
        let share = if young { 100 } else { 0 };
        let case = Case {
            name: format!("tdp 2m, {leaves} leaves, {share}% young"),
            parameters: vec![
                ("mmu", "tdp".into()),
                ("leaves", leaves.to_string()),
                ("leaf_bytes", (PAGE_SIZE * TABLE_ENTRIES as u64).to_string()),
                ("young_percent", share.to_string()),
            ],
            threads: 1,
            repetitions: options.repetitions(9),
            warm_up: 1,
        };
        stage.contest(&case, contestants)?;
    }
    Ok(())
}

/// One access to each huge page.
fn touch_huge(guest: &Guest) -> Result<()> {
    let cpu = Cpu::new(&guest.host);
    for page in (0..guest.pages).step_by(TABLE_ENTRIES) {
        guest.vm.access(&cpu, 0, page, true, None)?;
    }
    Ok(())
}

/// Range walks over one half of a guest while a vCPU faults in the other.
fn beside_faults(stage: &mut Stage<'_>) -> Result<()> {
    let options = stage.options.clone();
    let affinity = &stage.affinity.clone();
    let half: u64 = options.pick(1 << 10, 1 << 17, 1 << 19, 1 << 19);
    let contestants = [Protocol::V7, Protocol::BASELINE]
        .into_iter()
        .map(|protocol| {
            let contestant = Contestant::new(label(&protocol), move || {
                let guest = Guest::new(&GuestConfig {
                    pages: 2 * half,
                    protocol,
                    ..GuestConfig::default()
                })?;
                guest.sweep(&Cpu::new(&guest.host), 0, half)?;
                range_beside_faults(&guest, half, affinity)
            });
            if protocol.name == "v7" {
                contestant
            } else {
                contestant.against("v7, range")
            }
        })
        .collect();
    let case = Case {
        name: format!("tdp 4k, {half} leaves, beside a faulting vCPU"),
        parameters: vec![
            ("mmu", "tdp".into()),
            ("leaves", half.to_string()),
            ("leaf_bytes", PAGE_SIZE.to_string()),
        ],
        threads: 2,
        repetitions: options.repetitions(5),
        warm_up: 0,
    };
    stage.contest(&case, contestants)
}

/// What the vCPU needed for each fault.
const FAULT: Metric = Metric::time("ns_per_fault", "ns");

fn range_beside_faults(guest: &Guest, half: u64, affinity: &Affinity) -> Result<Sample> {
    let mut stream = [sequential(half, 2 * half)?];
    let cpu = Cpu::new(&guest.host);
    let (start, end) = (guest.hva, guest.hva + half * PAGE_SIZE);
    thread::scope(|scope| {
        let vcpu = scope.spawn(|| {
            affinity.pin(1);
            let cpu = Cpu::new(&guest.host);
            let (ns, ran) = worked(|| {
                guest
                    .vm
                    .run_inline(&cpu, &mut stream, &RunOptions::default())
            });
            ran.map(|_| ns)
        });
        let mut ns = 0;
        let mut walks = 0;
        while walks == 0 || !vcpu.is_finished() {
            ns += worked(|| {
                black_box(guest.mm.notifiers.clear_young(&cpu, start, end, false));
            })
            .0;
            walks += 1;
        }
        let fault_ns = match vcpu.join() {
            Ok(ran) => ran?,
            Err(panic) => std::panic::resume_unwind(panic),
        };
        let counters = cpu.counters.snapshot();
        if counters.get(Counter::PoisonReads) != 0 {
            return Err(wrong("a range walk met a freed table"));
        }
        Ok(Sample::per_item(ns, walks * half, counters).with(FAULT, fault_ns as f64 / half as f64))
    })
}

/// Rmap chains of one length, and the SPTEs behind them.
pub struct Chains {
    tables: Arena<()>,
    descs: DescArena,
    heads: Box<[AtomicU64]>,
    counters: Counters,
    nr_sptes: usize,
    format: SpteFormat,
}

impl Chains {
    /// As many chains of `length` SPTEs as make up at least `sptes`.
    ///
    /// # Errors
    /// `ENOMEM` when they don't fit.
    pub fn new(length: usize, sptes: usize) -> Result<Self> {
        let nr_heads = sptes.div_ceil(length);
        let chains = Chains {
            tables: Arena::new(),
            descs: DescArena::new(),
            heads: zeroed(nr_heads),
            counters: Counters::default(),
            nr_sptes: nr_heads * length,
            format: SpteFormat::NPT,
        };
        let nr_tables = chains.nr_sptes.div_ceil(TABLE_ENTRIES);
        let tables: Vec<TableId> = (0..nr_tables)
            .map(|_| chains.tables.alloc())
            .collect::<Option<_>>()
            .ok_or_else(|| wrong("the tables do not fit"))?;
        let mut cache = DescCache::default();
        for n in 0..chains.nr_sptes {
            chains.descs.topup(&mut cache)?;
            // As aliases come about: one pass over all pages for each.
            let head = n % nr_heads;
            let spte = SptePtr::new(tables[n / TABLE_ENTRIES], n % TABLE_ENTRIES);
            let head = RmapHead(&chains.heads[head]);
            chains.descs.add(&chains.counters, head, spte, &mut cache);
        }
        chains.descs.drain(&mut cache);
        chains.fill(true);
        Ok(chains)
    }

    /// How many SPTEs there are.
    pub fn len(&self) -> usize {
        self.nr_sptes
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.nr_sptes == 0
    }

    /// Make every SPTE young, or old.
    pub fn fill(&self, young: bool) {
        for n in 0..self.nr_sptes {
            let table = TableId((n / TABLE_ENTRIES) as u32);
            let leaf = self.format.make_leaf(Leaf {
                pfn: Pfn((n % self.heads.len()) as u32),
                level: LEVEL_4K,
                access: ACC_ALL,
                host_writable: true,
                prefetch: !young,
                ad_type: self.format.default_ad_type(),
            });
            self.tables.entries(table)[n % TABLE_ENTRIES].store(leaf, Ordering::Relaxed);
        }
    }

    /// Age every chain, holding it by its bit or, as under `mmu_lock`, not.
    /// Returns how many SPTEs were young.
    #[inline(never)]
    pub fn age(&self, lockless: bool) -> u64 {
        let mut young = 0;
        for head in &self.heads {
            let head = RmapHead(head);
            let value = if lockless {
                head.lock(&self.counters)
            } else {
                head.value()
            };
            if value == 0 {
                continue;
            }
            for spte in self.descs.iter(&self.counters, value) {
                let word = &self.tables.entries(spte.table())[spte.index()];
                young += u64::from(self.format.age(word, LEVEL_4K).young);
            }
            if lockless {
                head.unlock_readonly(value);
            }
        }
        young
    }
}

/// Nanoseconds for each chain.
const NS_PER_CHAIN: Metric = Metric::time("ns_per_chain", "ns");

const LENGTHS: [usize; 6] = [1, 2, 14, 15, 64, 512];
/// What a chain of each of them takes.
const NS_PER_CHAIN_OF: [Metric; 6] = [
    Metric::time("ns_per_chain_of_1", "ns"),
    Metric::time("ns_per_chain_of_2", "ns"),
    Metric::time("ns_per_chain_of_14", "ns"),
    Metric::time("ns_per_chain_of_15", "ns"),
    Metric::time("ns_per_chain_of_64", "ns"),
    Metric::time("ns_per_chain_of_512", "ns"),
];

/// What a chain costs, fitted: so much, so much for each descriptor, and so
/// much for each SPTE.
const FIXED: Metric = Metric::time("fitted_ns_per_chain", "ns");
const PER_DESC: Metric = Metric::time("fitted_ns_per_descriptor", "ns");
const PER_SPTE: Metric = Metric::time("fitted_ns_per_spte", "ns");
/// How far the worst length is from the fit, of what it was fitted to.
const DEVIATION: Metric = Metric::time("greatest_deviation_from_fit", "1");

/// Descriptors of a chain: none holds a single SPTE.
fn descriptors(length: usize) -> usize {
    if length == 1 {
        0
    } else {
        length.div_ceil(PTE_LIST_EXT)
    }
}

/// `fixed + descriptor * descriptors + each * length` through times of chains:
/// the least squares of the relative deviations, so that a chain of one counts
/// as much as one of 512.
struct Fit {
    fixed: f64,
    descriptor: f64,
    each: f64,
    /// The greatest relative deviation.
    worst: f64,
}

fn fit(times: &[(usize, f64)]) -> Fit {
    // Normal equations, a row a term and the right side last.
    let mut rows = [[0.0; 4]; 3];
    let terms = |length: usize| [1.0, descriptors(length) as f64, length as f64];
    for &(length, ns) in times {
        let of = terms(length).map(|term| term / ns);
        for (row, a) in rows.iter_mut().zip(of) {
            for (sum, b) in row.iter_mut().zip(of) {
                *sum += a * b;
            }
            row[3] += a;
        }
    }
    // Gauss and Jordan; the sums of squares on the diagonal are never 0.
    for pivot in 0..3 {
        let scaled = rows[pivot].map(|x| x / rows[pivot][pivot]);
        for (n, row) in rows.iter_mut().enumerate() {
            let factor = row[pivot];
            *row = if n == pivot {
                scaled
            } else {
                std::array::from_fn(|i| row[i] - factor * scaled[i])
            };
        }
    }
    let solved = rows.map(|row| row[3]);
    let off = |&(length, ns): &(usize, f64)| {
        let fitted: f64 = terms(length).iter().zip(solved).map(|(a, b)| a * b).sum();
        (ns / fitted - 1.0).abs()
    };
    Fit {
        fixed: solved[0],
        descriptor: solved[1],
        each: solved[2],
        worst: times.iter().map(off).fold(0.0, f64::max),
    }
}

/// Chains of every length in turn, few enough to stay in the processor's first
/// cache with their SPTEs, so that what is seen is what walking them takes: in
/// the second, the power of two by which the SPTEs of a chain of 64 lie apart
/// shows more than the walk does.
fn chain_cost(stage: &mut Stage<'_>) -> Result<()> {
    let options = stage.options.clone();
    let sptes = options.pick(1 << 10, 1 << 11, 1 << 11, 1 << 11);
    let mut all = Vec::new();
    for length in LENGTHS {
        all.push((length, Chains::new(length, sptes)?));
    }
    for young in [true, false] {
        let contestant = {
            Contestant::new("every length in turn", || {
                let mut times = Vec::new();
                let mut total = 0;
                let mut items = 0;
                for (length, chains) in &all {
                    // The quickest of a few: an interrupt is no part of it.
                    let mut best = u64::MAX;
                    for _ in 0..9 {
                        chains.fill(young);
                        let (ns, found) = worked(|| black_box(black_box(chains).age(true)));
                        if found != chains.len() as u64 * u64::from(young) {
                            return Err(wrong(format!("chains of {length}: {found} young")));
                        }
                        best = best.min(ns);
                    }
                    total += best;
                    items += chains.len() as u64;
                    times.push((*length, best as f64 / chains.heads.len() as f64));
                }
                let fit = fit(&times);
                let sample = Sample::per_item(total, items, CounterValues::default())
                    .with(FIXED, fit.fixed)
                    .with(PER_DESC, fit.descriptor)
                    .with(PER_SPTE, fit.each)
                    .with(DEVIATION, fit.worst);
                Ok(times
                    .iter()
                    .zip(NS_PER_CHAIN_OF)
                    .fold(sample, |sample, (&(_, ns), metric)| sample.with(metric, ns)))
            })
        };
        let share = if young { 100 } else { 0 };
        let case = Case {
            name: format!("rmap chains in cache, {share}% young"),
            parameters: vec![
                ("chain_lengths", format!("{LENGTHS:?}")),
                ("sptes", sptes.to_string()),
                ("young_percent", share.to_string()),
            ],
            threads: 1,
            repetitions: options.repetitions(9),
            warm_up: 1,
        };
        stage.contest(&case, vec![contestant])?;
    }
    Ok(())
}

fn chains(stage: &mut Stage<'_>) -> Result<()> {
    chain_cost(stage)?;
    let options = stage.options.clone();
    let sptes = options.pick(1 << 10, 1 << 18, 1 << 20, 1 << 20);
    for length in LENGTHS {
        let chains = Chains::new(length, sptes)?;
        let items = chains.len() as u64;
        let flat = Flat::new(chains.len(), SpteFormat::NPT);
        for young in [true, false] {
            let limit = if young { "flat fetch_and" } else { "flat scan" };
            let share = if young { 100 } else { 0 };
            fill(&flat, share, 0);
            let (flat, chains) = (&flat, &chains);
            let mut contestants = vec![Contestant::new(limit, move || {
                if young {
                    fill(flat, share, 0);
                }
                let work = if young { Flat::fetch_and } else { Flat::scan };
                let (ns, found) = worked(|| black_box(work(black_box(flat))));
                if !young && found != 0 {
                    return Err(wrong(format!("{limit} found {found} young of {items}")));
                }
                Ok(Sample::per_item(ns, items, CounterValues::default()))
            })];
            for (name, lockless) in [
                ("chain, by its bit", true),
                ("chain, under mmu_lock", false),
            ] {
                let contestant = Contestant::new(name, move || {
                    chains.fill(young);
                    let before = chains.counters.snapshot();
                    let (ns, found) = worked(|| black_box(black_box(chains).age(lockless)));
                    if found != items * u64::from(young) {
                        return Err(wrong(format!("{name}: {found} young of {items}")));
                    }
                    let counters = chains.counters.snapshot().since(&before);
                    let per_chain = ns as f64 / chains.heads.len() as f64;
                    Ok(Sample::per_item(ns, items, counters).with(NS_PER_CHAIN, per_chain))
                });
                contestants.push(contestant.against(if lockless {
                    limit
                } else {
                    "chain, by its bit"
                }));
            }
            let case = Case {
                name: format!("rmap chains of {length}, {share}% young"),
                parameters: vec![
                    ("chain_length", length.to_string()),
                    ("sptes", items.to_string()),
                    ("young_percent", share.to_string()),
                ],
                threads: 1,
                repetitions: options.repetitions(9),
                warm_up: 1,
            };
            stage.contest(&case, contestants)?;
        }
    }
    Ok(())
}

/// One-page notifier calls on a guest cut into many memslots.
fn memslots(stage: &mut Stage<'_>) -> Result<()> {
    let options = stage.options.clone();
    let pages: u64 = options.pick(1 << 9, 1 << 14, 1 << 16, 1 << 16);
    for slots in [1, 8, 64, 512] {
        let guests = [Protocol::V7, Protocol::BASELINE]
            .into_iter()
            .map(|protocol| {
                let guest = Guest::new(&GuestConfig {
                    pages,
                    protocol,
                    slots,
                    ..GuestConfig::default()
                })?;
                guest.sweep(&Cpu::new(&guest.host), 0, pages)?;
                let cpu = Cpu::new(&guest.host);
                guest
                    .mm
                    .notifiers
                    .clear_young(&cpu, guest.hva, guest.end(), false);
                Ok((protocol, guest))
            })
            .collect::<Result<Vec<_>>>()?;
        let contestants = guests
            .iter()
            .map(|(protocol, guest)| {
                let contestant = Contestant::new(format!("{}, page", protocol.name), move || {
                    let cpu = Cpu::new(&guest.host);
                    // As a walk of the primary page tables calls it.
                    let _section = cpu.srcu.lock();
                    let (ns, found) = worked(|| {
                        let mut found = 0;
                        for page in 0..pages {
                            let at = guest.hva + page * PAGE_SIZE;
                            let young =
                                guest
                                    .mm
                                    .notifiers
                                    .clear_young(&cpu, at, at + PAGE_SIZE, false);
                            found += u64::from(black_box(young));
                        }
                        found
                    });
                    let counters = cpu.counters.snapshot();
                    let visited = counters.get(Counter::MemslotsVisited);
                    if found != 0 || visited != pages {
                        return Err(wrong(format!(
                            "{pages} calls found {found} young pages and {visited} memslots"
                        )));
                    }
                    Ok(Sample::per_item(ns, pages, counters))
                });
                if protocol.name == "v7" {
                    contestant
                } else {
                    contestant.against("v7, page")
                }
            })
            .collect();
        let case = Case {
            name: format!("{slots} memslots, one-page calls"),
            parameters: vec![
                ("memslots", slots.to_string()),
                ("pages", pages.to_string()),
            ],
            threads: 1,
            repetitions: options.repetitions(9),
            warm_up: 1,
        };
        stage.contest(&case, contestants)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::fit;

    #[test]
    fn the_fit_finds_the_terms_and_says_how_far_off_it_is() {
        let cost = |length: usize| {
            let cost = 7.0 + 2.0 * super::descriptors(length) as f64 + 3.0 * length as f64;
            (length, cost)
        };
        let found = fit(&super::LENGTHS.map(cost));
        for (found, expected) in [
            (found.fixed, 7.0),
            (found.descriptor, 2.0),
            (found.each, 3.0),
            (found.worst, 0.0),
        ] {
            assert!((found - expected).abs() < 1e-6, "{found} for {expected}");
        }
        let mut times = super::LENGTHS.map(cost);
        times[4].1 *= 2.0;
        assert!(fit(&times).worst > 0.1);
    }
}
