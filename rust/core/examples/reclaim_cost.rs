//! Cost of guest accesses with reclaim at half the footprint, in one thread.
//!
//! `cargo run --release -p youngbit-core --example reclaim_cost [ACCESSES] [PAGES] [zipf|uniform] [host|guest]`

use rand::{Rng, SeedableRng};
use rand_distr::{Distribution, Zipf};
use rand_xoshiro::Xoshiro256PlusPlus;
use std::time::Instant;
use youngbit_core::kvm::memslot::MemoryRegion;
use youngbit_core::kvm::vm::{Vm, VmConfig};
use youngbit_core::lru_gen::reclaim::set_max;
use youngbit_core::mm::{Kind, PAGE_SIZE, VmFlags};
use youngbit_core::trace::Counter;
use youngbit_core::{Cpu, Host, HostConfig};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let mut number = |or: u64| args.next().map_or(Ok(or), |a| a.parse());
    let accesses = number(10_000_000)?;
    let pages = number(1 << 18)?;
    let uniform = args.next().is_some_and(|a| a == "uniform");
    let guest = args.next().is_none_or(|a| a == "guest");
    let host = Host::new(&HostConfig {
        nodes: vec![2 * pages],
        swap_pages: 2 * pages,
        virtual_clock: true,
    })?;
    let memcg = host.create_memcg("guest")?;
    let mm = host.create_mm(memcg.id)?;
    let cpu = Cpu::new(&host);
    let space = host.create_space(Kind::Anon, 0);
    let at = mm.mmap(None, pages * PAGE_SIZE, &space, 0, VmFlags::default())?;
    let vm = Vm::create(&cpu, &mm, VmConfig::default())?;
    vm.set_memory_region(
        &cpu,
        &MemoryRegion {
            as_id: 0,
            slot: 0,
            flags: 0,
            guest_phys_addr: 0,
            memory_size: pages * PAGE_SIZE,
            userspace_addr: at,
        },
    )?;
    set_max(&cpu, &memcg, pages / 2)?;
    let mut random = Xoshiro256PlusPlus::seed_from_u64(1);
    let zipf = Zipf::new(pages as f64, 1.0)?;
    let stream: Vec<u64> = (0..accesses)
        .map(|_| {
            if uniform {
                random.random_range(0..pages)
            } else {
                // Scattered: neighbours in rank are not neighbours in memory.
                (zipf.sample(&mut random) as u64 - 1).wrapping_mul(0x9e37_79b1) % pages
            }
        })
        .collect();
    let start = Instant::now();
    for (n, &page) in stream.iter().enumerate() {
        let write = n % 4 == 0;
        if guest {
            vm.access(&cpu, 0, page, write, None)?;
        } else {
            mm.touch(&cpu, at + page * PAGE_SIZE, write, None)?;
        }
    }
    let elapsed = start.elapsed();
    println!(
        "{accesses} accesses to {pages} pages in {:.2} s, {:.0} ns each",
        elapsed.as_secs_f64(),
        elapsed.as_nanos() as f64 / accesses as f64
    );
    for counter in [
        Counter::PgFault,
        Counter::PgMajFault,
        Counter::PgScan,
        Counter::PgSteal,
        Counter::PgRefill,
        Counter::DirectReclaim,
        Counter::LookArounds,
        Counter::FoliosPromoted,
        Counter::NotifierClearYoungFast,
        Counter::NotifierClearYoungSlow,
        Counter::MmLeafTotal,
    ] {
        println!("{:>30} {}", counter.key(), cpu.counters.get(counter));
    }
    println!(
        "usage {} max_seq {}",
        memcg.usage(),
        memcg.lruvecs[0].max_seq()
    );
    vm.destroy(&cpu)?;
    Ok(())
}
