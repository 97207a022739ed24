//! What a costly mutant costs, in time: how long a writer waits for a chain
//! whose holder can lose its processor, and how many writers met one that had
//! (`met`): the time is for a quiet machine, the number for any.
//!
//! `YOUNGBIT_MUTANT=preempt-on cargo test --release --features mutants --test costs -- --nocapture`
#![cfg(all(not(loom), feature = "mutants"))]

use std::time::{Duration, Instant};
use youngbit_core::host::ROOT_MEMCG;
use youngbit_core::kvm::mmu::shadow::ShadowConfig;
use youngbit_core::kvm::{MemoryRegion, MmuKind, Vm, VmConfig};
use youngbit_core::mm::{Kind, MmuNotifier, PAGE_SIZE, VmFlags};
use youngbit_core::mutant::{self, Mutant};
use youngbit_core::sync::atomic::{AtomicBool, Ordering};
use youngbit_core::sync::thread;
use youngbit_core::{Cpu, Host, HostConfig};

/// How long to go on.
const USUAL: Duration = Duration::from_millis(500);
/// Zaps that must come, and how long to go on for them on a busy machine.
const ENOUGH: usize = 20;
const LONGEST: Duration = Duration::from_secs(30);

#[test]
fn writer_waits_for_a_chain() {
    let wanted = std::env::var("YOUNGBIT_MUTANT").unwrap_or_default();
    mutant::select(Mutant::ALL.iter().copied().find(|m| m.name() == wanted));
    let host = Host::new(&HostConfig {
        nodes: vec![4096],
        swap_pages: 0,
        virtual_clock: true,
    })
    .expect("a valid host");
    let cpu = Cpu::new(&host);
    let mm = host.create_mm(ROOT_MEMCG).expect("the root cgroup exists");
    let space = host.create_space(Kind::Anon, 0);
    let hva = mm
        .mmap(None, PAGE_SIZE, &space, 0, VmFlags::default())
        .expect("room");
    let config = VmConfig {
        mmu: MmuKind::Shadow,
        shadow: ShadowConfig {
            direct: true,
            ..ShadowConfig::default()
        },
        ..VmConfig::default()
    };
    let vm = Vm::create(&cpu, &mm, config).expect("a valid VM");
    let region = MemoryRegion {
        as_id: 0,
        slot: 0,
        flags: 0,
        guest_phys_addr: 0,
        memory_size: PAGE_SIZE,
        userspace_addr: hva,
    };
    vm.set_memory_region(&cpu, &region).expect("a valid region");
    let stop = AtomicBool::new(false);
    let mut met = 0;
    let mut waits: Vec<Duration> = Vec::new();
    thread::scope(|scope| {
        scope.spawn(|| {
            let cpu = Cpu::new(&host);
            while !stop.load(Ordering::Relaxed) {
                vm.test_young(&cpu, hva, true);
            }
        });
        let begin = Instant::now();
        while begin.elapsed() < USUAL || (waits.len() <= ENOUGH && begin.elapsed() < LONGEST) {
            vm.access(&cpu, 0, 0, true, None).expect("mapped");
            // Leave the chain to the reader for a while.
            let mapped = Instant::now();
            while mapped.elapsed() < Duration::from_micros(10) {}
            met += usize::from(thread::without_processor() > 0);
            let start = Instant::now();
            vm.invalidate_range_start(&cpu, hva, hva + PAGE_SIZE);
            waits.push(start.elapsed());
            vm.invalidate_range_end(&cpu, hva, hva + PAGE_SIZE);
        }
        stop.store(true, Ordering::Relaxed);
    });
    waits.sort_unstable();
    // Of the time that the writer waits, not of its tries: one that waits long
    // makes few tries.
    let at = |share: f64| waits[((waits.len() - 1) as f64 * share) as usize].as_nanos();
    let long = waits.iter().filter(|w| w.as_micros() >= 1000).count();
    println!(
        "LATENCY writer_waits_for_a_chain | zaps {} | p50_ns {} | p99_ns {} | max_ns {} | over_1ms {long} | met {met}",
        waits.len(),
        at(0.5),
        at(0.99),
        at(1.0),
    );
    assert!(waits.len() > ENOUGH, "the writer starved");
}
