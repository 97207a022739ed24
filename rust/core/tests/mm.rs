//! The primary MMU: mapping, faulting, touching, unmapping.

use std::sync::Arc;
use youngbit_core::host::ROOT_MEMCG;
use youngbit_core::mm::folio::{ACTIVE, ANON, DIRTY, REFERENCED};
use youngbit_core::mm::pagetable::{ACCESSED, PMD, PTE, PUD, RW, SPECIAL, level_size};
use youngbit_core::mm::{FolioWord, Kind, Mm, PAGE_SIZE, VmFlags, pagetable};
use youngbit_core::sync::atomic::Ordering;
use youngbit_core::sync::thread;
use youngbit_core::trace::Counter;
use youngbit_core::{Cpu, Errno, Host, HostConfig};

const MIB: u64 = 1 << 20;

fn machine(pages: u64) -> (Arc<Host>, Arc<Mm>) {
    let host = Host::new(&HostConfig {
        nodes: vec![pages],
        swap_pages: 0,
        virtual_clock: true,
    })
    .expect("a valid host");
    let mm = host.create_mm(ROOT_MEMCG).expect("mm");
    (host, mm)
}

fn map(host: &Arc<Host>, mm: &Arc<Mm>, kind: Kind, len: u64, flags: VmFlags) -> u64 {
    let space = host.create_space(kind, len / PAGE_SIZE);
    mm.mmap(None, len, &space, 0, flags).expect("mapped")
}

#[test]
fn a_write_fault_maps_a_page_of_its_own_young_and_dirty() {
    let (host, mm) = machine(1024);
    let cpu = Cpu::new(&host);
    let at = map(&host, &mm, Kind::Anon, 4 * PAGE_SIZE, VmFlags::default());
    mm.touch(&cpu, at, true, Some(7)).expect("touched");
    let (entry, pte) = mm.lookup(at);
    assert_eq!(entry.level, PTE);
    assert!(pte.has(RW | ACCESSED | pagetable::DIRTY) && !pte.has(SPECIAL));
    let word = host.memory.word(pte.pfn()).get();
    assert!(word.has(ANON) && !word.has(ACTIVE), "{word:?}");
    assert_eq!(word.generation(), Some(3), "the youngest: {word:?}");
    assert_eq!(host.memory.mapcount(pte.pfn()), 1);
    assert_eq!(host.memory.content(pte.pfn()).load(Ordering::Relaxed), 7);
    assert_eq!(cpu.counters.get(Counter::PgFault), 1);
    assert_eq!(host.root_memcg().usage(), 1);
}

#[test]
fn a_read_fault_maps_the_zero_page_and_a_write_replaces_it() {
    let (host, mm) = machine(1024);
    let cpu = Cpu::new(&host);
    let at = map(&host, &mm, Kind::Anon, PAGE_SIZE, VmFlags::default());
    mm.touch(&cpu, at, false, None).expect("read");
    assert!(mm.lookup(at).1.has(SPECIAL));
    assert_eq!(host.root_memcg().usage(), 0);
    assert_eq!(mm.gup_fast(&cpu, at, false), None, "no folio is behind it");
    mm.touch(&cpu, at, true, None).expect("written");
    assert!(!mm.lookup(at).1.has(SPECIAL));
    assert_eq!(host.root_memcg().usage(), 1);
}

