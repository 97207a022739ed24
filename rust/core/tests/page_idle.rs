//! Idle page tracking through primary and secondary mappings.

use std::sync::Arc;
use youngbit_core::host::ROOT_MEMCG;
use youngbit_core::mm::folio::{IDLE, YOUNG};
use youngbit_core::mm::page_idle::{self, Idle};
use youngbit_core::mm::{FolioWord, Kind, Mm, MmuNotifier, PAGE_SIZE, VmFlags};
use youngbit_core::sync::atomic::{AtomicU64, Ordering};
use youngbit_core::{Cpu, Host, HostConfig};

fn machine(virtual_pages: u64, kind: Kind, flags: VmFlags) -> (Arc<Host>, Arc<Mm>, u64) {
    let host = Host::new(&HostConfig {
        nodes: vec![4096],
        swap_pages: 0,
        virtual_clock: true,
    })
    .expect("a valid host");
    let mm = host.create_mm(ROOT_MEMCG).expect("mm");
    let space = host.create_space(kind, virtual_pages);
    let at = mm
        .mmap(None, virtual_pages * PAGE_SIZE, &space, 0, flags)
        .expect("mapped");
    (host, mm, at)
}

/// A secondary MMU that has accessed some pages, a bit each.
struct Secondary {
    start: u64,
    young: AtomicU64,
}

impl MmuNotifier for Secondary {
    fn clear_flush_young(&self, cpu: &Cpu, start: u64, end: u64) -> bool {
        self.clear_young(cpu, start, end, false)
    }
    fn clear_young(&self, _: &Cpu, start: u64, end: u64, fast_only: bool) -> bool {
        assert!(!fast_only, "page_idle asks accurately");
        let pages = (start - self.start) / PAGE_SIZE..(end - self.start) / PAGE_SIZE;
        let mask = pages.fold(0, |mask, page| mask | 1u64 << page);
        self.young.fetch_and(!mask, Ordering::Relaxed) & mask != 0
    }
    fn test_young(&self, _: &Cpu, _: u64, _: bool) -> bool {
        unreachable!("page_idle clears")
    }
    fn invalidate_range_start(&self, _: &Cpu, _: u64, _: u64) {}
    fn invalidate_range_end(&self, _: &Cpu, _: u64, _: u64) {}
    fn release(&self, _: &Cpu) {}
}

#[test]
fn only_touched_pages_stop_being_idle() {
    for kind in [Kind::Anon, Kind::Shmem, Kind::File] {
        let (host, mm, at) = machine(32, kind, VmFlags::default());
        let cpu = Cpu::new(&host);
        let end = at + 32 * PAGE_SIZE;
        for n in 0..32 {
            mm.touch(&cpu, at + n * PAGE_SIZE, true, None)
                .expect("touched");
        }
        let not_marked = page_idle::test_range(&cpu, &mm, at, end).expect("tested");
        assert_eq!((not_marked.present, not_marked.idle), (32, 0), "{kind:?}");
        let all = Idle {
            present: 32,
            idle: 32,
        };
        assert_eq!(
            page_idle::mark_range(&cpu, &mm, at, end).expect("marked"),
            all
        );
        assert_eq!(
            page_idle::test_range(&cpu, &mm, at, end).expect("tested"),
            all
        );
        for n in (0..32).step_by(4) {
            mm.touch(&cpu, at + n * PAGE_SIZE, false, None)
                .expect("touched");
        }
        for n in 0..32 {
            let page = at + n * PAGE_SIZE;
            let found = page_idle::test_range(&cpu, &mm, page, page + PAGE_SIZE).expect("tested");
            assert_eq!(found.idle, u64::from(n % 4 != 0), "{kind:?} page {n}");
        }
        let word = host.memory.word(mm.lookup(at).1.pfn()).get();
        assert!(
            word.has(YOUNG) && !word.has(IDLE),
            "reclaim is told: {word:?}"
        );
    }
}

#[test]
fn a_secondary_access_counts_and_is_asked_for_accurately() {
    let (host, mm, at) = machine(64, Kind::Anon, VmFlags::default());
    let cpu = Cpu::new(&host);
    for n in 0..64 {
        mm.touch(&cpu, at + n * PAGE_SIZE, true, None)
            .expect("touched");
    }
    let secondary = Arc::new(Secondary {
        start: at,
        young: AtomicU64::new(u64::MAX),
    });
    mm.register_notifier(&cpu, Arc::clone(&secondary) as Arc<dyn MmuNotifier>);
    let end = at + 64 * PAGE_SIZE;
    page_idle::mark_range(&cpu, &mm, at, end).expect("marked");
    assert_eq!(secondary.young.load(Ordering::Relaxed), 0, "marking clears");
    secondary.young.store(0b1011, Ordering::Relaxed);
    let found = page_idle::test_range(&cpu, &mm, at, end).expect("tested");
    assert_eq!((found.present, found.idle), (64, 61));
}

#[test]
fn a_huge_page_is_idle_as_a_whole() {
    let flags = VmFlags {
        thp: true,
        ..VmFlags::default()
    };
    let (host, mm, at) = machine(1024, Kind::Anon, flags);
    let cpu = Cpu::new(&host);
    mm.touch(&cpu, at, true, None).expect("touched");
    let end = at + 1024 * PAGE_SIZE;
    let all = page_idle::mark_range(&cpu, &mm, at, end).expect("marked");
    assert_eq!((all.present, all.idle), (512, 512));
    mm.touch(&cpu, at + 77 * PAGE_SIZE, false, None)
        .expect("touched");
    let found = page_idle::test_range(&cpu, &mm, at, end).expect("tested");
    assert_eq!((found.present, found.idle), (512, 0));
}

#[test]
fn what_is_no_user_memory_is_never_idle() {
    let (host, mm, at) = machine(4, Kind::Anon, VmFlags::default());
    let cpu = Cpu::new(&host);
    mm.touch(&cpu, at, false, None).expect("the zero page");
    let found = page_idle::mark_range(&cpu, &mm, at, at + 4 * PAGE_SIZE).expect("marked");
    assert_eq!((found.present, found.idle), (1, 0));
    assert!(page_idle::mark_range(&cpu, &mm, at + PAGE_SIZE, at).is_err());
    assert!(!page_idle::mark(&cpu, youngbit_core::mm::Pfn(1 << 30)));
}

#[test]
fn a_range_of_everything_is_asked_in_no_time() {
    // Tables say where nothing is: 128 TiB are not visited page by page.
    let host = Host::new(&HostConfig {
        nodes: vec![64],
        swap_pages: 0,
        virtual_clock: true,
    })
    .expect("a valid host");
    let cpu = Cpu::new(&host);
    let mm = host.create_mm(ROOT_MEMCG).expect("mm");
    let found = page_idle::mark_range(&cpu, &mm, 0, youngbit_core::mm::pagetable::TASK_SIZE);
    assert_eq!(found.expect("nothing to mark").present, 0);
}
