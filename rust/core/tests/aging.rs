//! Aging: who is walked, what is asked, where folios go, and that the lists
//! stay in order whatever happens.

mod budget;

use proptest::prelude::*;
use std::collections::BTreeSet;
use std::sync::Arc;
use youngbit_core::lru_gen::lruvec::{ANON, FILE, MmStat, hist_from_seq};
use youngbit_core::lru_gen::{Asking, age, caps, check, evict, run_aging};
use youngbit_core::mm::pagetable::{ACCESSED, PMD, level_size};
use youngbit_core::mm::{FolioWord, Kind, Memcg, Mm, MmuNotifier, PAGE_SIZE, VmFlags};
use youngbit_core::sync::atomic::{AtomicBool, Ordering};
use youngbit_core::sync::lock::Mutex;
use youngbit_core::sync::thread;
use youngbit_core::trace::Counter;
use youngbit_core::{Cpu, Errno, Host, HostConfig};

fn machine(pages: u64) -> (Arc<Host>, Arc<Memcg>, Arc<Mm>) {
    let host = Host::new(&HostConfig {
        nodes: vec![pages],
        swap_pages: 1 << 16,
        virtual_clock: true,
    })
    .expect("a valid host");
    let memcg = host.create_memcg("test").expect("memcg");
    let mm = host.create_mm(memcg.id).expect("mm");
    (host, memcg, mm)
}

fn map(host: &Host, mm: &Arc<Mm>, kind: Kind, pages: u64, flags: VmFlags) -> u64 {
    let space = host.create_space(kind, pages);
    mm.mmap(None, pages * PAGE_SIZE, &space, 0, flags)
        .expect("mapped")
}

fn populate(cpu: &Cpu, mm: &Arc<Mm>, at: u64, pages: u64) {
    for n in 0..pages {
        mm.touch(cpu, at + n * PAGE_SIZE, true, None)
            .expect("touched");
    }
}

fn generation_of(host: &Host, mm: &Mm, address: u64) -> usize {
    let pfn = host.memory.head(mm.lookup(address).1.pfn());
    host.memory.word(pfn).get().generation().expect("listed")
}

/// A secondary MMU whose pages are young as told, and which notes the calls.
struct Secondary {
    young: Mutex<BTreeSet<u64>>,
    calls: Mutex<Vec<(u64, u64, bool)>>,
}

impl Secondary {
    fn register(cpu: &Cpu, mm: &Mm, fast: bool) -> Arc<Self> {
        let secondary = Arc::new(Secondary {
            young: Mutex::new(BTreeSet::new()),
            calls: Mutex::new(Vec::new()),
        });
        let subscription =
            mm.register_notifier(cpu, Arc::clone(&secondary) as Arc<dyn MmuNotifier>);
        subscription.set_fast_aging(&mm.notifiers, fast);
        secondary
    }
    fn take_calls(&self) -> Vec<(u64, u64, bool)> {
        std::mem::take(&mut *self.calls.lock())
    }
}

impl MmuNotifier for Secondary {
    fn clear_flush_young(&self, cpu: &Cpu, start: u64, end: u64) -> bool {
        self.clear_young(cpu, start, end, false)
    }
    fn clear_young(&self, _: &Cpu, start: u64, end: u64, fast_only: bool) -> bool {
        self.calls.lock().push((start, end, fast_only));
        let mut young = self.young.lock();
        let found: Vec<u64> = young.range(start..end).copied().collect();
        found.iter().for_each(|page| {
            young.remove(page);
        });
        !found.is_empty()
    }
    fn test_young(&self, _: &Cpu, _: u64, _: bool) -> bool {
        panic!("aging never only tests")
    }
    fn invalidate_range_start(&self, _: &Cpu, _: u64, _: u64) {}
    fn invalidate_range_end(&self, _: &Cpu, _: u64, _: u64) {}
    fn release(&self, _: &Cpu) {}
}

