//! Reclaim: nothing is lost, nothing leaks, whatever happens meanwhile.

mod budget;

use proptest::prelude::*;
use rand::{Rng, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;
use std::sync::Arc;
use youngbit_core::kvm::memslot::MemoryRegion;
use youngbit_core::kvm::vm::{Vm, VmConfig};
use youngbit_core::lru_gen::check::check;
use youngbit_core::lru_gen::evict::run_eviction;
use youngbit_core::lru_gen::kswapd::with_kswapd;
use youngbit_core::lru_gen::lruvec::{ANON, FILE};
use youngbit_core::lru_gen::policy::{Choice, Policy, View};
use youngbit_core::lru_gen::reclaim::{proactive_reclaim, set_high, set_max};
use youngbit_core::lru_gen::{Asking, age, caps, debugfs};
use youngbit_core::mm::address_space::Slot;
use youngbit_core::mm::folio::{LRU, REFERENCED, WORKINGSET};
use youngbit_core::mm::{
    AddressSpace, FolioWord, Kind, Memcg, Mm, MmuNotifier, PAGE_SIZE, VmFlags, conserve, filemap,
};
use youngbit_core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use youngbit_core::sync::thread;
use youngbit_core::trace::Counter;
use youngbit_core::{Cpu, Errno, Error, Host, HostConfig};

struct Machine {
    host: Arc<Host>,
    memcg: Arc<Memcg>,
    mm: Arc<Mm>,
    spaces: Vec<Arc<AddressSpace>>,
}

impl Machine {
    fn new(pages: u64, swap_pages: u64) -> Self {
        let host = Host::new(&HostConfig {
            nodes: vec![pages],
            swap_pages,
            virtual_clock: true,
        })
        .expect("a valid host");
        let memcg = host.create_memcg("test").expect("memcg");
        let mm = host.create_mm(memcg.id).expect("mm");
        Machine {
            host,
            memcg,
            mm,
            spaces: Vec::new(),
        }
    }

    fn cpu(&self) -> Cpu {
        Cpu::new(&self.host)
    }

    fn map(&mut self, kind: Kind, pages: u64) -> u64 {
        let space = self.host.create_space(kind, pages);
        let at = self
            .mm
            .mmap(None, pages * PAGE_SIZE, &space, 0, VmFlags::default())
            .expect("mapped");
        self.spaces.push(space);
        at
    }

    /// Write `byte(n)` to each page.
    fn fill(&self, cpu: &Cpu, at: u64, pages: u64, byte: impl Fn(u64) -> u8) {
        for n in 0..pages {
            self.mm
                .touch(cpu, at + n * PAGE_SIZE, true, Some(byte(n)))
                .expect("written");
        }
    }

    /// What a page holds; nothing else is running.
    fn content(&self, cpu: &Cpu, address: u64) -> u8 {
        self.mm.touch(cpu, address, false, None).expect("read");
        let page = self.mm.gup(cpu, address, false).expect("present");
        self.host.memory.content(page.pfn).load(Ordering::Relaxed)
    }

    /// Make `n` generations, so that what is not used is old.
    fn age(&self, cpu: &Cpu, n: usize) {
        for _ in 0..n {
            age(cpu, &self.memcg, 0, true, true).expect("aged");
        }
    }

    /// Evict the oldest generation, up to `nr` pages.
    fn evict(&self, cpu: &Cpu, swappiness: u32, nr: u64) -> Result<u64, Error> {
        let lruvec = &self.memcg.lruvecs[0];
        let seq = lruvec.min_seq(if swappiness == 0 { FILE } else { ANON });
        run_eviction(cpu, &self.memcg, lruvec, seq, swappiness, nr)
    }

    /// Every page is somewhere, once: mapped ones have a name, slots have one
    /// holder, charges are what is used.
    fn check(&self) {
        check(&self.host).expect("consistent lists");
        let memory = &self.host.memory;
        let mut used = 0;
        for n in 1..memory.nr_pages() {
            let pfn = youngbit_core::mm::Pfn(n as u32);
            let word = memory.word(pfn).get();
            if word.has(LRU) {
                used += 1;
            }
        }
        assert_eq!(
            used,
            self.memcg.usage(),
            "charged pages that are on no list"
        );
        let in_use = memory.nr_pages() - 1 - memory.nr_free(0);
        assert_eq!(in_use, used, "frames that are neither free nor on the LRU");
        let mut slots = 0;
        self.host.swap.for_each_used(|slot, names, cached| {
            slots += 1;
            assert!(names > 0 || cached.is_some(), "slot {slot} is nobody's");
            if let Some(pfn) = cached {
                assert_eq!(memory.swap(pfn).load(Ordering::Relaxed), slot + 1);
            }
        });
        assert_eq!(self.host.swap.nr_slots() - self.host.swap.nr_free(), slots);
    }

    /// End the process, delete the files, and see that everything is free.
    fn tear_down(self) {
        let cpu = self.cpu();
        self.host.exit_mm(&cpu, &self.mm);
        for space in &self.spaces {
            if space.kind != Kind::Anon {
                self.host.remove_space(&cpu, space).expect("removed");
            }
        }
        drop(cpu);
        let memory = &self.host.memory;
        assert_eq!(memory.nr_free(0), memory.nr_pages() - 1, "frames leaked");
        assert_eq!(self.memcg.usage(), 0, "charges leaked");
        let swap = &self.host.swap;
        assert_eq!(swap.nr_free(), swap.nr_slots(), "slots leaked");
        check(&self.host).expect("consistent lists");
    }
}

#[test]
fn evicted_pages_come_back_as_they_were() {
    let mut m = Machine::new(4096, 2048);
    let cpu = m.cpu();
    let at: Vec<u64> = [Kind::Anon, Kind::Shmem, Kind::File]
        .into_iter()
        .map(|kind| m.map(kind, 512))
        .collect();
    for (n, &start) in at.iter().enumerate() {
        m.fill(&cpu, start, 512, |page| (page * 7 + n as u64) as u8);
    }
    // File pages must be clean to go; the others are written by reclaim.
    assert_eq!(filemap::writeback(&cpu, &m.spaces[2], u64::MAX), 512);
    m.age(&cpu, 3);
    let freed = m.evict(&cpu, 200, u64::MAX).expect("evicted");
    drop(cpu);
    let cpu = m.cpu();
    assert_eq!(freed, 3 * 512);
    assert_eq!(m.memcg.usage(), 0);
    assert_eq!(m.host.swap.nr_slots() - m.host.swap.nr_free(), 2 * 512);
    for (n, &start) in at.iter().enumerate() {
        for page in 0..512 {
            let expected = (page * 7 + n as u64) as u8;
            assert_eq!(m.content(&cpu, start + page * PAGE_SIZE), expected);
        }
    }
    // All came back through page tables, to the youngest generation.
    let lruvec = &m.memcg.lruvecs[0];
    let youngest = (lruvec.max_seq() % 4) as usize;
    assert_eq!(lruvec.nr_pages(youngest, ANON), 1024);
    assert_eq!(lruvec.nr_pages(youngest, FILE), 512);
    assert_eq!(m.memcg.stat.get(Counter::RefaultAnon), 1024);
    assert_eq!(m.memcg.stat.get(Counter::RefaultFile), 512);
    assert_eq!(m.memcg.stat.get(Counter::PgMajFault), 2 * 512 + 2 * 512);
    assert_eq!(m.host.swap.nr_free(), m.host.swap.nr_slots());
    drop(cpu);
    m.check();
    m.tear_down();
}

#[test]
fn a_guests_writes_survive_eviction() {
    let mut m = Machine::new(4096, 2048);
    let cpu = m.cpu();
    let at = m.map(Kind::Anon, 512);
    let vm = Vm::create(&cpu, &m.mm, VmConfig::default()).expect("a VM");
    vm.set_memory_region(
        &cpu,
        &MemoryRegion {
            as_id: 0,
            slot: 0,
            flags: 0,
            guest_phys_addr: 0,
            memory_size: 512 * PAGE_SIZE,
            userspace_addr: at,
        },
    )
    .expect("a memslot");
    for round in 0u64..4 {
        for page in 0..512 {
            let byte = (page * 3 + round) as u8;
            vm.access(&cpu, 0, page, true, Some(byte)).expect("written");
        }
        m.age(&cpu, 4);
        assert_eq!(m.evict(&cpu, 200, u64::MAX).expect("evicted"), 512);
        for page in 0..512 {
            let byte = (page * 3 + round) as u8;
            assert_eq!(m.content(&cpu, at + page * PAGE_SIZE), byte, "page {page}");
        }
    }
    vm.destroy(&cpu).expect("destroyed");
    drop(vm);
    drop(cpu);
    m.check();
    m.tear_down();
}

#[test]
fn huge_pages_are_split_and_evicted() {
    const PAGES: u64 = 4 * 512;
    let mut m = Machine::new(16384, 8192);
    let cpu = m.cpu();
    let space = m.host.create_space(Kind::Anon, 0);
    let flags = VmFlags {
        thp: true,
        ..VmFlags::default()
    };
    let at =
        m.mm.mmap(None, PAGES * PAGE_SIZE, &space, 0, flags)
            .expect("mapped");
    m.spaces.push(space);
    m.fill(&cpu, at, PAGES, |n| (n * 5) as u8);
    assert_eq!(m.mm.mapping_level(&cpu, at), 2);
    // Part of one is gone already, and one is in use.
    m.mm.munmap(&cpu, at + 512 * PAGE_SIZE, 100 * PAGE_SIZE)
        .expect("unmapped");
    m.age(&cpu, 3);
    m.mm.touch(&cpu, at + 1024 * PAGE_SIZE, false, None)
        .expect("read");
    let freed = m.evict(&cpu, 200, u64::MAX).expect("evicted");
    assert_eq!(freed, PAGES - 100 - 512);
    // What was unmapped went with the split.
    assert_eq!(m.memcg.usage(), 512);
    assert_eq!(m.mm.mapping_level(&cpu, at + 1024 * PAGE_SIZE), 2);
    for n in (0..PAGES).filter(|n| !(512..612).contains(n)) {
        assert_eq!(m.content(&cpu, at + n * PAGE_SIZE), (n * 5) as u8);
    }
    drop(cpu);
    check(&m.host).expect("consistent lists");
    m.tear_down();
}

#[test]
fn used_pages_stay_and_go_to_the_youngest_generation() {
    let mut m = Machine::new(4096, 2048);
    let cpu = m.cpu();
    let at = m.map(Kind::Anon, 1024);
    m.fill(&cpu, at, 1024, |_| 1);
    m.age(&cpu, 3);
    for page in (0..1024).step_by(8) {
        m.mm.touch(&cpu, at + page * PAGE_SIZE, false, None)
            .expect("read");
    }
    let freed = m.evict(&cpu, 200, u64::MAX).expect("evicted");
    assert_eq!(freed, 1024 - 128);
    let lruvec = &m.memcg.lruvecs[0];
    let youngest = (lruvec.max_seq() % 4) as usize;
    assert_eq!(lruvec.nr_pages(youngest, ANON), 128);
    for page in 0..1024 {
        let (_, pte) = m.mm.lookup(at + page * PAGE_SIZE);
        assert_eq!(pte.is_present(), page % 8 == 0, "page {page}");
    }
    // The table had enough young neighbours for the next walk to visit it.
    assert!(cpu.counters.get(Counter::LookArounds) >= 16);
    drop(cpu);
    m.check();
    m.tear_down();
}

#[test]
fn without_a_walk_context_neighbours_are_activated() {
    let mut m = Machine::new(4096, 2048);
    let cpu = m.cpu();
    let at = m.map(Kind::Anon, 512);
    m.fill(&cpu, at, 512, |_| 1);
    m.age(&cpu, 3);
    for page in 0..256 {
        m.mm.touch(&cpu, at + page * PAGE_SIZE, false, None)
            .expect("read");
    }
    // The limit makes the task itself reclaim: no walk context.
    set_max(&cpu, &m.memcg, 300).expect("kept");
    assert!(m.memcg.usage() <= 300);
    for page in 0..256 {
        let (_, pte) = m.mm.lookup(at + page * PAGE_SIZE);
        assert!(pte.is_present(), "page {page} was used");
    }
    drop(cpu);
    m.check();
    m.tear_down();
}

#[test]
fn the_two_youngest_generations_are_not_evicted() {
    let mut m = Machine::new(1024, 512);
    let cpu = m.cpu();
    let at = m.map(Kind::Anon, 128);
    m.fill(&cpu, at, 128, |_| 1);
    let lruvec = &m.memcg.lruvecs[0];
    let max_seq = lruvec.max_seq();
    for seq in [max_seq - 1, max_seq, max_seq + 1] {
        let refused = run_eviction(&cpu, &m.memcg, lruvec, seq, 200, 1).expect_err("refused");
        assert_eq!(refused.errno(), Errno::EINVAL);
    }
    assert_eq!(
        run_eviction(&cpu, &m.memcg, lruvec, max_seq - 2, 200, u64::MAX).expect("empty"),
        0
    );
    assert_eq!(m.memcg.usage(), 128);
    drop(cpu);
    m.tear_down();
}

#[test]
fn a_failing_device_loses_nothing() {
    let mut m = Machine::new(4096, 2048);
    let cpu = m.cpu();
    let anon = m.map(Kind::Anon, 256);
    let shmem = m.map(Kind::Shmem, 256);
    m.fill(&cpu, anon, 256, |n| n as u8);
    m.fill(&cpu, shmem, 256, |n| !(n as u8));
    m.age(&cpu, 3);
    m.host.swap.fail_writes(100);
    let freed = m.evict(&cpu, 200, u64::MAX).expect("evicted");
    assert_eq!(freed, 512 - 100);
    drop(cpu);
    m.check();
    let cpu = m.cpu();
    for n in 0..256 {
        assert_eq!(m.content(&cpu, anon + n * PAGE_SIZE), n as u8);
        assert_eq!(m.content(&cpu, shmem + n * PAGE_SIZE), !(n as u8));
    }
    drop(cpu);
    m.check();
    m.tear_down();
}

#[test]
fn a_failing_file_device_loses_nothing_and_is_told_once() {
    let mut m = Machine::new(1 << 12, 64);
    let cpu = m.cpu();
    let at = m.map(Kind::File, 256);
    m.fill(&cpu, at, 256, |n| n as u8 | 1);
    let space = Arc::clone(&m.spaces[0]);
    m.host.spaces.fail_writes(100);
    let error = filemap::fsync(&cpu, &space).expect_err("a hundred failed");
    assert_eq!(error.errno(), Errno::EIO);
    assert!(error.to_string().contains("100 times"), "{error}");
    // The others went; told once, and written when the device works again.
    m.age(&cpu, 3);
    let freed = m.evict(&cpu, 0, 256).expect("evicted");
    assert_eq!(freed, 156, "the dirty ones stay");
    assert_eq!(filemap::fsync(&cpu, &space).expect("works again"), 100);
    m.age(&cpu, 3);
    assert_eq!(m.evict(&cpu, 0, 256).expect("evicted"), 100);
    for n in 0..256 {
        assert_eq!(m.content(&cpu, at + n * PAGE_SIZE), n as u8 | 1);
    }
    // A limit that only writeback could keep: an error, and nothing is lost.
    m.fill(&cpu, at, 256, |n| n as u8 ^ 0x55);
    m.host.spaces.fail_writes(u32::MAX);
    let refused = set_max(&cpu, &m.memcg, 64);
    assert!(refused.is_err() || m.memcg.usage() > 64, "{refused:?}");
    m.host.spaces.fail_writes(0);
    for n in 0..256 {
        assert_eq!(m.content(&cpu, at + n * PAGE_SIZE), n as u8 ^ 0x55);
    }
    drop(cpu);
    m.check();
    m.tear_down();
}

#[test]
fn without_swap_only_file_pages_go() {
    let mut m = Machine::new(4096, 100);
    let cpu = m.cpu();
    let anon = m.map(Kind::Anon, 512);
    let file = m.map(Kind::File, 512);
    m.fill(&cpu, anon, 512, |_| 1);
    for n in 0..512 {
        m.mm.touch(&cpu, file + n * PAGE_SIZE, false, None)
            .expect("read");
    }
    m.age(&cpu, 3);
    assert_eq!(m.evict(&cpu, 200, u64::MAX).expect("evicted"), 512 + 100);
    assert_eq!(m.host.swap.nr_free(), 0);
    // What found no slot stays, in the youngest generation.
    assert_eq!(m.memcg.usage(), 412);
    // Faults still work, and give slots back, for swap is full.
    for n in 0..512 {
        assert_eq!(m.content(&cpu, anon + n * PAGE_SIZE), 1);
    }
    assert_eq!(m.host.swap.nr_free(), 100);
    drop(cpu);
    m.check();
    m.tear_down();
}

#[test]
fn swappiness_zero_leaves_anonymous_pages() {
    let mut m = Machine::new(4096, 2048);
    let cpu = m.cpu();
    let anon = m.map(Kind::Anon, 256);
    let file = m.map(Kind::File, 256);
    m.fill(&cpu, anon, 256, |_| 1);
    for n in 0..256 {
        m.mm.touch(&cpu, file + n * PAGE_SIZE, false, None)
            .expect("read");
    }
    m.age(&cpu, 3);
    assert_eq!(m.evict(&cpu, 0, u64::MAX).expect("evicted"), 256);
    assert_eq!(m.host.swap.nr_free(), 2048);
    drop(cpu);
    m.tear_down();
}

#[test]
fn a_tier_that_refaults_is_protected() {
    let mut m = Machine::new(8192, 512);
    let cpu = m.cpu();
    m.map(Kind::File, 2048);
    let space = Arc::clone(&m.spaces[0]);
    let read = |from: u64, to: u64, times: usize| {
        for _ in 0..times {
            for n in from..to {
                filemap::read(&cpu, &m.memcg, &space, n).expect("read");
            }
        }
    };
    let cached = |from: u64, to: u64| {
        (from..to)
            .filter(|&n| matches!(space.slot(n), Slot::Page(_)))
            .count()
    };
    // Read three times: two references beyond the first, the third tier.
    read(0, 1536, 3);
    read(1536, 2048, 1);
    // Once only: a page that aging moves to the next generation starts anew.
    m.age(&cpu, 1);
    let lruvec = &m.memcg.lruvecs[0];
    assert_eq!(lruvec.tier_to_evict(FILE), 3);
    m.evict(&cpu, 1, 1024).expect("evicted");
    assert_eq!((cached(0, 1024), cached(1024, 2048)), (0, 1024));
    // They come back at once: to evict that tier was a mistake.
    read(0, 1024, 1);
    assert_eq!(m.memcg.stat.get(Counter::ActivateFile), 1024);
    assert_eq!(m.memcg.stat.get(Counter::RestoreFile), 0);
    assert_eq!(lruvec.tier_to_evict(FILE), 1);
    m.evict(&cpu, 1, u64::MAX).expect("evicted");
    assert_eq!((cached(1024, 1536), cached(1536, 2048)), (512, 0));
    let seq = lruvec.min_seq(FILE) - 1;
    let protected = &lruvec.protected[(seq % 4) as usize][FILE];
    assert_eq!(protected[2].load(Ordering::Relaxed), 512);
    drop(cpu);
    m.check();
    m.tear_down();
}

#[test]
fn a_page_read_as_often_as_counts_is_protected_in_any_case() {
    let mut m = Machine::new(8192, 512);
    let cpu = m.cpu();
    m.map(Kind::File, 1024);
    let space = Arc::clone(&m.spaces[0]);
    for n in 0..1024 {
        for _ in 0..if n % 16 == 0 { 6 } else { 2 } {
            filemap::read(&cpu, &m.memcg, &space, n).expect("read");
        }
    }
    // Once only: a page that aging moves to the next generation starts anew.
    m.age(&cpu, 1);
    assert_eq!(m.memcg.lruvecs[0].tier_to_evict(FILE), 3);
    assert_eq!(m.evict(&cpu, 1, u64::MAX).expect("evicted"), 1024 - 64);
    for n in 0..1024 {
        let cached = matches!(space.slot(n), Slot::Page(_));
        assert_eq!(cached, n % 16 == 0, "page {n}");
    }
    drop(cpu);
    m.check();
    m.tear_down();
}

#[test]
fn dirty_file_pages_wait_for_writeback_and_then_go_first() {
    let mut m = Machine::new(4096, 512);
    let cpu = m.cpu();
    m.map(Kind::File, 256);
    let space = Arc::clone(&m.spaces[0]);
    for n in 0..256 {
        filemap::write(&cpu, &m.memcg, &space, n, n as u8).expect("written");
    }
    m.age(&cpu, 3);
    assert_eq!(m.evict(&cpu, 1, u64::MAX).expect("nothing"), 0);
    assert_eq!(m.memcg.usage(), 256);
    assert_eq!(filemap::writeback(&cpu, &space, u64::MAX), 256);
    m.age(&cpu, 1);
    assert_eq!(m.evict(&cpu, 1, u64::MAX).expect("evicted"), 256);
    for n in 0..256 {
        let byte = filemap::read(&cpu, &m.memcg, &space, n).expect("read");
        assert_eq!(byte, n as u8);
    }
    drop(cpu);
    m.check();
    m.tear_down();
}

#[test]
fn a_memory_limit_is_kept_by_whoever_faults() {
    let mut m = Machine::new(8192, 8192);
    let cpu = m.cpu();
    let at = m.map(Kind::Anon, 2048);
    set_max(&cpu, &m.memcg, 1024).expect("set");
    for round in 0..3 {
        for n in 0..2048 {
            m.mm.touch(&cpu, at + n * PAGE_SIZE, true, Some((n + round) as u8))
                .expect("written");
            assert!(m.memcg.usage() <= 1024);
        }
    }
    for n in 0..2048 {
        assert_eq!(m.content(&cpu, at + n * PAGE_SIZE), (n + 2) as u8);
    }
    drop(cpu);
    m.check();
    m.tear_down();
}

#[test]
fn a_limit_that_cannot_be_kept_is_an_error() {
    let mut m = Machine::new(4096, 0);
    let cpu = m.cpu();
    let at = m.map(Kind::Anon, 256);
    set_max(&cpu, &m.memcg, 100).expect("set");
    let mut faulted = 0;
    let error = (0..256)
        .find_map(|n| {
            let done = m.mm.touch(&cpu, at + n * PAGE_SIZE, true, Some(1));
            faulted += u64::from(done.is_ok());
            done.err()
        })
        .expect("there is no swap");
    assert_eq!(error.errno(), Errno::ENOMEM);
    assert!(error.to_string().contains("100 pages"), "{error}");
    assert_eq!(faulted, 100);
    assert!(cpu.counters.get(Counter::OomEvents) > 0);
    drop(cpu);
    m.check();
    m.tear_down();
}

#[test]
fn memory_high_slows_down_and_never_fails() {
    let mut m = Machine::new(8192, 8192);
    let cpu = m.cpu();
    let at = m.map(Kind::Anon, 1024);
    set_high(&cpu, &m.memcg, 512).expect("set");
    m.fill(&cpu, at, 1024, |_| 1);
    assert!(m.memcg.usage() <= 512 + 64, "{}", m.memcg.usage());
    assert_eq!(cpu.counters.get(Counter::HighThrottleNs), 0);
    drop(cpu);
    m.check();
    m.tear_down();
    // Without swap it cannot be kept: the task is slowed down, and goes on.
    let mut m = Machine::new(8192, 0);
    let cpu = m.cpu();
    let at = m.map(Kind::Anon, 1024);
    set_high(&cpu, &m.memcg, 512).expect("set");
    m.fill(&cpu, at, 1024, |_| 1);
    assert_eq!(m.memcg.usage(), 1024);
    assert!(cpu.counters.get(Counter::HighThrottleNs) > 0);
    drop(cpu);
    m.tear_down();
}

#[test]
fn proactive_reclaim_has_what_it_asks_for_or_says_so() {
    let mut m = Machine::new(8192, 8192);
    let cpu = m.cpu();
    let at = m.map(Kind::Anon, 2048);
    m.fill(&cpu, at, 2048, |_| 1);
    let freed = proactive_reclaim(&cpu, &m.memcg, 512, None).expect("reclaimed");
    assert!((512..=1024).contains(&freed), "{freed}");
    assert_eq!(m.memcg.usage(), 2048 - freed);
    let too_much = proactive_reclaim(&cpu, &m.memcg, 4096, None).expect_err("not there");
    assert_eq!(too_much.errno(), Errno::EAGAIN);
    drop(cpu);
    m.check();
    m.tear_down();
}

#[test]
fn a_full_machine_reclaims_from_all_its_cgroups() {
    let mut m = Machine::new(2048, 8192);
    let other = m.host.create_memcg("other").expect("memcg");
    let cold = m.host.create_mm(other.id).expect("mm");
    let cpu = m.cpu();
    let space = m.host.create_space(Kind::Anon, 0);
    let theirs = cold
        .mmap(None, 1024 * PAGE_SIZE, &space, 0, VmFlags::default())
        .expect("mapped");
    for n in 0..1024 {
        cold.touch(&cpu, theirs + n * PAGE_SIZE, true, Some(3))
            .expect("written");
    }
    let at = m.map(Kind::Anon, 2048);
    m.fill(&cpu, at, 2048, |n| n as u8);
    assert!(cpu.counters.get(Counter::KswapdRuns) > 0);
    assert!(m.host.memory.nr_free(0) > 0);
    assert!(
        other.usage() < 1024,
        "the cold cgroup was not reclaimed from"
    );
    for n in 0..2048 {
        assert_eq!(m.content(&cpu, at + n * PAGE_SIZE), n as u8);
    }
    m.host.exit_mm(&cpu, &cold);
    assert_eq!(other.usage(), 0);
    drop(cpu);
    m.check();
    m.tear_down();
}

#[test]
fn a_protected_working_set_is_an_out_of_memory_event() {
    let mut m = Machine::new(1024, 8192);
    let cpu = m.cpu();
    m.host.lru_gen.set_min_ttl_ms(1000);
    let at = m.map(Kind::Anon, 1024);
    // Time stands still: every generation is younger than a second.
    m.fill(&cpu, at, 1024, |_| 1);
    let events = cpu.counters.get(Counter::OomEvents);
    assert!(events > 0);
    m.host.clock.advance_ns(2_000_000_000);
    m.fill(&cpu, at, 200, |_| 1);
    assert_eq!(cpu.counters.get(Counter::OomEvents), events);
    drop(cpu);
    m.tear_down();
}

/// A secondary MMU whose every answer is "young", and which fails on demand.
#[derive(Default)]
struct Failing {
    on_young: AtomicBool,
    on_invalidate: AtomicBool,
    depth: AtomicU32,
    invalidations: AtomicU64,
}

impl Failing {
    fn raise(cpu: &Cpu, what: &str) {
        cpu.raise(Error::new(Errno::EIO, format!("{what} failed")));
    }
}

impl MmuNotifier for Failing {
    fn clear_flush_young(&self, cpu: &Cpu, start: u64, end: u64) -> bool {
        self.clear_young(cpu, start, end, false)
    }
    fn clear_young(&self, cpu: &Cpu, _start: u64, _end: u64, _fast_only: bool) -> bool {
        if self.on_young.load(Ordering::Relaxed) {
            Self::raise(cpu, "clear_young");
        }
        false
    }
    fn test_young(&self, _cpu: &Cpu, _address: u64, _fast_only: bool) -> bool {
        false
    }
    fn invalidate_range_start(&self, cpu: &Cpu, _start: u64, _end: u64) {
        self.depth.fetch_add(1, Ordering::Relaxed);
        self.invalidations.fetch_add(1, Ordering::Relaxed);
        if self.on_invalidate.load(Ordering::Relaxed) {
            Self::raise(cpu, "invalidate_range_start");
        }
    }
    fn invalidate_range_end(&self, _cpu: &Cpu, _start: u64, _end: u64) {
        self.depth.fetch_sub(1, Ordering::Relaxed);
    }
    fn release(&self, _cpu: &Cpu) {}
}

#[test]
fn a_notifier_that_raises_ends_the_pass_and_harms_nothing() {
    let mut m = Machine::new(4096, 2048);
    let cpu = m.cpu();
    let at = m.map(Kind::Anon, 1024);
    m.fill(&cpu, at, 1024, |n| n as u8);
    let failing = Arc::new(Failing::default());
    let subscription =
        m.mm.register_notifier(&cpu, Arc::clone(&failing) as Arc<dyn MmuNotifier>);
    m.age(&cpu, 3);
    for asking in [Asking::None, Asking::Accurate, Asking::FastOnly] {
        m.host.lru_gen.set_asking(asking);
        for flag in [&failing.on_young, &failing.on_invalidate] {
            flag.store(true, Ordering::Relaxed);
            let error = m.evict(&cpu, 200, u64::MAX).expect_err("raised");
            assert_eq!(error.errno(), Errno::EIO);
            flag.store(false, Ordering::Relaxed);
            assert!(!cpu.has_error());
            assert_eq!(failing.depth.load(Ordering::Relaxed), 0);
            check(&m.host).expect("consistent lists");
        }
    }
    // The pass that failed had unmapped its batch: 64 pages each time.
    let unmapped = failing.invalidations.load(Ordering::Relaxed);
    assert_eq!(unmapped, 6 * 64);
    for n in 0..1024 {
        assert_eq!(m.content(&cpu, at + n * PAGE_SIZE), n as u8);
    }
    m.mm.unregister_notifier(&cpu, &subscription)
        .expect("unregistered");
    drop(cpu);
    m.check();
    m.tear_down();
}

/// Evicts anonymous pages only, and never ages.
struct AnonOnly(AtomicU32);

impl Policy for AnonOnly {
    fn choose(&self, _view: &View<'_>, _swappiness: u32, _may_io: bool) -> Choice {
        self.0.fetch_add(1, Ordering::Relaxed);
        Choice {
            ty: ANON,
            tier: Some(0),
        }
    }
}

#[test]
fn a_policy_replaces_the_kernels_decisions() {
    let mut m = Machine::new(4096, 2048);
    let cpu = m.cpu();
    let anon = m.map(Kind::Anon, 256);
    let file = m.map(Kind::File, 256);
    m.fill(&cpu, anon, 256, |_| 1);
    for n in 0..256 {
        m.mm.touch(&cpu, file + n * PAGE_SIZE, false, None)
            .expect("read");
    }
    m.age(&cpu, 3);
    let policy = Arc::new(AnonOnly(AtomicU32::new(0)));
    m.host
        .lru_gen
        .policy
        .set(Some(Arc::clone(&policy) as Arc<dyn Policy>));
    // The kernel's choice at swappiness 1 would be file.
    assert_eq!(m.evict(&cpu, 1, 128).expect("evicted"), 128);
    assert_eq!(m.host.swap.nr_slots() - m.host.swap.nr_free(), 128);
    assert_eq!(policy.0.load(Ordering::Relaxed), 2);
    m.host.lru_gen.policy.set(None);
    assert_eq!(m.evict(&cpu, 1, 128).expect("evicted"), 128);
    assert_eq!(m.host.swap.nr_slots() - m.host.swap.nr_free(), 128);
    assert_eq!(policy.0.load(Ordering::Relaxed), 2);
    drop(cpu);
    m.tear_down();
}

const ANON_PAGES: u64 = 192;
const SHMEM_PAGES: u64 = 96;
const FILE_PAGES: u64 = 96;

#[derive(Clone, Debug)]
enum Op {
    Touch {
        region: usize,
        page: u64,
        write: Option<u8>,
    },
    ReadFile {
        region: usize,
        page: u64,
    },
    WriteFile {
        region: usize,
        page: u64,
        byte: u8,
    },
    Evict {
        swappiness: u32,
        nr: u64,
    },
    Age {
        can_swap: bool,
        force: bool,
    },
    Reclaim(u64),
    Max(u64),
    Writeback(u64),
    FailWrites(u32),
    FailFileWrites(u32),
    Capabilities(u32),
    Unmap {
        page: u64,
        pages: u64,
    },
}

fn op() -> impl Strategy<Value = Op> {
    let page = 0..ANON_PAGES;
    prop_oneof![
        12 => (0usize..3, page.clone(), proptest::option::of(any::<u8>()))
            .prop_map(|(region, page, write)| Op::Touch { region, page, write }),
        3 => (1usize..3, page.clone()).prop_map(|(region, page)| Op::ReadFile { region, page }),
        2 => (1usize..3, page.clone(), any::<u8>())
            .prop_map(|(region, page, byte)| Op::WriteFile { region, page, byte }),
        3 => (prop_oneof![Just(0), Just(1), Just(60), Just(200)], 1u64..200)
            .prop_map(|(swappiness, nr)| Op::Evict { swappiness, nr }),
        3 => (any::<bool>(), any::<bool>()).prop_map(|(can_swap, force)| Op::Age { can_swap, force }),
        1 => (1u64..100).prop_map(Op::Reclaim),
        1 => prop_oneof![Just(u64::MAX), 40u64..300].prop_map(Op::Max),
        1 => (1u64..100).prop_map(Op::Writeback),
        1 => (0u32..8).prop_map(Op::FailWrites),
        1 => (0u32..64).prop_map(Op::FailFileWrites),
        1 => (0u32..16).prop_map(|mask| Op::Capabilities(mask | caps::CORE)),
        1 => (page, 1u64..32).prop_map(|(page, pages)| Op::Unmap { page, pages }),
    ]
}

/// Run a program and hold the contents of all pages against what was written.
fn run_program(ops: &[Op], swap_pages: u64) {
    let mut m = Machine::new(1024, swap_pages);
    let sizes = [ANON_PAGES, SHMEM_PAGES, FILE_PAGES];
    let kinds = [Kind::Anon, Kind::Shmem, Kind::File];
    let starts: Vec<u64> = (0..3).map(|n| m.map(kinds[n], sizes[n])).collect();
    let mut written: Vec<Vec<u8>> = sizes.iter().map(|&n| vec![0; n as usize]).collect();
    let mut unmapped = vec![false; ANON_PAGES as usize];
    // Out of memory is an answer; anything else is not.
    let allowed = |done: Result<(), Error>| match done {
        Ok(()) => true,
        Err(e) if matches!(e.errno(), Errno::ENOMEM | Errno::EAGAIN | Errno::ERANGE) => false,
        Err(e) => panic!("{e}"),
    };
    for op in ops {
        let cpu = m.cpu();
        match *op {
            Op::Touch {
                region,
                page,
                write,
            } => {
                let page = page % sizes[region];
                if region == 0 && unmapped[page as usize] {
                    continue;
                }
                let address = starts[region] + page * PAGE_SIZE;
                let done = m.mm.touch(&cpu, address, write.is_some(), write);
                if let (true, Some(byte)) = (allowed(done), write) {
                    written[region][page as usize] = byte;
                }
            }
            Op::ReadFile { region, page } => {
                let page = page % sizes[region];
                match filemap::read(&cpu, &m.memcg, &m.spaces[region], page) {
                    Ok(byte) => assert_eq!(byte, written[region][page as usize]),
                    Err(e) => assert_eq!(e.errno(), Errno::ENOMEM),
                }
            }
            Op::WriteFile { region, page, byte } => {
                let page = page % sizes[region];
                let done = filemap::write(&cpu, &m.memcg, &m.spaces[region], page, byte);
                if allowed(done) {
                    written[region][page as usize] = byte;
                }
            }
            Op::Evict { swappiness, nr } => match m.evict(&cpu, swappiness, nr) {
                Ok(_) => {}
                Err(e) => assert_eq!(e.errno(), Errno::EINVAL),
            },
            Op::Age { can_swap, force } => {
                allowed(age(&cpu, &m.memcg, 0, can_swap, force).map(|_| ()));
            }
            Op::Reclaim(pages) => {
                allowed(proactive_reclaim(&cpu, &m.memcg, pages, None).map(|_| ()));
            }
            Op::Max(pages) => set_max(&cpu, &m.memcg, pages).expect("set"),
            Op::Writeback(pages) => {
                filemap::writeback(&cpu, &m.spaces[2], pages);
            }
            Op::FailWrites(n) => m.host.swap.fail_writes(n),
            Op::FailFileWrites(n) => m.host.spaces.fail_writes(n),
            Op::Capabilities(mask) => m.host.lru_gen.set_caps(mask),
            Op::Unmap { page, pages } => {
                let pages = pages.min(ANON_PAGES - page);
                m.mm.munmap(&cpu, starts[0] + page * PAGE_SIZE, pages * PAGE_SIZE)
                    .expect("unmapped");
                for n in page..page + pages {
                    unmapped[n as usize] = true;
                }
            }
        }
        drop(cpu);
        m.check();
    }
    let cpu = m.cpu();
    m.host.swap.fail_writes(0);
    m.host.spaces.fail_writes(0);
    set_max(&cpu, &m.memcg, u64::MAX).expect("set");
    for region in 0..3 {
        for page in 0..sizes[region] {
            if region == 0 && unmapped[page as usize] {
                continue;
            }
            let found = m.content(&cpu, starts[region] + page * PAGE_SIZE);
            assert_eq!(
                found, written[region][page as usize],
                "region {region} page {page}"
            );
        }
    }
    drop(cpu);
    m.check();
    m.tear_down();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: budget::cases(2000), ..ProptestConfig::default() })]

    #[test]
    fn random_programs_lose_and_leak_nothing(
        ops in proptest::collection::vec(op(), 1..120),
        swap_pages in prop_oneof![Just(0u64), Just(70), Just(1024)],
    ) {
        run_program(&ops, swap_pages);
    }
}

