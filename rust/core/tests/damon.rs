//! The region sampler, and accessed bits page by page, over a secondary MMU.

use std::sync::Arc;
use youngbit_core::host::ROOT_MEMCG;
use youngbit_core::kvm::memslot::MemoryRegion;
use youngbit_core::kvm::tlb::TlbConfig;
use youngbit_core::kvm::vm::{Vm, VmConfig};
use youngbit_core::mm::damon::{Attrs, Damon};
use youngbit_core::mm::young::{self, Flush};
use youngbit_core::mm::{Kind, PAGE_SIZE, VmFlags};
use youngbit_core::trace::Counter;
use youngbit_core::{Cpu, Host, HostConfig};

fn guest(pages: u64, tlb: TlbConfig) -> (Arc<Host>, Arc<Vm>, u64) {
    let host = Host::new(&HostConfig {
        nodes: vec![pages + 1024],
        swap_pages: 0,
        virtual_clock: true,
    })
    .expect("a valid host");
    let cpu = Cpu::new(&host);
    let mm = host.create_mm(ROOT_MEMCG).expect("mm");
    let space = host.create_space(Kind::Shmem, pages);
    let size = pages * PAGE_SIZE;
    let at = mm
        .mmap(None, size, &space, 0, VmFlags::default())
        .expect("mapped");
    let config = VmConfig {
        tlb,
        ..VmConfig::default()
    };
    let vm = Vm::create(&cpu, &mm, config).expect("vm");
    vm.set_memory_region(
        &cpu,
        &MemoryRegion {
            as_id: 0,
            slot: 0,
            flags: 0,
            guest_phys_addr: 0,
            memory_size: size,
            userspace_addr: at,
        },
    )
    .expect("memory");
    drop(cpu);
    (host, vm, at)
}

fn touch(cpu: &Cpu, vm: &Vm, pages: impl Iterator<Item = u64>) {
    for page in pages {
        vm.access(cpu, 0, page, false, None).expect("touched");
    }
}

#[test]
fn a_hot_half_is_found_at_the_price_of_regions_not_pages() {
    const PAGES: u64 = 4096;
    let (host, vm, at) = guest(PAGES, TlbConfig::OFF);
    let cpu = Cpu::new(&host);
    touch(&cpu, &vm, 0..PAGES);
    let attrs = Attrs {
        samples: 20,
        min_regions: 16,
        max_regions: 100,
    };
    let mut damon = Damon::new(at, PAGES, attrs, 7).expect("a sampler");
    let mut asked = 0;
    for round in 0..12 {
        for _ in 0..attrs.samples {
            damon.prepare(&cpu, &vm.mm);
            touch(&cpu, &vm, 0..PAGES / 2);
            damon.check(&cpu, &vm.mm);
        }
        let found = damon.aggregate();
        let hot: u64 = found
            .iter()
            .filter(|r| r.nr_accesses > 10)
            .map(|r| r.pages())
            .sum();
        if round > 5 {
            assert!(hot.abs_diff(PAGES / 2) < PAGES / 20, "round {round}: {hot}");
        }
        asked = cpu.counters.snapshot().get(Counter::NotifierClearYoungSlow);
    }
    assert!(asked > 0 && asked <= 12 * 20 * 100, "{asked}");
}

#[test]
fn a_page_made_old_is_young_again_only_when_touched() {
    let (host, vm, at) = guest(1, TlbConfig::OFF);
    let cpu = Cpu::new(&host);
    let attrs = Attrs {
        samples: 4,
        min_regions: 3,
        max_regions: 3,
    };
    let mut damon = Damon::new(at, 1, attrs, 1).expect("a sampler");
    // Not there yet: neither made old nor young.
    damon.prepare(&cpu, &vm.mm);
    damon.check(&cpu, &vm.mm);
    assert_eq!(damon.regions()[0].nr_accesses, 0);
    touch(&cpu, &vm, 0..1);
    for (touched, wanted) in [(false, 0), (true, 1), (false, 1), (true, 2)] {
        damon.prepare(&cpu, &vm.mm);
        if touched {
            touch(&cpu, &vm, 0..1);
        }
        damon.check(&cpu, &vm.mm);
        assert_eq!(damon.regions()[0].nr_accesses, wanted);
    }
}

#[test]
fn a_scan_without_flush_misses_what_the_tlb_holds() {
    let tlb = TlbConfig {
        entries: 16,
        ways: 16,
    };
    let (host, vm, at) = guest(64, tlb);
    let cpu = Cpu::new(&host);
    touch(&cpu, &vm, 0..64);
    let scan = |flush| young::scan(&cpu, &vm.mm, at, 64, flush).expect("scanned");
    assert!(scan(Flush::No).iter().all(|&young| young));
    // The last 16 are in the TLB: touched again, they set nothing.
    touch(&cpu, &vm, 48..64);
    assert!(!scan(Flush::No).iter().any(|&young| young));
    touch(&cpu, &vm, 0..64);
    assert!(scan(Flush::EachPage).iter().filter(|&&young| young).count() >= 48);
    touch(&cpu, &vm, 60..64);
    let found = scan(Flush::EachPage);
    let pages: Vec<_> = (0..64).filter(|&n| found[n]).collect();
    assert_eq!(pages, [60, 61, 62, 63]);
    assert!(young::scan(&cpu, &vm.mm, at + 1, 1, Flush::No).is_err());
    assert!(young::scan(&cpu, &vm.mm, at, u64::MAX, Flush::No).is_err());
}

#[test]
fn what_cannot_be_watched_is_refused() {
    let sane = Attrs::default();
    for (pages, attrs) in [
        (0, sane),
        (u64::MAX, sane),
        (64, Attrs { samples: 0, ..sane }),
        (
            64,
            Attrs {
                min_regions: 2,
                ..sane
            },
        ),
        (
            64,
            Attrs {
                max_regions: 9,
                ..sane
            },
        ),
        (
            64,
            Attrs {
                max_regions: u32::MAX,
                ..sane
            },
        ),
    ] {
        let refused = Damon::new(0, pages, attrs, 1).err();
        let refused = refused.unwrap_or_else(|| panic!("{pages} pages, {attrs:?} were accepted"));
        assert_eq!(refused.errno(), youngbit_core::Errno::EINVAL, "{refused}");
    }
}