#[test]
fn a_page_found_young_enters_what_was_the_youngest_generation() {
    let (host, memcg, mm) = machine(4096);
    let cpu = Cpu::new(&host);
    let at = map(&host, &mm, Kind::Anon, 64, VmFlags::default());
    populate(&cpu, &mm, at, 64);
    let first = age(&cpu, &memcg, 0, true, true).expect("aged");
    assert!(first.advanced && first.seq == 3);
    for n in 0..16 {
        mm.touch(&cpu, at + n * PAGE_SIZE, false, None)
            .expect("touched");
    }
    let pass = age(&cpu, &memcg, 0, true, true).expect("aged");
    let get = |counter| pass.counters.get(counter);
    assert_eq!(
        (
            get(Counter::MmLeafTotal),
            get(Counter::MmLeafYoung),
            get(Counter::MmLeafOld)
        ),
        (64, 16, 48)
    );
    assert_eq!(get(Counter::FoliosPromoted), 16);
    assert_eq!(generation_of(&host, &mm, at), 4 % 4);
    assert_eq!(generation_of(&host, &mm, at + 16 * PAGE_SIZE), 3);
    let stats = &memcg.lruvecs[0].mm_state.stats[hist_from_seq(4)];
    let stat = |stat: MmStat| stats[stat as usize].load(Ordering::Relaxed);
    assert_eq!((stat(MmStat::LeafTotal), stat(MmStat::LeafYoung)), (64, 16));
    check::check(&host).expect("consistent");
}

#[test]
fn the_oldest_generation_folds_into_the_next() {
    let (host, memcg, mm) = machine(16384);
    let cpu = Cpu::new(&host);
    // More than one lock hold moves.
    let at = map(&host, &mm, Kind::Anon, 10_000, VmFlags::default());
    populate(&cpu, &mm, at, 10_000);
    for _ in 0..8 {
        assert!(age(&cpu, &memcg, 0, true, true).expect("aged").advanced);
        check::check(&host).expect("consistent");
    }
    let lruvec = &memcg.lruvecs[0];
    assert_eq!(
        (lruvec.max_seq(), lruvec.min_seq(ANON), lruvec.min_seq(FILE)),
        (11, 8, 8)
    );
    assert_eq!(generation_of(&host, &mm, at), 0);
}

#[test]
fn a_new_generation_begins_with_an_empty_history_and_leaves_the_others_theirs() {
    let (host, memcg, _mm) = machine(64);
    let cpu = Cpu::new(&host);
    let lruvec = &memcg.lruvecs[0];
    for _ in 0..6 {
        let kept = [&lruvec.evicted, &lruvec.refaulted, &lruvec.protected];
        let all = || kept.iter().flat_map(|kept| kept.iter().enumerate());
        for (_, generation) in all() {
            for sum in generation.iter().flatten() {
                sum.store(7, Ordering::Relaxed);
            }
        }
        let seq = lruvec.max_seq();
        run_aging(&cpu, &memcg, lruvec, seq, true, true).expect("valid");
        for (hist, generation) in all() {
            let left = if hist == hist_from_seq(seq + 1) { 0 } else { 7 };
            let mut sums = generation.iter().flatten();
            assert!(
                sums.all(|sum| sum.load(Ordering::Relaxed) == left),
                "the history in slot {hist} after generation {}: {generation:?}",
                seq + 1
            );
        }
    }
}

#[test]
fn pages_that_cannot_be_swapped_wrap_into_the_new_youngest() {
    let (host, memcg, mm) = machine(4096);
    let cpu = Cpu::new(&host);
    let at = map(&host, &mm, Kind::Anon, 100, VmFlags::default());
    populate(&cpu, &mm, at, 100);
    for _ in 0..4 {
        age(&cpu, &memcg, 0, false, true).expect("aged");
        check::check(&host).expect("consistent");
    }
    let lruvec = &memcg.lruvecs[0];
    assert_eq!(lruvec.max_seq(), 7);
    assert_eq!(lruvec.nr_pages(7 % 4, ANON), 100);
    assert_eq!(lruvec.lru_size(ANON, true), 100);
}

#[test]
fn errors_are_the_kernels() {
    let (host, memcg, _mm) = machine(4096);
    let cpu = Cpu::new(&host);
    let lruvec = &memcg.lruvecs[0];
    let run = |seq, force| run_aging(&cpu, &memcg, lruvec, seq, true, force);
    assert!(!run(2, true).expect("an older one does nothing"));
    assert_eq!(run(4, true).expect_err("younger").errno(), Errno::EINVAL);
    assert_eq!(run(3, false).expect_err("all exist").errno(), Errno::ERANGE);
    assert!(run(3, true).expect("forced"));
    assert_eq!(
        age(&cpu, &memcg, 1, true, true).expect_err("node").errno(),
        Errno::EINVAL
    );
}