/// Ends the ager when it is dropped.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Tasks, a guest, an ager and kswapd at once, in a fraction of the memory they want.
fn live(seed: u64, limit: bool, file: bool) {
    const TASKS: usize = 2;
    const PAGES: u64 = 512;
    let mut m = Machine::new(if limit { 8192 } else { 800 }, 8192);
    let starts: Vec<u64> = (0..TASKS).map(|_| m.map(Kind::Anon, PAGES)).collect();
    let shared = m.map(if file { Kind::File } else { Kind::Shmem }, PAGES);
    let guest = m.map(Kind::Anon, PAGES);
    let setup = m.cpu();
    let vm = Vm::create(&setup, &m.mm, VmConfig::default()).expect("a VM");
    vm.set_memory_region(
        &setup,
        &MemoryRegion {
            as_id: 0,
            slot: 0,
            flags: 0,
            guest_phys_addr: 0,
            memory_size: PAGES * PAGE_SIZE,
            userspace_addr: guest,
        },
    )
    .expect("a memslot");
    if limit {
        set_max(&setup, &m.memcg, (TASKS as u64 + 2) * PAGES / 4).expect("set");
    }
    let seed_cpu = setup.seed();
    drop(setup);
    let stop = AtomicBool::new(false);
    let m = m;
    let written = with_kswapd(&m.host, &seed_cpu, || {
        thread::scope(|scope| {
            let tasks: Vec<_> = starts
                .iter()
                .enumerate()
                .map(|(n, &start)| {
                    let (m, seed_cpu) = (&m, &seed_cpu);
                    scope.spawn(move || {
                        let cpu = seed_cpu.cpu();
                        let mut random = Xoshiro256PlusPlus::seed_from_u64(seed * 10 + n as u64);
                        let mut mine = vec![0u8; PAGES as usize];
                        for step in 0..20_000u32 {
                            let page = random.random_range(0..PAGES);
                            let write = random.random_range(0..3) == 0;
                            let byte = write.then_some(step as u8 | 1);
                            m.mm.touch(&cpu, start + page * PAGE_SIZE, write, byte)
                                .expect("touched");
                            if let Some(byte) = byte {
                                mine[page as usize] = byte;
                            }
                            let page = random.random_range(0..PAGES);
                            m.mm.touch(&cpu, shared + page * PAGE_SIZE, step % 4 == 0, None)
                                .expect("touched");
                            if step % 8 == 0 {
                                filemap::read(&cpu, &m.memcg, &m.spaces[TASKS], page)
                                    .expect("read");
                            }
                        }
                        mine
                    })
                })
                .collect();
            let vcpu = scope.spawn(|| {
                let cpu = seed_cpu.cpu();
                let mut random = Xoshiro256PlusPlus::seed_from_u64(seed * 10 + 9);
                let mut mine = vec![0u8; PAGES as usize];
                for step in 0..20_000u32 {
                    let page = random.random_range(0..PAGES);
                    let write = random.random_range(0..3) == 0;
                    let byte = write.then_some(step as u8 | 1);
                    vm.access(&cpu, 0, page, write, byte).expect("accessed");
                    if let Some(byte) = byte {
                        mine[page as usize] = byte;
                    }
                }
                mine
            });
            let ager = scope.spawn(|| {
                let cpu = seed_cpu.cpu();
                let mut passes = 0;
                loop {
                    age(&cpu, &m.memcg, 0, true, true).expect("aged");
                    if file {
                        filemap::writeback(&cpu, &m.spaces[TASKS], 64);
                    }
                    // Another reclaimer may have retired the generation.
                    if let Err(e) = m.evict(&cpu, 100, 16) {
                        assert_eq!(e.errno(), Errno::EINVAL);
                    }
                    passes += 1;
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    thread::yield_now();
                }
                passes
            });
            // Also when a task panics.
            let stop_ager = Stop(&stop);
            let mut written: Vec<Vec<u8>> = tasks
                .into_iter()
                .map(|task| task.join().expect("a task"))
                .collect();
            written.push(vcpu.join().expect("a vCPU"));
            drop(stop_ager);
            assert!(ager.join().expect("an ager") > 0);
            written
        })
    })
    .expect("nobody raised");
    m.check();
    let cpu = m.cpu();
    assert!(
        m.memcg.stat.get(Counter::PgSteal) > 1000,
        "hardly any pressure"
    );
    set_max(&cpu, &m.memcg, u64::MAX).expect("set");
    let all: Vec<u64> = starts.iter().copied().chain([guest]).collect();
    for (start, written) in all.iter().zip(&written) {
        for (page, &byte) in written.iter().enumerate() {
            let found = m.content(&cpu, start + page as u64 * PAGE_SIZE);
            assert_eq!(found, byte, "page {page} of {start:#x}");
        }
    }
    vm.destroy(&cpu).expect("destroyed");
    drop(vm);
    drop(cpu);
    m.check();
    m.tear_down();
}

