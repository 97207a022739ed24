//! Whole aging passes through the per-page path: page-table walk, notifier
//! call, memslot lookup, SPTE walk, generation update, a page at a time; and
//! what is left of that where secondary MMUs are asked once a PTE table.

use super::contest::{Case, Contestant, Metric, Sample, Stage, worked};
use super::{Guest, GuestConfig, wrong};
use crate::cpu::Cpu;
use crate::error::Result;
use crate::kvm::MmuKind;
use crate::kvm::protocol::Protocol;
use crate::sync::atomic::{AtomicU64, Ordering, zeroed};
use crate::table::TABLE_ENTRIES;
use crate::trace::{Counter, CounterValues};
use rand::{RngCore, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;
use std::hint::black_box;

const PAGES_PER_MIB: u64 = 256;

/// Real time of the walk alone for each page: without making the generation,
/// which moves every folio of the oldest one to another list.
const WALK: Metric = Metric::time("walk_ns_per_page", "ns");

pub(super) fn run(stage: &mut Stage<'_>) -> Result<()> {
    protocols(stage)?;
    mmus(stage)?;
    batched(stage)?;
    growth(stage)
}

/// Whether each page is to be young: `percent` of them, by the seed.
fn choice(pages: u64, percent: u64, seed: u64) -> impl Iterator<Item = bool> {
    let mut random = Xoshiro256PlusPlus::seed_from_u64(seed);
    (0..pages).map(move |_| random.next_u64() % 100 < percent)
}

/// One pass over a populated guest of which `percent` is young.
fn pass(guest: &Guest, percent: u64, seed: u64) -> Result<Sample> {
    let cpu = Cpu::new(&guest.host);
    let mut expected = 0;
    if percent == 100 {
        guest.sweep(&cpu, 0, guest.pages)?;
        expected = guest.pages;
    } else if percent > 0 {
        for (page, young) in (0..).zip(choice(guest.pages, percent, seed)) {
            if young {
                guest.vm.access(&cpu, 0, page, true, None)?;
                expected += 1;
            }
        }
    }
    let (ns, stats) = worked(|| guest.age(&cpu));
    let stats = stats?;
    let counted = stats.counters;
    let found = counted.get(Counter::MmLeafYoung);
    let asked = if guest.host.lru_gen.batched() {
        // Calls for whole tables: the pages are those that were found.
        let tables = counted.get(Counter::NotifierClearYoungBatch);
        let whole = guest.pages.div_ceil(TABLE_ENTRIES as u64);
        if !(whole..=whole + 2 + whole / 64).contains(&tables) {
            return Err(wrong(format!(
                "a batched pass over {} pages asked {tables} times",
                guest.pages
            )));
        }
        found + counted.get(Counter::MmLeafOld)
    } else {
        counted.get(Counter::NotifierClearYoungFast) + counted.get(Counter::NotifierClearYoungSlow)
    };
    // A guest on the shadow MMU keeps page tables of its own in memory.
    let Some(own) = asked
        .checked_sub(guest.pages)
        .filter(|&own| own <= guest.pages / 64)
    else {
        return Err(wrong(format!(
            "a pass over {} pages asked about {asked}",
            guest.pages
        )));
    };
    if !stats.advanced || !(expected..=expected + own).contains(&found) {
        return Err(wrong(format!(
            "a pass over {} pages, {expected} of them young, found {found}",
            guest.pages
        )));
    }
    let walking = stats.walking.as_nanos() as f64 / asked as f64;
    Ok(Sample::per_item(ns, asked, counted).with(WALK, walking))
}

fn populated(stage: &mut Stage<'_>, protocol: Protocol, mmu: MmuKind, pages: u64) -> Result<Guest> {
    let guest = Guest::new(&GuestConfig {
        pages,
        protocol,
        mmu,
        ..GuestConfig::default()
    })?;
    let what = format!("aging: populating {} MiB", pages / PAGES_PER_MIB);
    guest.populate(stage, &what)?;
    // The primary entries are born young too; guests do not make them so again.
    guest.age(&Cpu::new(&guest.host))?;
    Ok(guest)
}

fn case(mmu: &str, what: &str, pages: u64, share: u64, repetitions: usize) -> Case {
    Case {
        name: format!("{mmu}, {what}, {share}% young"),
        parameters: vec![
            ("mmu", mmu.into()),
            ("pages", pages.to_string()),
            ("young_percent", share.to_string()),
        ],
        threads: 1,
        repetitions,
        warm_up: 1,
    }
}

/// The protocols side by side on guests of one size.
fn protocols(stage: &mut Stage<'_>) -> Result<()> {
    let options = &stage.options.clone();
    let mib: u64 = options.pick(4, 256, 1024, 1024);
    for &(mmu, kind) in super::guest::MMUS {
        let guests = [Protocol::V7, Protocol::V9, Protocol::BASELINE]
            .into_iter()
            .map(|protocol| {
                Ok((
                    protocol,
                    populated(stage, protocol, kind, mib * PAGES_PER_MIB)?,
                ))
            })
            .collect::<Result<Vec<_>>>()?;
        for share in [100, 0] {
            let contestants = guests
                .iter()
                .map(|(protocol, guest)| {
                    let contestant =
                        Contestant::new(protocol.name, move || pass(guest, share, options.seed));
                    if protocol.name == "v7" {
                        contestant
                    } else {
                        contestant.against("v7")
                    }
                })
                .collect();
            let what = format!("{mib} MiB");
            let pages = mib * PAGES_PER_MIB;
            let case = case(mmu, &what, pages, share, options.repetitions(9));
            stage.contest(&case, contestants)?;
        }
    }
    Ok(())
}

/// The shadow MMU, whose every page has an rmap of one SPTE, against the TDP MMU.
fn mmus(stage: &mut Stage<'_>) -> Result<()> {
    let options = &stage.options.clone();
    let mib: u64 = options.pick(4, 256, 1024, 1024);
    let pages = mib * PAGES_PER_MIB;
    let tdp = &populated(stage, Protocol::V7, MmuKind::Tdp, pages)?;
    let shadow = &populated(stage, Protocol::V7, MmuKind::Shadow, pages)?;
    for share in [100, 0] {
        let contestants = vec![
            Contestant::new("tdp", || pass(tdp, share, options.seed)),
            Contestant::new("shadow, rmaps of one", || pass(shadow, share, options.seed))
                .against("tdp")
                .at_most(2.0),
        ];
        let what = format!("{mib} MiB, v7");
        let case = case("both", &what, pages, share, options.repetitions(9));
        stage.contest(&case, contestants)?;
    }
    Ok(())
}

/// What a batched pass cannot do without: three loads a page, and for a young
/// one an atomic operation on its SPTE and one on its folio's word.
struct Least {
    ptes: Box<[AtomicU64]>,
    words: Box<[AtomicU64]>,
    sptes: Box<[AtomicU64]>,
}

impl Least {
    fn new(pages: u64) -> Self {
        let array = || -> Box<[AtomicU64]> { zeroed(pages as usize) };
        let least = Least {
            ptes: array(),
            words: array(),
            sptes: array(),
        };
        for word in least.ptes.iter().chain(&least.words) {
            word.store(1, Ordering::Relaxed);
        }
        least
    }

    #[inline(never)]
    fn pass(&self) -> u64 {
        let mut young = 0;
        let tables = self.ptes.chunks(TABLE_ENTRIES);
        let tables = tables.zip(self.words.chunks(TABLE_ENTRIES));
        for ((ptes, words), sptes) in tables.zip(self.sptes.chunks(TABLE_ENTRIES)) {
            let present = |(pte, word): (&AtomicU64, &AtomicU64)| {
                pte.load(Ordering::Relaxed) & word.load(Ordering::Relaxed) & 1
            };
            let ours: u64 = ptes.iter().zip(words).map(present).sum();
            assert_eq!(ours, ptes.len() as u64, "every page is there");
            for (spte, word) in sptes.iter().zip(words) {
                if spte.load(Ordering::Relaxed) & 1 != 0 {
                    spte.fetch_and(!1, Ordering::AcqRel);
                    let seen = word.load(Ordering::Relaxed);
                    let moved =
                        word.compare_exchange(seen, seen ^ 2, Ordering::AcqRel, Ordering::Relaxed);
                    young += u64::from(moved.is_ok());
                }
            }
        }
        young
    }
}

/// Asking once a PTE table against asking once a page, and against the least.
fn batched(stage: &mut Stage<'_>) -> Result<()> {
    let options = &stage.options.clone();
    let mib: u64 = options.pick(4, 256, 1024, 1024);
    let pages = mib * PAGES_PER_MIB;
    let guest = populated(stage, Protocol::V7, MmuKind::Tdp, pages)?;
    let least = Least::new(pages);
    for share in [100, 50, 10, 1, 0] {
        let ask = |batched: bool| {
            let guest = &guest;
            move || {
                guest.host.lru_gen.set_batched(batched);
                pass(guest, share, options.seed)
            }
        };
        let least = &least;
        let limit = "the same loads and atomic operations on flat arrays";
        let contestants = vec![
            Contestant::new(limit, move || {
                let mut expected = 0;
                for (spte, young) in least.sptes.iter().zip(choice(pages, share, options.seed)) {
                    spte.store(u64::from(young), Ordering::Relaxed);
                    expected += u64::from(young);
                }
                let (ns, young) = worked(|| black_box(black_box(least).pass()));
                if young != expected {
                    return Err(wrong(format!("{limit}: {young} young, not {expected}")));
                }
                Ok(Sample::per_item(ns, pages, CounterValues::default()))
            }),
            Contestant::new("once a page", ask(false)),
            Contestant::new("once a table", ask(true))
                .against(limit)
                .against("once a page"),
        ];
        let what = format!("{mib} MiB, asked once a page or once a table");
        let case = case("tdp", &what, pages, share, options.repetitions(9));
        stage.contest(&case, contestants)?;
    }
    Ok(())
}

/// Cost per page against guest size.
fn growth(stage: &mut Stage<'_>) -> Result<()> {
    let options = &stage.options.clone();
    let sizes: &[u64] = options.pick(
        &[2, 4][..],
        &[64, 256, 1024],
        &[64, 256, 1024, 4096, 16_384],
        &[64, 256, 1024, 4096, 16_384, 65_536],
    );
    let mut guests = Vec::new();
    for &mib in sizes {
        let guest = populated(stage, Protocol::V7, MmuKind::Tdp, mib * PAGES_PER_MIB)?;
        guests.push((format!("{mib} MiB"), guest));
    }
    for share in [100, 0] {
        let contestants = guests
            .iter()
            .map(|(size, guest)| {
                let contestant =
                    Contestant::new(size.as_str(), move || pass(guest, share, options.seed));
                match size.as_str() {
                    "1024 MiB" => contestant,
                    "16384 MiB" => contestant.against("1024 MiB").at_most(1.3),
                    _ => contestant.against("1024 MiB"),
                }
            })
            .collect();
        let largest = sizes.last().copied().unwrap_or(0) * PAGES_PER_MIB;
        let case = case(
            "tdp",
            "v7 by guest size",
            largest,
            share,
            options.repetitions(5),
        );
        stage.contest(&case, contestants)?;
    }
    Ok(())
}
