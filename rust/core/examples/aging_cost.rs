//! What a whole aging pass costs a page: page-table walk, notifier, memslot
//! lookup, TDP walk and generation update, and which part is which.
//! `cargo run --release --example aging_cost`.

use std::time::Instant;
use youngbit_core::access::{Pattern, Stream, StreamConfig};
use youngbit_core::kvm::{MemoryRegion, RunOptions, Vm, VmConfig};
use youngbit_core::lru_gen::{age, caps, debugfs, histogram};
use youngbit_core::mm::{Kind, PAGE_SIZE, VmFlags};
use youngbit_core::{Cpu, Host, HostConfig};

const PAGES: u64 = 1 << 18;
const ROUNDS: usize = 9;

fn main() -> youngbit_core::Result<()> {
    let host = Host::new(&HostConfig {
        nodes: vec![2 * PAGES],
        swap_pages: 1 << 10,
        virtual_clock: false,
    })?;
    let cpu = Cpu::new(&host);
    let memcg = host.create_memcg("vm")?;
    let mm = host.create_mm(memcg.id)?;
    let space = host.create_space(Kind::Anon, 0);
    let hva = mm.mmap(None, PAGES * PAGE_SIZE, &space, 0, VmFlags::default())?;
    let touch = || -> youngbit_core::Result<()> {
        (0..PAGES).try_for_each(|n| mm.touch(&cpu, hva + n * PAGE_SIZE, true, None))
    };
    let passes = |name: &str, prepare: &dyn Fn() -> youngbit_core::Result<()>| {
        let mut best = f64::MAX;
        for _ in 0..ROUNDS {
            prepare()?;
            let start = Instant::now();
            age(&cpu, &memcg, 0, true, true)?;
            best = best.min(start.elapsed().as_nanos() as f64 / PAGES as f64);
        }
        println!("{name}: {best:.1} ns a page");
        Ok::<(), youngbit_core::Error>(())
    };
    touch()?;
    passes("host only, nothing young", &|| Ok(()))?;
    passes("host only, all young", &touch)?;
    let vm = Vm::create(&cpu, &mm, VmConfig::default())?;
    let region = MemoryRegion {
        as_id: 0,
        slot: 0,
        flags: 0,
        guest_phys_addr: 0,
        memory_size: PAGES * PAGE_SIZE,
        userspace_addr: hva,
    };
    vm.set_memory_region(&cpu, &region)?;
    let guest = || -> youngbit_core::Result<()> {
        let stream = Stream::new(&StreamConfig {
            pattern: Pattern::Sequential,
            start: 0,
            end: PAGES,
            accesses: PAGES,
            write_ratio: 1.0,
            seed: 0,
        })?;
        vm.run_inline(&cpu, &mut [stream], &RunOptions::default())?;
        Ok(())
    };
    guest()?;
    passes("guest, nothing young", &|| Ok(()))?;
    passes("guest, all young", &guest)?;
    host.lru_gen.set_caps(caps::ALL & !caps::SECONDARY_MMU_WALK);
    passes("guest, capability 0x8 off", &|| Ok(()))?;
    for n in 0..98 {
        host.create_memcg(&format!("slice/{n}"))?;
    }
    let mut best = f64::MAX;
    for _ in 0..100 {
        let start = Instant::now();
        let text = debugfs::show(&host);
        let seq = histogram::parse(text.as_bytes())?[99].totals().len() as u64 - 1;
        debugfs::write(&cpu, format!("+ 99 0 {} 1 1", seq - 1).as_bytes())?;
        best = best.min(start.elapsed().as_nanos() as f64 / 1000.0);
    }
    println!("text of 100 memory cgroups printed, read and commanded: {best:.0} microseconds");
    Ok(())
}