#[test]
fn the_series_asks_fast_subscribers_first_and_always() {
    let (host, memcg, mm) = machine(4096);
    let cpu = Cpu::new(&host);
    let at = map(&host, &mm, Kind::Anon, 8, VmFlags::default());
    populate(&cpu, &mm, at, 8);
    let fast = Secondary::register(&cpu, &mm, true);
    let slow = Secondary::register(&cpu, &mm, false);
    age(&cpu, &memcg, 0, true, true).expect("aged");
    let pages = |calls: Vec<(u64, u64, bool)>| {
        calls.iter().for_each(|&(start, end, fast_only)| {
            assert!(fast_only && end == start + PAGE_SIZE);
        });
        calls
            .iter()
            .map(|&(start, ..)| (start - at) / PAGE_SIZE)
            .collect::<Vec<_>>()
    };
    // Asked although every primary entry was young.
    assert_eq!(pages(fast.take_calls()), (0..8).collect::<Vec<_>>());
    fast.young.lock().insert(at + 3 * PAGE_SIZE);
    slow.young.lock().insert(at + 5 * PAGE_SIZE);
    age(&cpu, &memcg, 0, true, true).expect("aged");
    assert_eq!(
        generation_of(&host, &mm, at + 3 * PAGE_SIZE),
        0,
        "young by the fast one"
    );
    assert_eq!(
        generation_of(&host, &mm, at + 5 * PAGE_SIZE),
        3,
        "the slow one is left alone"
    );
    assert!(slow.take_calls().is_empty());
    assert_eq!(slow.young.lock().len(), 1, "and keeps its bit");
    fast.take_calls();
    // Without the capability nobody is asked; the page is old all the same.
    host.lru_gen.set_caps(caps::ALL & !caps::SECONDARY_MMU_WALK);
    fast.young.lock().insert(at);
    let pass = age(&cpu, &memcg, 0, true, true).expect("aged");
    assert!(fast.take_calls().is_empty());
    assert_eq!(pass.counters.get(Counter::MmLeafOld), 8);
    assert_eq!(fast.young.lock().len(), 1);
}

#[test]
fn what_aging_asks_is_a_parameter() {
    let (host, memcg, mm) = machine(4096);
    let cpu = Cpu::new(&host);
    let at = map(&host, &mm, Kind::Anon, 4, VmFlags::default());
    populate(&cpu, &mm, at, 4);
    let secondary = Secondary::register(&cpu, &mm, false);
    host.lru_gen.set_asking(Asking::Accurate);
    assert_eq!(host.lru_gen.caps(), 0x7, "6.12 has no capability 0x8");
    age(&cpu, &memcg, 0, true, true).expect("aged");
    let calls = secondary.take_calls();
    assert!(calls.len() == 4 && calls.iter().all(|&(.., fast_only)| !fast_only));
    host.lru_gen.set_asking(Asking::None);
    age(&cpu, &memcg, 0, true, true).expect("aged");
    assert!(secondary.take_calls().is_empty());
}

#[test]
fn pages_of_other_cgroups_are_not_asked_about() {
    let (host, memcg, mm) = machine(4096);
    let cpu = Cpu::new(&host);
    let other = host.create_memcg("other").expect("memcg");
    let theirs = host.create_mm(other.id).expect("mm");
    let space = host.create_space(Kind::Shmem, 8);
    let there = theirs
        .mmap(None, 8 * PAGE_SIZE, &space, 0, VmFlags::default())
        .expect("mapped");
    populate(&cpu, &theirs, there, 4);
    let at = mm
        .mmap(None, 8 * PAGE_SIZE, &space, 0, VmFlags::default())
        .expect("mapped");
    populate(&cpu, &mm, at, 8);
    let secondary = Secondary::register(&cpu, &mm, true);
    let pass = age(&cpu, &memcg, 0, true, true).expect("aged");
    let asked: Vec<u64> = secondary
        .take_calls()
        .iter()
        .map(|c| (c.0 - at) / PAGE_SIZE)
        .collect();
    assert_eq!(asked, [4, 5, 6, 7]);
    assert_eq!(pass.counters.get(Counter::MmLeafTotal), 8);
    assert_eq!(pass.counters.get(Counter::MmLeafYoung), 4);
}

