//! What aging costs: per page from the root, and over a range, against a flat
//! scan of as many words. `cargo run --release --example kvm_cost`.

use std::hint::black_box;
use std::time::Instant;
use youngbit_core::access::{Pattern, Stream, StreamConfig};
use youngbit_core::host::ROOT_MEMCG;
use youngbit_core::kvm::{MemoryRegion, RunOptions, Vm, VmConfig};
use youngbit_core::mm::{Kind, PAGE_SIZE, VmFlags};
use youngbit_core::sync::atomic::{AtomicU64, Ordering, zeroed};
use youngbit_core::{Cpu, Host, HostConfig};

const PAGES: u64 = 1 << 20;

fn best(mut f: impl FnMut()) -> f64 {
    (0..9)
        .map(|_| {
            let start = Instant::now();
            f();
            start.elapsed().as_nanos() as f64 / PAGES as f64
        })
        .fold(f64::MAX, f64::min)
}

fn main() -> youngbit_core::Result<()> {
    let host = Host::new(&HostConfig {
        nodes: vec![PAGES + (1 << 16)],
        swap_pages: 0,
        virtual_clock: false,
    })?;
    let cpu = Cpu::new(&host);
    let mm = host.create_mm(ROOT_MEMCG)?;
    let space = host.create_space(Kind::Anon, 0);
    let hva = mm.mmap(None, PAGES * PAGE_SIZE, &space, 0, VmFlags::default())?;
    let vm = Vm::create(&cpu, &mm, VmConfig::default())?;
    vm.set_memory_region(
        &cpu,
        &MemoryRegion {
            as_id: 0,
            slot: 0,
            flags: 0,
            guest_phys_addr: 0,
            memory_size: PAGES * PAGE_SIZE,
            userspace_addr: hva,
        },
    )?;
    let sweep = || {
        Stream::new(&StreamConfig {
            pattern: Pattern::Sequential,
            start: 0,
            end: PAGES,
            accesses: PAGES,
            write_ratio: 1.0,
            seed: 0,
        })
    };
    let run = |name: &str| -> youngbit_core::Result<()> {
        let start = Instant::now();
        vm.run_inline(&cpu, &mut [sweep()?], &RunOptions::default())?;
        println!(
            "{name}: {:.1} ns an access",
            start.elapsed().as_nanos() as f64 / PAGES as f64
        );
        Ok(())
    };
    run("populate through vCPU faults")?;
    run("touch again, TLB off")?;
    let end = hva + PAGES * PAGE_SIZE;
    let flat: Box<[AtomicU64]> = zeroed(PAGES as usize);
    for word in &flat {
        word.store(0x100, Ordering::Relaxed);
    }
    let scan = best(|| {
        let mut n = 0u64;
        for word in &flat {
            n += u64::from(word.load(Ordering::Relaxed) & 1 << 8 != 0);
        }
        black_box(n);
    });
    let fetch_and = best(|| {
        for word in &flat {
            word.fetch_and(!0x100, Ordering::AcqRel);
        }
    });
    mm.notifiers.clear_young(&cpu, hva, end, true);
    let none = best(|| {
        black_box(mm.notifiers.clear_young(&cpu, hva, end, true));
    });
    let mut all = f64::MAX;
    for _ in 0..5 {
        vm.run_inline(&cpu, &mut [sweep()?], &RunOptions::default())?;
        let start = Instant::now();
        black_box(mm.notifiers.clear_young(&cpu, hva, end, true));
        all = all.min(start.elapsed().as_nanos() as f64 / PAGES as f64);
    }
    let per_page = || {
        for page in 0..PAGES {
            let at = hva + page * PAGE_SIZE;
            black_box(mm.notifiers.clear_young(&cpu, at, at + PAGE_SIZE, true));
        }
    };
    let page_none = best(per_page);
    vm.run_inline(&cpu, &mut [sweep()?], &RunOptions::default())?;
    let start = Instant::now();
    per_page();
    let page_all = start.elapsed().as_nanos() as f64 / PAGES as f64;
    println!("flat scan: {scan:.3} ns a word; flat fetch_and: {fetch_and:.2}");
    println!("range, none young: {none:.3} ({:.2} of flat)", none / scan);
    println!(
        "range, all young: {all:.2} ({:.2} of flat)",
        all / fetch_and
    );
    println!("per page, none young: {page_none:.1}; all young: {page_all:.1}");
    vm.destroy(&cpu)
}