#[test]
fn tasks_a_guest_and_an_ager_at_a_memory_limit() {
    for seed in 1..=3 {
        live(seed, true, false);
        live(seed, true, true);
    }
}

#[test]
fn tasks_a_guest_and_an_ager_on_a_full_machine() {
    for seed in 1..=3 {
        live(seed, false, false);
        live(seed, false, true);
    }
}

/// A hole is no page: who reads it gets zeros, and nothing is allocated.
#[test]
fn a_hole_of_shmem_reads_as_zeros_and_stays_a_hole() {
    let mut m = Machine::new(128, 64);
    m.map(Kind::Shmem, 16);
    let space = Arc::clone(&m.spaces[0]);
    let cpu = m.cpu();
    let read = |index| filemap::read(&cpu, &m.memcg, &space, index).expect("read");
    for index in 0..16 {
        assert_eq!(read(index), 0);
        assert_eq!(space.slot(index), Slot::Empty);
    }
    assert_eq!(m.memcg.usage(), 0);
    // What is in swap comes back for a reader, and is counted.
    filemap::write(&cpu, &m.memcg, &space, 3, 7).expect("written");
    m.age(&cpu, 3);
    assert_eq!(m.evict(&cpu, 200, 16).expect("evicted"), 1);
    assert!(matches!(space.slot(3), Slot::Value(_)));
    assert_eq!(read(3), 7);
    assert_eq!(m.memcg.usage(), 1);
    drop(cpu);
    m.check();
    m.tear_down();
}