#[test]
fn huge_pages_map_at_their_level_and_split_when_cut() {
    let (host, mm) = machine(4096);
    let cpu = Cpu::new(&host);
    let thp = VmFlags {
        thp: true,
        ..VmFlags::default()
    };
    let at = map(&host, &mm, Kind::Anon, 4 * MIB, thp);
    mm.touch(&cpu, at + 5 * PAGE_SIZE, true, Some(3))
        .expect("touched");
    let (entry, pte) = mm.lookup(at);
    assert_eq!(entry.level, PMD);
    assert_eq!(host.memory.word(pte.pfn()).get().nr_pages(), 512);
    let page = mm.gup_fast(&cpu, at + 5 * PAGE_SIZE, true).expect("mapped");
    assert_eq!((page.pfn.0, page.level), (pte.pfn().0 + 5, PMD));
    assert_eq!(host.memory.head(page.pfn), pte.pfn());
    assert_eq!(host.memory.content(page.pfn).load(Ordering::Relaxed), 3);
    mm.munmap(&cpu, at, PAGE_SIZE).expect("cut");
    assert!(mm.lookup(at).1.is_none());
    assert_eq!(mm.lookup(at + PAGE_SIZE).0.level, PTE);
    assert_eq!(host.memory.mapcount(pte.pfn()), 511);
    mm.munmap(&cpu, at, 4 * MIB).expect("unmapped");
    assert_eq!(host.root_memcg().usage(), 0);
    assert_eq!(host.memory.nr_free(0), 4095);
}

#[test]
fn hugetlb_pages_of_1_gib_map_at_the_pud() {
    let (host, mm) = machine(2 * (1 << 18));
    let cpu = Cpu::new(&host);
    let hugetlb = VmFlags {
        hugetlb_order: 18,
        ..VmFlags::default()
    };
    let at = map(&host, &mm, Kind::Anon, level_size(PUD), hugetlb);
    mm.touch(&cpu, at + 77 * PAGE_SIZE, true, None)
        .expect("touched");
    assert_eq!(mm.lookup(at).0.level, PUD);
    assert_eq!(mm.mapping_level(&cpu, at), PUD);
    let cut = mm.munmap(&cpu, at, PAGE_SIZE).expect_err("cuts a page");
    assert_eq!(cut.errno(), Errno::EINVAL);
    mm.munmap(&cpu, at, level_size(PUD)).expect("unmapped");
    assert_eq!(host.root_memcg().usage(), 0);
}

#[test]
fn mappings_of_one_file_share_its_pages() {
    let (host, mm) = machine(1024);
    let cpu = Cpu::new(&host);
    let file = host.create_space(Kind::File, 8);
    let len = 8 * PAGE_SIZE;
    let a = mm.mmap(None, len, &file, 0, VmFlags::default()).expect("a");
    let other = host.create_mm(ROOT_MEMCG).expect("mm");
    let b = other
        .mmap(None, len, &file, 0, VmFlags::default())
        .expect("b");
    mm.touch(&cpu, a + PAGE_SIZE, true, Some(9))
        .expect("written");
    other.touch(&cpu, b + PAGE_SIZE, false, None).expect("read");
    let pfn = mm.lookup(a + PAGE_SIZE).1.pfn();
    assert_eq!(other.lookup(b + PAGE_SIZE).1.pfn(), pfn);
    assert_eq!(host.memory.mapcount(pfn), 2);
    assert_eq!(cpu.counters.get(Counter::PgMajFault), 1);
    let mut places = Vec::new();
    file.rmap_walk(1, |mm, _, address| {
        places.push((mm.id, address));
        true
    });
    places.sort_unstable();
    assert_eq!(places, [(mm.id, a + PAGE_SIZE), (other.id, b + PAGE_SIZE)]);
    mm.munmap(&cpu, a, len).expect("unmapped");
    assert!(host.memory.word(pfn).get().has(DIRTY), "the PTE was dirty");
    assert_eq!(host.memory.mapcount(pfn), 1);
}

#[test]
fn gup_faults_pages_in_and_counts_references() {
    let (host, mm) = machine(1024);
    let cpu = Cpu::new(&host);
    let at = map(&host, &mm, Kind::Anon, PAGE_SIZE, VmFlags::default());
    assert_eq!(mm.gup_fast(&cpu, at, true), None);
    let page = mm.gup(&cpu, at, true).expect("faulted");
    assert!(page.writable && page.level == PTE);
    assert!(host.memory.word(page.pfn).get().has(REFERENCED));
    assert_eq!(mm.gup_fast(&cpu, at, true), Some(page));
}