#[test]
fn a_huge_page_is_asked_about_as_a_whole() {
    let (host, memcg, mm) = machine(4096);
    let cpu = Cpu::new(&host);
    let flags = VmFlags {
        thp: true,
        ..VmFlags::default()
    };
    let at = map(&host, &mm, Kind::Anon, 512, flags);
    mm.touch(&cpu, at, true, None).expect("touched");
    assert_eq!(mm.lookup(at).0.level, PMD);
    let secondary = Secondary::register(&cpu, &mm, true);
    age(&cpu, &memcg, 0, true, true).expect("aged");
    let whole = (at, at + level_size(PMD), true);
    assert_eq!(
        secondary.take_calls(),
        [whole],
        "although the primary bit was set"
    );
    assert!(!mm.lookup(at).1.is_young());
    secondary.young.lock().insert(at + 100 * PAGE_SIZE);
    age(&cpu, &memcg, 0, true, true).expect("aged");
    assert_eq!(generation_of(&host, &mm, at), 0);
    assert_eq!(memcg.lruvecs[0].nr_pages(0, ANON), 512);
    check::check(&host).expect("consistent");
}

#[test]
fn mappings_without_recency_are_skipped() {
    let (host, memcg, mm) = machine(4096);
    let cpu = Cpu::new(&host);
    let flags = [
        VmFlags {
            locked: true,
            ..VmFlags::default()
        },
        VmFlags {
            no_recency: true,
            ..VmFlags::default()
        },
    ];
    for flags in flags {
        let at = map(&host, &mm, Kind::Anon, 16, flags);
        populate(&cpu, &mm, at, 16);
    }
    let shmem = map(&host, &mm, Kind::Shmem, 16, VmFlags::default());
    populate(&cpu, &mm, shmem, 16);
    let file = map(&host, &mm, Kind::File, 16, VmFlags::default());
    populate(&cpu, &mm, file, 16);
    let pass = age(&cpu, &memcg, 0, false, true).expect("aged");
    assert_eq!(
        pass.counters.get(Counter::MmLeafTotal),
        16,
        "the file alone"
    );
    let pass = age(&cpu, &memcg, 0, true, true).expect("aged");
    assert_eq!(pass.counters.get(Counter::MmLeafTotal), 32, "and the shmem");
    assert_eq!(pass.counters.get(Counter::MmLeafYoung), 16);
}

#[test]
fn locks_are_only_tried() {
    let (host, memcg, mm) = machine(4096);
    let cpu = Cpu::new(&host);
    let at = map(&host, &mm, Kind::Anon, 1024, VmFlags::default());
    populate(&cpu, &mm, at, 1024);
    let pass = {
        let (entry, _) = mm.lookup(at);
        let _busy = mm.tables.meta(entry.table).ptl.lock();
        age(&cpu, &memcg, 0, true, true).expect("aged")
    };
    assert_eq!(pass.counters.get(Counter::PtlTrylockFailed), 1);
    assert_eq!(
        pass.counters.get(Counter::MmLeafYoung),
        512,
        "the other table"
    );
    assert!(mm.lookup(at).1.is_young());
    let pass = {
        let _writer = mm.mmap_lock.write();
        age(&cpu, &memcg, 0, true, true).expect("aged")
    };
    assert_eq!(pass.counters.get(Counter::MmapTrylockFailed), 1);
    assert!(pass.advanced && pass.counters.get(Counter::MmLeafTotal) == 0);
}

#[test]
fn without_force_only_those_that_ran_are_walked_and_only_busy_tables() {
    let (host, memcg, mm) = machine(8192);
    let cpu = Cpu::new(&host);
    let at = map(&host, &mm, Kind::Anon, 1024, VmFlags::default());
    populate(&cpu, &mm, at, 1024);
    let lruvec = &memcg.lruvecs[0];
    let pass = |force| age(&cpu, &memcg, 0, true, force).expect("aged").counters;
    let evict_empty = || {
        // The generation that every page has left, and those below it.
        let seq = lruvec.max_seq() - 3;
        let gone = evict::run_eviction(&cpu, &memcg, lruvec, seq, 200, u64::MAX);
        assert_eq!(gone.expect("retired"), 0);
        assert!(lruvec.nr_gens(ANON) < 4);
    };
    // A new mm is scanned whole, forced or not; both tables are busy.
    assert_eq!(pass(true).get(Counter::MmNonleafAdded), 2);
    // One table is used: it alone is visited again after this pass.
    for n in 0..64 {
        mm.touch(&cpu, at + n * 8 * PAGE_SIZE, false, None)
            .expect("touched");
    }
    let second = pass(true);
    assert_eq!(second.get(Counter::MmNonleafTotal), 2);
    assert_eq!(
        second.get(Counter::MmNonleafAdded),
        1,
        "64 of 512 is just enough"
    );
    // Everything young again, so that nothing is left in old generations.
    populate(&cpu, &mm, at, 1024);
    pass(true);
    for n in 0..64 {
        mm.touch(&cpu, at + n * 8 * PAGE_SIZE, false, None)
            .expect("touched");
    }
    pass(true);
    populate(&cpu, &mm, at, 1024);
    evict_empty();
    mm.note_ran();
    let third = pass(false);
    assert_eq!(
        (
            third.get(Counter::MmNonleafTotal),
            third.get(Counter::MmNonleafFound)
        ),
        (2, 1)
    );
    evict_empty();
    assert_eq!(
        pass(false).get(Counter::MmNonleafTotal),
        0,
        "it did not run"
    );
}

