//! Whole aging passes through the per-page path: page-table walk, notifier
//! call, memslot lookup, SPTE walk, generation update, a page at a time.

use super::contest::{Case, Contestant, Sample, Stage, worked};
use super::{Guest, GuestConfig, wrong};
use crate::cpu::Cpu;
use crate::error::Result;
use crate::kvm::MmuKind;
use crate::kvm::protocol::Protocol;
use crate::trace::Counter;

const PAGES_PER_MIB: u64 = 256;

pub(super) fn run(stage: &mut Stage<'_>) -> Result<()> {
    protocols(stage)?;
    growth(stage)
}

/// One pass over a populated guest, all of it young or none.
fn pass(guest: &Guest, young: bool) -> Result<Sample> {
    let cpu = Cpu::new(&guest.host);
    if young {
        guest.sweep(&cpu, 0, guest.pages)?;
    }
    let (ns, stats) = worked(|| guest.age(&cpu));
    let stats = stats?;
    let counted = stats.counters;
    let found = counted.get(Counter::MmLeafYoung);
    let asked =
        counted.get(Counter::NotifierClearYoungFast) + counted.get(Counter::NotifierClearYoungSlow);
    // A guest on the shadow MMU keeps page tables of its own in memory.
    let Some(own) = asked
        .checked_sub(guest.pages)
        .filter(|&own| own <= guest.pages / 64)
    else {
        return Err(wrong(format!(
            "a pass over {} pages asked {asked} times",
            guest.pages
        )));
    };
    let expected = if young { guest.pages } else { 0 };
    if !stats.advanced || !(expected..=expected + own).contains(&found) {
        return Err(wrong(format!(
            "a pass over {} pages, {expected} of them young, found {found}",
            guest.pages
        )));
    }
    Ok(Sample::per_item(ns, asked, counted))
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

fn case(mmu: &str, what: &str, pages: u64, young: bool, repetitions: usize) -> Case {
    let share = if young { 100 } else { 0 };
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
    let options = stage.options.clone();
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
        for young in [true, false] {
            let contestants = guests
                .iter()
                .map(|(protocol, guest)| {
                    let contestant = Contestant::new(protocol.name, move || pass(guest, young));
                    if protocol.name == "v7" {
                        contestant
                    } else {
                        contestant.against("v7")
                    }
                })
                .collect();
            let what = format!("{mib} MiB");
            let pages = mib * PAGES_PER_MIB;
            let case = case(mmu, &what, pages, young, options.repetitions(9));
            stage.contest(&case, contestants)?;
        }
    }
    Ok(())
}

/// Cost per page against guest size.
fn growth(stage: &mut Stage<'_>) -> Result<()> {
    let options = stage.options.clone();
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
    for young in [true, false] {
        let contestants = guests
            .iter()
            .map(|(size, guest)| {
                let contestant = Contestant::new(size.as_str(), move || pass(guest, young));
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
            young,
            options.repetitions(5),
        );
        stage.contest(&case, contestants)?;
    }
    Ok(())
}