/// `SGP_WRITE` marks what it finds accessed; writing to a file does not.
#[test]
fn a_write_by_descriptor_is_a_use_of_shmem_and_not_of_a_file() {
    for (kind, used) in [(Kind::Shmem, true), (Kind::File, false)] {
        let mut m = Machine::new(128, 64);
        m.map(kind, 16);
        let space = Arc::clone(&m.spaces[0]);
        let cpu = m.cpu();
        let write = || filemap::write(&cpu, &m.memcg, &space, 3, 7).expect("written");
        let word = || match space.slot(3) {
            Slot::Page(pfn) => m.host.memory.word(pfn).get(),
            other => panic!("{kind:?}: {other:?}"),
        };
        write();
        assert_eq!(word().has(REFERENCED), used, "{kind:?}, new");
        write();
        assert_eq!(word().has(WORKINGSET), used, "{kind:?}, twice");
        write();
        assert_eq!(word().refs(), u64::from(used), "{kind:?}, three times");
        drop(cpu);
        m.tear_down();
    }
}

/// Removed while file pages are charged to it, a cgroup is there until reclaim
/// has taken them, and then nothing of it is left to be seen.
#[test]
fn a_removed_cgroup_keeps_its_pages_until_reclaim_takes_them() {
    let mut m = Machine::new(2048, 64);
    let cpu = m.cpu();
    let errno = |result: Result<(), Error>| result.expect_err("refused").errno();
    let gone = m.host.create_memcg("gone").expect("memcg");
    let child = m.host.create_memcg("gone/child").expect("memcg");
    m.host.create_memcg("gone too").expect("memcg");
    let mm = m.host.create_mm(gone.id).expect("mm");
    let file = m.host.create_space(Kind::File, 600);
    let at = mm
        .mmap(None, 600 * PAGE_SIZE, &file, 0, VmFlags::default())
        .expect("mapped");
    for n in 0..600 {
        mm.touch(&cpu, at + n * PAGE_SIZE, false, None)
            .expect("read");
    }

    let root = m.host.memcgs()[0].clone();
    assert_eq!(errno(m.host.remove_memcg(&root)), Errno::EBUSY);
    assert_eq!(errno(m.host.remove_memcg(&gone)), Errno::EBUSY, "a child");
    m.host.remove_memcg(&child).expect("empty");
    assert!(m.host.memcg(child.id).is_none());
    assert_eq!(errno(m.host.remove_memcg(&gone)), Errno::EBUSY, "a process");
    m.host.exit_mm(&cpu, &mm);
    m.host.remove_memcg(&gone).expect("no process is left");
    assert_eq!(errno(m.host.remove_memcg(&gone)), Errno::ENOENT);

    // The pages are there, and charged; the number is no one's.
    assert_eq!(gone.usage(), 600);
    assert!(debugfs::show(&m.host).contains("memcg     0 /gone\n"));
    assert!(!debugfs::show(&m.host).contains("/gone/child"));
    let command = format!("+ {} 0 3", gone.id);
    assert_eq!(
        errno(debugfs::write(&cpu, command.as_bytes())),
        Errno::EINVAL
    );
    assert_eq!(errno(m.host.create_mm(gone.id).map(|_| ())), Errno::ENOENT);
    let charged = filemap::read(&cpu, &gone, &file, 599);
    assert_eq!(charged.expect("it is cached"), 0, "no page is charged anew");
    drop(cpu);
    check(&m.host).expect("consistent lists");
    conserve::check(&m.host).expect("every frame is charged");
    let again = m.host.create_memcg("gone").expect("the name is free");
    assert_ne!(again.id, gone.id);

    let cpu = m.cpu();
    // Others want memory: reclaim comes to it too, round by round.
    let own = m.map(Kind::File, 4096);
    let mut touched = 0;
    while gone.usage() > 0 && touched < 4 * 4096 {
        m.mm.touch(&cpu, own + touched % 4096 * PAGE_SIZE, false, None)
            .expect("read");
        touched += 1;
    }
    assert_eq!(gone.usage(), 0);
    assert!(!debugfs::show(&m.host).contains("memcg     0"));
    // One more round takes it off the list of cgroups.
    m.fill(&cpu, own, 4096, |_| 1);
    drop(cpu);
    check(&m.host).expect("consistent lists");
    conserve::check(&m.host).expect("every frame is charged");
}