#[test]
fn an_mm_that_is_new_turns_force_scan_on_for_those_after_it() {
    let (host, memcg, old) = machine(8192);
    let cpu = Cpu::new(&host);
    let add = |mm: &Arc<Mm>| {
        let at = map(&host, mm, Kind::Anon, 4, VmFlags::default());
        populate(&cpu, mm, at, 4);
        mm.ran.store(0, Ordering::Relaxed);
    };
    add(&old);
    let pass = age(&cpu, &memcg, 0, true, true).expect("aged").counters;
    assert_eq!(pass.get(Counter::MmLeafTotal), 4);
    // None of them ran; the first is known, the others are new.
    let others = [(); 2].map(|()| host.create_mm(memcg.id).expect("mm"));
    others.iter().for_each(add);
    // Retire what the first pass emptied, so that an unforced one may run.
    let gone = evict::run_eviction(&cpu, &memcg, &memcg.lruvecs[0], 2, 200, u64::MAX);
    assert_eq!(gone.expect("retired"), 0);
    let pass = age(&cpu, &memcg, 0, true, false).expect("aged").counters;
    assert_eq!(pass.get(Counter::MmLeafTotal), 8, "the two new ones");
}

#[test]
fn a_promoted_page_starts_to_count_references_anew() {
    let (host, memcg, mm) = machine(4096);
    let cpu = Cpu::new(&host);
    let at = map(&host, &mm, Kind::File, 2, VmFlags::default());
    for n in [0, 1] {
        mm.touch(&cpu, at + n * PAGE_SIZE, false, None)
            .expect("touched");
    }
    age(&cpu, &memcg, 0, true, true).expect("aged");
    let refs = |n: u64| {
        let word = host.memory.word(mm.lookup(at + n * PAGE_SIZE).1.pfn());
        youngbit_core::lru_gen::folio::lru_refs(word.get())
    };
    for n in [0, 1] {
        let pfn = mm.lookup(at + n * PAGE_SIZE).1.pfn();
        (0..9).for_each(|_| youngbit_core::lru_gen::mark_accessed(&host.memory, pfn));
        assert_eq!(refs(n), 4, "as far as it counts");
    }
    mm.touch(&cpu, at, false, None).expect("touched");
    age(&cpu, &memcg, 0, true, true).expect("aged");
    assert_eq!((refs(0), refs(1)), (0, 4));
}

#[test]
fn the_nonleaf_bit_narrows_only_without_the_capability() {
    let (host, memcg, mm) = machine(4096);
    let cpu = Cpu::new(&host);
    let at = map(&host, &mm, Kind::Anon, 16, VmFlags::default());
    populate(&cpu, &mm, at, 16);
    let pmd = || {
        // The entry above the PTE table, found as the hardware finds it.
        let mut table = mm.pgd;
        for level in (PMD + 1..=4).rev() {
            let index = youngbit_core::mm::pagetable::level_index(at, level);
            let entry = mm.tables.entries(table)[index].load(Ordering::Relaxed);
            table = youngbit_core::mm::Pte(entry).table_id();
        }
        &mm.tables.entries(table)[youngbit_core::mm::pagetable::level_index(at, PMD)]
    };
    pmd().fetch_and(!ACCESSED, Ordering::Relaxed);
    let total = |mask| {
        host.lru_gen.set_caps(mask);
        let pass = age(&cpu, &memcg, 0, true, true).expect("aged");
        pass.counters.get(Counter::MmLeafTotal)
    };
    assert_eq!(total(0xf), 16, "ignored with 0x8");
    assert_eq!(total(0x3), 16, "ignored without 0x4");
    assert_eq!(total(0x7), 0, "old, so skipped");
    mm.touch(&cpu, at, false, None).expect("touched");
    pmd().fetch_or(ACCESSED, Ordering::Relaxed);
    assert_eq!(total(0x7), 16);
    assert_eq!(pmd().load(Ordering::Relaxed) & ACCESSED, 0, "and cleared");
    host.lru_gen.set_asking(Asking::Accurate);
    assert_eq!(total(0x7), 16, "6.12 never narrows a forced scan");
}