#[test]
fn bad_ranges_and_accesses_name_what_is_wrong() {
    let (host, mm) = machine(1024);
    let cpu = Cpu::new(&host);
    let space = host.create_space(Kind::Anon, 0);
    let flags = VmFlags::default();
    let errno = |r: youngbit_core::Result<u64>| r.expect_err("refused").errno();
    assert_eq!(errno(mm.mmap(None, 0, &space, 0, flags)), Errno::EINVAL);
    assert_eq!(errno(mm.mmap(None, 100, &space, 0, flags)), Errno::EINVAL);
    assert_eq!(
        errno(mm.mmap(Some(5), PAGE_SIZE, &space, 0, flags)),
        Errno::EINVAL
    );
    let top = pagetable::TASK_SIZE;
    assert_eq!(
        errno(mm.mmap(Some(top), PAGE_SIZE, &space, 0, flags)),
        Errno::EINVAL
    );
    let at = mm.mmap(None, PAGE_SIZE, &space, 0, flags).expect("mapped");
    assert_eq!(
        errno(mm.mmap(Some(at), PAGE_SIZE, &space, 0, flags)),
        Errno::EEXIST
    );
    let outside = mm.touch(&cpu, at + PAGE_SIZE, false, None);
    let outside = outside.expect_err("outside");
    assert_eq!(outside.errno(), Errno::EFAULT);
    assert!(outside.to_string().contains("read at 0x"), "{outside}");
    mm.change_flags(at, PAGE_SIZE, |f| f.read_only = true)
        .expect("protected");
    let denied = mm.touch(&cpu, at, true, None).expect_err("read-only");
    assert_eq!(denied.errno(), Errno::EFAULT);
    let unmapped = mm.change_flags(at + MIB, PAGE_SIZE, |_| ());
    assert_eq!(unmapped.expect_err("hole").errno(), Errno::ENOMEM);
}

#[test]
fn running_out_of_frames_is_an_error_that_loses_nothing() {
    let (host, mm) = machine(17);
    let cpu = Cpu::new(&host);
    let at = map(&host, &mm, Kind::Anon, 32 * PAGE_SIZE, VmFlags::default());
    let mut full = None;
    for page in 0..32 {
        if let Err(e) = mm.touch(&cpu, at + page * PAGE_SIZE, true, None) {
            full = Some((page, e));
            break;
        }
    }
    let (page, error) = full.expect("16 frames do not hold 32 pages");
    assert_eq!((page, error.errno()), (16, Errno::ENOMEM));
    assert_eq!(host.root_memcg().usage(), 16);
    mm.munmap(&cpu, at, 32 * PAGE_SIZE).expect("unmapped");
    assert_eq!(host.root_memcg().usage(), 0);
}

#[test]
fn threads_that_fault_the_same_pages_agree() {
    let (host, mm) = machine(4096);
    let pages = 1024;
    let at = map(
        &host,
        &mm,
        Kind::Anon,
        pages * PAGE_SIZE,
        VmFlags::default(),
    );
    thread::scope(|s| {
        for _ in 0..3 {
            s.spawn(|| {
                let cpu = Cpu::new(&host);
                for page in 0..pages {
                    mm.touch(&cpu, at + page * PAGE_SIZE, page % 2 == 0, None)
                        .expect("touched");
                    mm.gup(&cpu, at + page * PAGE_SIZE, true).expect("got");
                }
            });
        }
    });
    assert_eq!(host.root_memcg().usage(), pages);
    let cpu = Cpu::new(&host);
    host.exit_mm(&cpu, &mm);
    drop(cpu);
    assert_eq!(host.root_memcg().usage(), 0);
    assert_eq!(host.memory.nr_free(0), 4095);
}
