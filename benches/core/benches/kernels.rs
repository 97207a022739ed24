//! The loops that aging spends its time in, so that a developer sees a
//! regression: `cargo bench -p youngbit-benches`.
//!
//! Criterion measures one after the other; where two are to be compared,
//! `youngbit bench` interleaves them.

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use std::hint::black_box;
use youngbit_core::Cpu;
use youngbit_core::bench::{Chains, Flat, Guest, GuestConfig, fill};
use youngbit_core::kvm::Protocol;
use youngbit_core::kvm::mmu::spte::SpteFormat;
use youngbit_core::mm::PAGE_SIZE;

const PAGES: u64 = 1 << 18;

/// A name, and what it does to an array.
type Loop = (&'static str, fn(&Flat) -> u64);

fn spte(c: &mut Criterion) {
    let mut group = c.benchmark_group("spte");
    group.sample_size(20);
    group.throughput(Throughput::Elements(PAGES));
    let flat = Flat::new(PAGES as usize, SpteFormat::EPT);
    let loops: [Loop; 4] = [
        ("flat scan", Flat::scan),
        ("flat fetch_and", Flat::fetch_and),
        ("test", Flat::test),
        ("age", Flat::age),
    ];
    for percent in [0, 10, 100] {
        for (name, work) in loops {
            group.bench_function(BenchmarkId::new(name, percent), |b| {
                b.iter_batched(
                    || fill(&flat, percent, 1),
                    |_| black_box(work(black_box(&flat))),
                    BatchSize::PerIteration,
                );
            });
        }
    }
}

fn guest(protocol: Protocol) -> Guest {
    let guest = Guest::new(&GuestConfig {
        pages: PAGES,
        protocol,
        ..GuestConfig::default()
    })
    .expect("a guest");
    let cpu = Cpu::new(&guest.host);
    guest.sweep(&cpu, 0, PAGES).expect("populated");
    guest.age(&cpu).expect("a pass");
    guest
}

fn walk(c: &mut Criterion) {
    let mut group = c.benchmark_group("walk");
    group.sample_size(20);
    group.throughput(Throughput::Elements(PAGES));
    for protocol in [Protocol::V7, Protocol::BASELINE] {
        let guest = guest(protocol);
        let cpu = Cpu::new(&guest.host);
        for young in [false, true] {
            let set_up = || {
                if young {
                    guest.sweep(&cpu, 0, PAGES).expect("swept");
                }
            };
            let name = if young { "all young" } else { "none young" };
            group.bench_function(format!("range, {}, {name}", protocol.name), |b| {
                b.iter_batched(
                    set_up,
                    |()| {
                        let notifiers = &guest.mm.notifiers;
                        black_box(notifiers.clear_young(&cpu, guest.hva, guest.end(), false))
                    },
                    BatchSize::PerIteration,
                );
            });
            group.bench_function(format!("page by page, {}, {name}", protocol.name), |b| {
                b.iter_batched(
                    set_up,
                    |()| {
                        // As a walk of the primary page tables calls it: the
                        // sections that each call enters nest in these.
                        let _sections = (cpu.srcu.lock(), cpu.rcu.lock());
                        for page in 0..PAGES {
                            let at = guest.hva + page * PAGE_SIZE;
                            let notifiers = &guest.mm.notifiers;
                            black_box(notifiers.clear_young(&cpu, at, at + PAGE_SIZE, false));
                        }
                    },
                    BatchSize::PerIteration,
                );
            });
        }
    }
}

fn chains(c: &mut Criterion) {
    let mut group = c.benchmark_group("rmap chains");
    group.sample_size(20);
    for length in [1, 2, 14, 15, 64, 512] {
        let chains = Chains::new(length, PAGES as usize).expect("chains");
        group.throughput(Throughput::Elements(chains.len() as u64));
        group.bench_function(BenchmarkId::new("all young", length), |b| {
            b.iter_batched(
                || chains.fill(true),
                |()| black_box(black_box(&chains).age(true)),
                BatchSize::PerIteration,
            );
        });
    }
}

fn aging(c: &mut Criterion) {
    let mut group = c.benchmark_group("aging pass");
    group.sample_size(20);
    group.throughput(Throughput::Elements(PAGES));
    for protocol in [Protocol::V7, Protocol::BASELINE] {
        let guest = guest(protocol);
        let cpu = Cpu::new(&guest.host);
        for young in [false, true] {
            let name = if young { "all young" } else { "none young" };
            group.bench_function(format!("{}, {name}", protocol.name), |b| {
                b.iter_batched(
                    || {
                        if young {
                            guest.sweep(&cpu, 0, PAGES).expect("swept");
                        }
                    },
                    |()| guest.age(&cpu).expect("a pass"),
                    BatchSize::PerIteration,
                );
            });
        }
    }
}

criterion_group!(benches, spte, walk, chains, aging);
criterion_main!(benches);
