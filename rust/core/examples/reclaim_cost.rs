//! Cost of guest accesses with reclaim at half the footprint, in one thread.
//!
//! `cargo run --release -p youngbit-core --example reclaim_cost [ACCESSES] [PAGES] [zipf|uniform] [host|guest]`

use std::time::Instant;
use youngbit_core::access::stream::{Pattern, Stream, StreamConfig};
use youngbit_core::kvm::memslot::MemoryRegion;
use youngbit_core::kvm::vcpu::RunOptions;
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
    let mut stream = Stream::new(&StreamConfig {
        pattern: if uniform {
            Pattern::Uniform
        } else {
            Pattern::Zipf {
                exponent: 1.0,
                scatter: true,
            }
        },
        start: 0,
        end: pages,
        accesses,
        write_ratio: 0.25,
        seed: 1,
    })?;
    let start = Instant::now();
    if guest {
        vm.run_inline(
            &cpu,
            std::slice::from_mut(&mut stream),
            &RunOptions::default(),
        )?;
    } else {
        let mut batch = Vec::new();
        while stream.remaining() > 0 {
            stream.fill(&mut batch, 1024);
            for access in &batch {
                let address = at + access.page() * PAGE_SIZE;
                mm.touch(&cpu, address, access.is_write(), None)?;
            }
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