#[test]
fn mms_come_and_go_during_iterations() {
    let (host, memcg, mm) = machine(4096);
    let cpu = Cpu::new(&host);
    let mut mms = vec![mm];
    for round in 0..20u64 {
        let new = host.create_mm(memcg.id).expect("mm");
        let at = map(&host, &new, Kind::Anon, 4, VmFlags::default());
        populate(&cpu, &new, at, 4);
        mms.push(new);
        if round % 3 == 2 {
            let gone = mms.remove((round % 2) as usize);
            host.exit_mm(&cpu, &gone);
        }
        let pass = age(&cpu, &memcg, 0, true, true).expect("aged");
        assert!(pass.advanced);
        let live = mms
            .iter()
            .filter(|mm| mm.mmap_lock.read().iter().count() > 0)
            .count();
        assert_eq!(
            pass.counters.get(Counter::MmLeafTotal),
            4 * live as u64,
            "round {round}"
        );
        check::check(&host).expect("consistent");
    }
}

#[test]
fn walkers_share_the_list_and_each_mm_is_walked_by_one() {
    let (host, memcg, _first) = machine(4096);
    let mms: Vec<_> = {
        let cpu = Cpu::new(&host);
        (0..40)
            .map(|_| {
                let mm = host.create_mm(memcg.id).expect("mm");
                let at = map(&host, &mm, Kind::Anon, 3, VmFlags::default());
                populate(&cpu, &mm, at, 3);
                mm
            })
            .collect()
    };
    for _ in 0..50 {
        let seq = memcg.lruvecs[0].max_seq();
        let passes: Vec<(bool, u64)> = thread::scope(|s| {
            let agers: Vec<_> = (0..3)
                .map(|_| {
                    s.spawn(|| {
                        let cpu = Cpu::new(&host);
                        let lruvec = &memcg.lruvecs[0];
                        let won = run_aging(&cpu, &memcg, lruvec, seq, true, true).expect("aged");
                        (won, cpu.counters.get(Counter::MmLeafTotal))
                    })
                })
                .collect();
            agers
                .into_iter()
                .map(|ager| ager.join().expect("an ager"))
                .collect()
        });
        assert_eq!(passes.iter().filter(|(won, _)| *won).count(), 1);
        let slots: u64 = passes.iter().map(|(_, slots)| slots).sum();
        // Each once; but an ager that has taken an mm and is overtaken by the
        // one that ends the iteration finds the generation moved, and leaves
        // that mm. Two can be.
        let mms = mms.len() as u64;
        assert!(
            slots.is_multiple_of(3) && (mms - 2..=mms).contains(&(slots / 3)),
            "{slots} entries of {mms} mms were looked at"
        );
    }
}

/// A secondary MMU in whose first call another ager overtakes the walk.
struct Overtaker {
    host: Arc<Host>,
    memcg: Arc<Memcg>,
    calls: Mutex<u64>,
}

impl MmuNotifier for Overtaker {
    fn clear_flush_young(&self, _: &Cpu, _: u64, _: u64) -> bool {
        false
    }
    fn clear_young(&self, _: &Cpu, _: u64, _: u64, _: bool) -> bool {
        let first = {
            let mut calls = self.calls.lock();
            *calls += 1;
            *calls == 1
        };
        if first {
            let cpu = Cpu::new(&self.host);
            assert!(
                age(&cpu, &self.memcg, 0, true, true)
                    .expect("aged")
                    .advanced
            );
        }
        false
    }
    fn test_young(&self, _: &Cpu, _: u64, _: bool) -> bool {
        false
    }
    fn invalidate_range_start(&self, _: &Cpu, _: u64, _: u64) {}
    fn invalidate_range_end(&self, _: &Cpu, _: u64, _: u64) {}
    fn release(&self, _: &Cpu) {}
}

