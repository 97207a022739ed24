//! Aging beside vCPUs that fault, by counts: what measured times rest on.

#![cfg(not(loom))]

use youngbit_core::Cpu;
use youngbit_core::access::{Pattern, Stream, StreamConfig};
use youngbit_core::bench::{Guest, GuestConfig};
use youngbit_core::cpu::FOLIO_BATCH;
use youngbit_core::host::ROOT_MEMCG;
use youngbit_core::kvm::{MmuKind, Protocol, RunOptions};
use youngbit_core::lru_gen;
use youngbit_core::mm::{Kind, PAGE_SIZE, VmFlags};
use youngbit_core::trace::{Counter, CounterValues};

const VCPUS: u64 = 2;
const PAGES: u64 = 4096;

fn populate(vcpu: u64) -> Stream {
    Stream::new(&StreamConfig {
        pattern: Pattern::Sequential,
        start: vcpu * PAGES / VCPUS,
        end: (vcpu + 1) * PAGES / VCPUS,
        accesses: PAGES / VCPUS,
        write_ratio: 1.0,
        seed: 0,
    })
    .expect("a valid stream")
}

/// vCPUs populate a guest while its memory is aged; what both counted.
fn run(mmu: MmuKind, protocol: Protocol) -> (Guest, CounterValues, CounterValues) {
    let guest = Guest::new(&GuestConfig {
        pages: PAGES,
        protocol,
        mmu,
        vcpus: VCPUS as u32,
        ..GuestConfig::default()
    })
    .expect("a guest");
    let cpu = Cpu::new(&guest.host);
    let mut streams: Vec<Stream> = (0..VCPUS).map(populate).collect();
    let options = RunOptions {
        lru_batching: true,
        ..RunOptions::default()
    };
    let stats = guest
        .vm
        .run_with(&cpu, &mut streams, &options, |cpu| {
            guest.age(cpu).map(|_| ())
        })
        .expect("the guest runs");
    let mut vcpus = CounterValues::default();
    for vcpu in &stats.vcpus {
        vcpus.merge(&vcpu.counters);
    }
    // Whatever the threads' timing was, one pass over all of it.
    guest.age(&cpu).expect("ages");
    let aging = cpu.counters.snapshot();
    (guest, vcpus, aging)
}

fn asked(aging: &CounterValues) -> u64 {
    aging.get(Counter::NotifierClearYoungFast) + aging.get(Counter::NotifierClearYoungSlow)
}

#[test]
fn baseline_takes_mmu_lock_once_a_notifier_call_and_the_lockless_ones_never() {
    for mmu in [MmuKind::Tdp, MmuKind::Shadow] {
        for protocol in [Protocol::BASELINE, Protocol::V7, Protocol::V9] {
            let (guest, vcpus, aging) = run(mmu, protocol);
            let name = format!("{mmu:?} {}", protocol.name);
            let lockless = protocol.name != "baseline";
            let locked = if lockless { 0 } else { asked(&aging) };
            assert_eq!(aging.get(Counter::MmuLockWrite), locked, "{name}");
            assert_eq!(aging.get(Counter::MmuLockRead), 0, "{name}");
            // Faults take it as before the series, whoever ages: for read by
            // the TDP MMU, for write by the shadow MMU.
            let (read, write) = (
                vcpus.get(Counter::MmuLockRead),
                vcpus.get(Counter::MmuLockWrite),
            );
            match mmu {
                MmuKind::Tdp => {
                    assert!(read >= PAGES, "{name}: {read}");
                    assert_eq!(write, 0, "{name}");
                }
                _ => assert!(write >= PAGES, "{name}: {write}"),
            }
            // A lockless ager makes nobody wait for it: TDP faults share.
            if mmu == MmuKind::Tdp && lockless {
                assert_eq!(vcpus.get(Counter::MmuLockContended), 0, "{name}");
            }
            drop(guest);
        }
    }
}

#[test]
fn what_a_ratio_is_divided_by_adds_up() {
    for mmu in [MmuKind::Tdp, MmuKind::Shadow] {
        for protocol in [Protocol::BASELINE, Protocol::V7, Protocol::V9] {
            let (_guest, vcpus, aging) = run(mmu, protocol);
            let name = format!("{mmu:?} {}", protocol.name);
            assert_eq!(vcpus.get(Counter::GuestAccesses), PAGES, "{name}");
            // Each entry that a walk took for old or young was asked about
            // once, and each question was for one memslot.
            let looked = aging.get(Counter::MmLeafOld) + aging.get(Counter::MmLeafYoung);
            assert_eq!(asked(&aging), looked, "{name}");
            assert_eq!(aging.get(Counter::MemslotsVisited), looked, "{name}");
            assert!(asked(&aging) >= PAGES, "{name}: the last pass asks all");
            // Populating makes each SPTE young, and that is found; once more
            // where aging came between the fault and the access.
            assert!(aging.get(Counter::SptesAged) >= PAGES, "{name}");
            assert_eq!(aging.get(Counter::PoisonReads), 0, "{name}");
        }
    }
}

#[test]
fn no_folio_waits_for_its_list_when_a_run_is_over() {
    let (guest, _, _) = run(MmuKind::Tdp, Protocol::V7);
    let cpu = Cpu::new(&guest.host);
    let generations = lru_gen::page_generations(&cpu, &guest.mm, guest.hva, guest.pages);
    assert_eq!(generations.len() as u64, PAGES);
    assert!(generations.iter().all(|&generation| generation >= 0));
}

/// A folio that is unmapped while it waits in another thread's batch is freed
/// by that thread, when it would have listed it.
#[test]
fn a_folio_unmapped_while_it_waits_is_freed() {
    let guest = Guest::new(&GuestConfig {
        pages: 64,
        ..GuestConfig::default()
    })
    .expect("a guest");
    let host = &guest.host;
    let mm = host.create_mm(ROOT_MEMCG).expect("an mm");
    let space = host.create_space(Kind::Anon, 0);
    let pages = FOLIO_BATCH as u64 - 1;
    let hva = mm
        .mmap(None, pages * PAGE_SIZE, &space, 0, VmFlags::default())
        .expect("maps");
    let usage = guest.memcg().usage();
    let batching = Cpu::new(host);
    batching.set_lru_batching(true);
    for page in 0..pages {
        mm.touch(&batching, hva + page * PAGE_SIZE, true, None)
            .expect("touches");
    }
    let other = Cpu::new(host);
    let waiting = lru_gen::page_generations(&other, &mm, hva, pages);
    assert!(waiting.iter().all(|&generation| generation < 0));
    mm.munmap(&other, hva, pages * PAGE_SIZE).expect("unmaps");
    assert_eq!(guest.memcg().usage(), usage + pages, "nobody owns them yet");
    drop(batching);
    assert_eq!(guest.memcg().usage(), usage, "freed when they were due");
    host.exit_mm(&other, &mm);
}
