//! Eviction of a guest's memory, with its neighbours asked after and without.

use super::contest::{Case, Contestant, Metric, Sample, Stage, worked};
use super::{Guest, GuestConfig, wrong};
use crate::cpu::Cpu;
use crate::error::Result;
use crate::kvm::protocol::Protocol;
use crate::lru_gen::{caps, evict};
use crate::trace::Counter;

/// Pages scanned a second.
const SCANNED: Metric = Metric::rate("pages_scanned_per_second", "1/s");
/// Share of the guest's pages that were reclaimed.
const RECLAIMED: Metric = Metric::count("reclaimed_share", "1");
/// Look-arounds for each thousand pages scanned.
const LOOKED: Metric = Metric::count("look_arounds_per_thousand", "1");

const ASKED: &str = "v7, neighbours asked of the guest";

/// Who is aged how, and by which capabilities.
const CONTESTANTS: [(&str, Protocol, u32); 3] = [
    (ASKED, Protocol::V7, caps::ALL),
    (
        "v7, neighbours not asked",
        Protocol::V7,
        caps::ALL & !caps::SECONDARY_MMU_WALK,
    ),
    ("baseline", Protocol::BASELINE, caps::ALL),
];

pub(super) fn run(stage: &mut Stage<'_>) -> Result<()> {
    let options = stage.options.clone();
    let pages: u64 = options.pick(1 << 11, 1 << 16, 1 << 18, 1 << 18);
    for young in [false, true] {
        let contestants = CONTESTANTS
            .into_iter()
            .map(|(name, protocol, caps)| {
                let contestant = Contestant::new(name, move || evict(pages, protocol, caps, young));
                if name == ASKED {
                    contestant
                } else {
                    contestant.against(ASKED)
                }
            })
            .collect();
        let share = if young { 100 } else { 0 };
        let case = Case {
            name: format!("eviction, {pages} pages, {share}% used since aging"),
            parameters: vec![
                ("pages", pages.to_string()),
                ("young_percent", share.to_string()),
            ],
            threads: 1,
            repetitions: options.repetitions(5),
            warm_up: 1,
        };
        stage.contest(&case, contestants)?;
    }
    Ok(())
}

/// Evict what a guest has in its oldest generations.
fn evict(pages: u64, protocol: Protocol, caps: u32, young: bool) -> Result<Sample> {
    let guest = Guest::new(&GuestConfig {
        pages,
        protocol,
        swap_pages: pages,
        ..GuestConfig::default()
    })?;
    let cpu = Cpu::new(&guest.host);
    guest.sweep(&cpu, 0, pages)?;
    // The first pass finds everything young; two more leave that behind.
    for _ in 0..3 {
        guest.age(&cpu)?;
    }
    guest.host.lru_gen.set_caps(caps);
    if young {
        guest.sweep(&cpu, 0, pages)?;
    }
    let memcg = guest.memcg();
    let lruvec = &memcg.lruvecs[0];
    let oldest = lruvec.max_seq() - 2;
    let before = cpu.counters.snapshot();
    let (ns, evicted) = worked(|| evict::run_eviction(&cpu, memcg, lruvec, oldest, 100, u64::MAX));
    let evicted = evicted?;
    let counters = cpu.counters.snapshot().since(&before);
    let scanned = counters.get(Counter::PgScan);
    if scanned == 0 || (young && evicted > pages / 2) || (!young && evicted != pages) {
        return Err(wrong(format!(
            "{evicted} of {pages} pages were evicted, {} of them used: {scanned} were scanned",
            if young { "all" } else { "none" }
        )));
    }
    let looked = counters.get(Counter::LookArounds) as f64 * 1000.0;
    Ok(Sample::per_item(ns, scanned, counters)
        .with(SCANNED, scanned as f64 / (ns as f64 * 1e-9))
        .with(RECLAIMED, evicted as f64 / pages as f64)
        .with(LOOKED, looked / scanned as f64))
}