#[test]
fn a_walk_ends_with_its_batch_when_the_generation_has_moved() {
    let (host, memcg, mm) = machine(16384);
    let cpu = Cpu::new(&host);
    // A batch of promotions below one PUD entry, and a few pages below the next.
    let space = host.create_space(Kind::Anon, 0);
    let starts = [4u64 << 30, 5 << 30];
    for (start, pages) in starts.into_iter().zip([4096, 8]) {
        let len = pages * PAGE_SIZE;
        mm.mmap(
            Some(start),
            len,
            &space,
            start / PAGE_SIZE,
            VmFlags::default(),
        )
        .expect("mapped");
        populate(&cpu, &mm, start, pages);
    }
    // Moved away from the youngest generation, so that promoting them is work.
    age(&cpu, &memcg, 0, true, true).expect("aged");
    starts
        .into_iter()
        .zip([4096, 8])
        .for_each(|(start, pages)| populate(&cpu, &mm, start, pages));
    let overtaker = Arc::new(Overtaker {
        host: Arc::clone(&host),
        memcg: Arc::clone(&memcg),
        calls: Mutex::new(0),
    });
    let subscription = mm.register_notifier(&cpu, Arc::clone(&overtaker) as Arc<dyn MmuNotifier>);
    subscription.set_fast_aging(&mm.notifiers, true);
    let pass = age(&cpu, &memcg, 0, true, true).expect("aged");
    assert!(!pass.advanced, "the other did");
    assert_eq!(
        pass.counters.get(Counter::MmLeafTotal),
        4096,
        "not the second part"
    );
    assert_eq!(memcg.lruvecs[0].max_seq(), 5);
    check::check(&host).expect("consistent");
}

#[test]
fn concurrent_agers_have_one_winner_a_sequence() {
    let (host, memcg, mm) = machine(1 << 15);
    let regions: Vec<u64> = {
        let cpu = Cpu::new(&host);
        let more = host.create_mm(memcg.id).expect("mm");
        [&mm, &more]
            .into_iter()
            .map(|mm| {
                let at = map(&host, mm, Kind::Anon, 4096, VmFlags::default());
                populate(&cpu, mm, at, 4096);
                at
            })
            .collect()
    };
    let start = memcg.lruvecs[0].max_seq();
    let won = Mutex::new(Vec::new());
    let done = AtomicBool::new(false);
    thread::scope(|s| {
        let agers: Vec<_> = (0..3)
            .map(|_| {
                s.spawn(|| {
                    let cpu = Cpu::new(&host);
                    // However many lose: of those that begin alike one wins.
                    while won.lock().len() < 200 {
                        let pass = age(&cpu, &memcg, 0, true, true).expect("aged");
                        if pass.advanced {
                            won.lock().push(pass.seq);
                        }
                    }
                })
            })
            .collect();
        s.spawn(|| {
            let cpu = Cpu::new(&host);
            let mut n = 0;
            while !done.load(Ordering::Relaxed) {
                let page = regions[0] + n * 7 % 4096 * PAGE_SIZE;
                mm.touch(&cpu, page, true, None).expect("touched");
                if n % 64 == 0 {
                    mm.munmap(&cpu, page, PAGE_SIZE).expect("unmapped");
                    let space = host.create_space(Kind::Anon, 0);
                    mm.mmap(Some(page), PAGE_SIZE, &space, 0, VmFlags::default())
                        .expect("mapped again");
                }
                n += 1;
            }
        });
        for ager in agers {
            ager.join().expect("an ager");
        }
        done.store(true, Ordering::Relaxed);
    });
    let mut won = won.into_inner();
    won.sort_unstable();
    let end = memcg.lruvecs[0].max_seq();
    assert_eq!(won, (start..end).collect::<Vec<_>>(), "each number once");
    check::check(&host).expect("consistent");
}

#[derive(Clone, Debug)]
enum Do {
    Map(u8, u16),
    Touch(u8, u16, bool),
    Unmap(u8),
    UnmapPart(u8, u16, u16),
    Age { swap: bool, force: bool },
    Caps(u32),
    Ask(u8),
    Guest(u8, u16),
    Reference(u8, u16),
    Evict { swappiness: u8, pages: u8 },
}

fn program() -> impl Strategy<Value = Vec<Do>> {
    let op = prop_oneof![
        2 => (0..4u8, 1..1200u16).prop_map(|(kind, pages)| Do::Map(kind, pages)),
        8 => (any::<u8>(), any::<u16>(), any::<bool>()).prop_map(|(r, p, w)| Do::Touch(r, p, w)),
        1 => any::<u8>().prop_map(Do::Unmap),
        1 => (any::<u8>(), any::<u16>(), 1..64u16).prop_map(|(r, p, n)| Do::UnmapPart(r, p, n)),
        6 => (any::<bool>(), any::<bool>()).prop_map(|(swap, force)| Do::Age { swap, force }),
        1 => (0..16u32).prop_map(Do::Caps),
        1 => (0..3u8).prop_map(Do::Ask),
        4 => (any::<u8>(), any::<u16>()).prop_map(|(r, p)| Do::Guest(r, p)),
        2 => (any::<u8>(), any::<u16>()).prop_map(|(r, p)| Do::Reference(r, p)),
        2 => (0..=200u8, any::<u8>()).prop_map(|(swappiness, pages)| Do::Evict { swappiness, pages }),
    ];
    prop::collection::vec(op, 1..60)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(budget::cases(300)))]
    #[test]
    fn lists_and_sizes_agree_after_every_step(program in program()) {
        let (host, memcg, mm) = machine(16384);
        let cpu = Cpu::new(&host);
        let secondary = Secondary::register(&cpu, &mm, true);
        let mut regions: Vec<(u64, u64)> = Vec::new();
        for op in program {
            let region = |r: u8| (!regions.is_empty()).then(|| regions[r as usize % regions.len()]);
            match op {
                Do::Map(kind, pages) if regions.len() < 8 => {
                    let pages = u64::from(pages);
                    let (kind, thp) = match kind {
                        0 => (Kind::Anon, false),
                        1 => (Kind::Anon, true),
                        2 => (Kind::File, false),
                        _ => (Kind::Shmem, false),
                    };
                    let at = map(&host, &mm, kind, pages, VmFlags { thp, ..VmFlags::default() });
                    regions.push((at, pages));
                }
                Do::Touch(r, p, write) => if let Some((at, pages)) = region(r) {
                    // Parts may have been unmapped: a fault is fine.
                    for n in 0..40 {
                        let page = (u64::from(p) + n) % pages;
                        let _ = mm.touch(&cpu, at + page * PAGE_SIZE, write, None);
                    }
                },
                Do::Unmap(r) => if let Some((at, pages)) = region(r) {
                    mm.munmap(&cpu, at, pages * PAGE_SIZE).expect("unmapped");
                    regions.retain(|&(other, _)| other != at);
                },
                Do::UnmapPart(r, p, n) => if let Some((at, pages)) = region(r) {
                    let first = u64::from(p) % pages;
                    let n = u64::from(n).min(pages - first);
                    mm.munmap(&cpu, at + first * PAGE_SIZE, n * PAGE_SIZE).expect("unmapped");
                },
                Do::Age { swap, force } => match age(&cpu, &memcg, 0, swap, force) {
                    Ok(pass) => prop_assert!(pass.advanced),
                    Err(e) => prop_assert!(!force && e.errno() == Errno::ERANGE, "{e}"),
                },
                Do::Caps(mask) => host.lru_gen.set_caps(mask),
                Do::Ask(n) => host.lru_gen.set_asking(
                    [Asking::None, Asking::Accurate, Asking::FastOnly][n as usize]),
                Do::Guest(r, p) => if let Some((at, pages)) = region(r) {
                    secondary.young.lock().insert(at + u64::from(p) % pages * PAGE_SIZE);
                },
                Do::Reference(r, p) => if let Some((at, pages)) = region(r) {
                    let _ = mm.gup(&cpu, at + u64::from(p) % pages * PAGE_SIZE, true);
                },
                Do::Evict { swappiness, pages } => {
                    let lruvec = &memcg.lruvecs[0];
                    let seq = lruvec.max_seq() - 2;
                    evict::run_eviction(&cpu, &memcg, lruvec, seq, swappiness.into(), pages.into())
                        .map_err(|e| TestCaseError::fail(e.to_string()))?;
                }
                Do::Map(..) => {}
            }
            check::check(&host).map_err(TestCaseError::fail)?;
        }
        host.exit_mm(&cpu, &mm);
        check::check(&host).map_err(TestCaseError::fail)?;
    }
}
