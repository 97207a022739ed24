//! The multi-gen LRU: generations made once, folios promoted by their word
//! alone while others isolate them.

use super::RELAXED;
use super::machine::HVA;
use super::model::{self, check, check_up_to, cpu, host_with_swap, i_am, name, number, spawn};
use std::sync::Arc;
use youngbit_core::cpu::Cpu;
use youngbit_core::host::{Host, ROOT_MEMCG};
use youngbit_core::lru_gen::evict::run_eviction;
use youngbit_core::lru_gen::folio::update_gen;
use youngbit_core::lru_gen::walk::Batch;
use youngbit_core::lru_gen::{check as consistency, run_aging};
use youngbit_core::mm::conserve;
use youngbit_core::mm::folio::{LOCKED, LRU, Word};
use youngbit_core::mm::{FolioWord, Kind, Mm, PAGE_SIZE, Pfn, VmFlags, release_if_unused};

fn word_text(word: u64) -> String {
    format!("{:?}", Word(word))
}

/// A process with one anonymous page on the LRU.
fn one_page() -> (Arc<Host>, Arc<Mm>, Pfn) {
    one_page_of(0)
}

/// The same on a host with swap.
fn one_page_of(swap_pages: u64) -> (Arc<Host>, Arc<Mm>, Pfn) {
    let host = host_with_swap(8, swap_pages);
    let (mm, pfn) = map_one_page(&host, &cpu(&host));
    (host, mm, pfn)
}

/// A process on this host with one anonymous page on the LRU.
fn map_one_page(host: &Arc<Host>, cpu: &Cpu) -> (Arc<Mm>, Pfn) {
    let mm = host.create_mm(ROOT_MEMCG).expect("the root cgroup exists");
    let space = host.create_space(Kind::Anon, 0);
    mm.mmap(Some(HVA), PAGE_SIZE, &space, 0, VmFlags::default())
        .expect("room");
    mm.touch(cpu, HVA, true, Some(1)).expect("room");
    let pfn = mm.lookup(HVA).1.pfn();
    name(host.memory.word(pfn), "folio", word_text);
    let memcg = host.root_memcg();
    let lruvec = &memcg.lruvecs[0];
    let (max_seq, born) = lruvec.words(lruvec.max_seq() + 1);
    name(max_seq, "max_seq", number);
    name(born, "the next generation's birth time", number);
    (mm, pfn)
}

/// Make what is there old enough to be evicted, and then some.
fn grow_old(host: &Host, cpu: &Cpu) {
    for _ in 0..3 {
        let memcg = host.root_memcg();
        let lruvec = &memcg.lruvecs[0];
        run_aging(cpu, &memcg, lruvec, lruvec.max_seq(), true, true).expect("valid");
    }
}

/// Evict what [`grow_old`] has made old.
fn evict(host: &Host, cpu: &Cpu) {
    let memcg = host.root_memcg();
    let lruvec = &memcg.lruvecs[0];
    let seq = lruvec.max_seq() - 2;
    run_eviction(cpu, &memcg, lruvec, seq, 200, 1).expect("valid");
}

/// Every folio with a generation is on the list of that generation, and counted.
fn consistent(host: &Host) {
    if let Err(wrong) = consistency::check(host) {
        panic!("lists, sizes and folios' generations disagree: {wrong}");
    }
}

#[test]
fn lru_one_generation_per_sequence() {
    check("two agers of one sequence make one generation", || {
        let (host, _mm, _) = one_page();
        let here = cpu(&host);
        let memcg = host.root_memcg();
        let seq = memcg.lruvecs[0].max_seq();
        let other = {
            let host = Arc::clone(&host);
            spawn("ager 2", move || {
                let cpu = cpu(&host);
                let memcg = host.root_memcg();
                run_aging(&cpu, &memcg, &memcg.lruvecs[0], seq, true, true).expect("valid")
            })
        };
        let mine = run_aging(&here, &memcg, &memcg.lruvecs[0], seq, true, true);
        let mine = mine.expect("valid");
        let theirs = other.join().unwrap();
        let now = memcg.lruvecs[0].max_seq();
        assert!(now <= seq + 1, "{seq} was incremented twice, to {now}");
        assert_eq!(
            u64::from(mine) + u64::from(theirs),
            now - seq,
            "who made it knows"
        );
        consistent(&host);
    });
}

#[test]
fn lru_new_generation_is_seen_whole() {
    check("who sees a new max_seq sees its birth time", || {
        i_am("ager");
        let (host, _mm, _) = one_page();
        let here = cpu(&host);
        let memcg = host.root_memcg();
        let seq = memcg.lruvecs[0].max_seq();
        host.clock.advance_ns(1000);
        let walker = {
            let memcg = Arc::clone(&memcg);
            spawn("walker", move || {
                let lruvec = &memcg.lruvecs[0];
                let seen = lruvec.max_seq();
                if seen > seq {
                    let born = lruvec.timestamp(seen);
                    assert!(
                        born == 1000,
                        "generation {seen} is there without its birth time"
                    );
                }
            })
        };
        let made = run_aging(&here, &memcg, &memcg.lruvecs[0], seq, true, true);
        assert!(made.expect("valid"));
        walker.join().unwrap();
    });
}

#[test]
fn lru_promotion_against_isolation() {
    check(
        "a walker gives no generation to a folio that is isolated, and sizes stay right",
        || {
            i_am("isolator");
            let (host, _mm, pfn) = one_page();
            let memcg = host.root_memcg();
            let old = memcg.lruvecs[0].max_seq() as usize % 4;
            let walker = {
                let host = Arc::clone(&host);
                let memcg = Arc::clone(&memcg);
                spawn("walker", move || {
                    let cpu = cpu(&host);
                    let new = (old + 3) % 4;
                    let mut batch = Batch::default();
                    let was = update_gen(&cpu, &host.memory, pfn, new);
                    if let Some(was) = was
                        && was != new
                    {
                        batch.note(host.memory.word(pfn).get(), was, new);
                    }
                    batch.apply(&cpu, &memcg.lruvecs[0]);
                })
            };
            // Isolate it, and put it back, as reclaim does.
            let lruvec = &memcg.lruvecs[0];
            let word = host.memory.word(pfn);
            assert!(word.clear(LRU).has(LRU));
            {
                let mut lists = lruvec.lru_lock.lock();
                assert!(lruvec.del_folio(&mut lists, &host.memory, pfn, true));
            }
            model::note("isolated");
            let isolated = word.get();
            assert_eq!(
                isolated.generation(),
                None,
                "an isolated folio has a generation"
            );
            {
                let mut lists = lruvec.lru_lock.lock();
                word.set(LRU);
                assert!(lruvec.add_folio(&mut lists, &host.memory, pfn, false));
            }
            walker.join().unwrap();
            consistent(&host);
        },
    );
}

#[test]
fn lru_eviction_against_munmap() {
    // Making the folio old takes longer than all that is checked: one preemption
    // are 2,418 interleavings.
    check_up_to(
        "eviction against munmap: the folio and its swap slot are freed once, by one of them",
        1,
        || {
            i_am("munmap");
            let (host, mm, _pfn) = one_page_of(4);
            let free_before = host.memory.nr_free(0) + 1;
            let here = cpu(&host);
            grow_old(&host, &here);
            let evictor = {
                let host = Arc::clone(&host);
                spawn("evictor", move || evict(&host, &cpu(&host)))
            };
            mm.munmap(&here, HVA, PAGE_SIZE).expect("mapped");
            evictor.join().unwrap();
            // Its word may read older than it is: the checker does not know that
            // the store of who frees it comes after an exchange that another
            // thread made of the value before. The frame's place tells.
            drop(here);
            assert_eq!(host.memory.nr_free(0), free_before, "the folio is free");
            let (free, slots) = (host.swap.nr_free(), host.swap.nr_slots());
            assert_eq!(free, slots, "a swap slot leaked");
            consistent(&host);
            conserve::check(&host).expect("nothing leaked");
        },
    );
}

/// Eviction leaves a folio in the swap cache, under a slot that was another
/// folio's, while its only mapping goes: what both do once the page-table
/// entries are cleared, without all that comes before.
#[test]
fn lru_put_back_against_last_unmap() {
    check(
        "a folio that is put back while its last mapping goes is freed, by one of both",
        || {
            i_am("evictor");
            let host = host_with_swap(8, 1);
            let here = cpu(&host);
            let free_before = host.memory.nr_free(0);
            // The slot is another page's, which nobody needs any more.
            let (other, _) = map_one_page(&host, &here);
            grow_old(&host, &here);
            evict(&host, &here);
            assert_eq!(host.swap.slot_state(0), (1, false), "it is in the slot");
            let (mm, pfn) = map_one_page(&host, &here);
            for mm in [&mm, &other] {
                mm.word(mm.lookup(HVA).0).store(0, RELAXED);
            }
            let munmap = {
                let host = Arc::clone(&host);
                spawn("munmap", move || {
                    let here = cpu(&host);
                    assert_eq!(host.memory.unmap(pfn), 0, "it had one mapping");
                    release_if_unused(&here, pfn);
                })
            };
            host.swap.free(&here, 0);
            let word = host.memory.word(pfn);
            if word.clear(LRU).has(LRU) {
                let memcg = host.root_memcg();
                let lruvec = &memcg.lruvecs[0];
                assert!(lruvec.del_folio(&mut lruvec.lru_lock.lock(), &host.memory, pfn, true));
                word.set(LOCKED);
                let slot = host.swap.add_folio(&host.memory, pfn);
                assert_eq!(slot, Some(0), "the slot is free again");
                word.clear(LOCKED);
                {
                    let mut lists = lruvec.lru_lock.lock();
                    word.set(LRU);
                    assert!(lruvec.add_folio(&mut lists, &host.memory, pfn, false));
                }
                release_if_unused(&here, pfn);
            }
            munmap.join().unwrap();
            drop(here);
            assert_eq!(host.memory.nr_free(0), free_before, "the folio is free");
            assert_eq!(host.swap.nr_free(), 1, "a swap slot leaked");
            consistent(&host);
            conserve::check(&host).expect("nothing leaked");
        },
    );
}

/// A folio is looked at, as by who has just put it back, while it is swapped out
/// and cannot be written: what is on no device yet is in this folio alone.
#[test]
fn lru_look_against_eviction() {
    check(
        "a folio that comes to be named by its swap slot while it is looked at is not freed",
        || {
            i_am("looker");
            let (host, mm, pfn) = one_page_of(1);
            let here = cpu(&host);
            grow_old(&host, &here);
            host.swap.fail_writes(1);
            let evictor = {
                let host = Arc::clone(&host);
                spawn("evictor", move || evict(&host, &cpu(&host)))
            };
            release_if_unused(&here, pfn);
            evictor.join().unwrap();
            consistent(&host);
            conserve::check(&host).expect("nothing leaked");
            mm.touch(&here, HVA, false, None).expect("mapped");
            let left = host.memory.content(mm.lookup(HVA).1.pfn());
            assert_eq!(left.load(RELAXED), 1, "what the page held is lost");
        },
    );
}

#[test]
fn lru_walk_against_munmap() {
    check(
        "an aging walk against munmap: no folio is left on a list or with a generation",
        || {
            i_am("munmap");
            let (host, mm, pfn) = one_page();
            let here = cpu(&host);
            let walker = {
                let host = Arc::clone(&host);
                spawn("ager", move || {
                    let cpu = cpu(&host);
                    let memcg = host.root_memcg();
                    let lruvec = &memcg.lruvecs[0];
                    run_aging(&cpu, &memcg, lruvec, lruvec.max_seq(), true, true).expect("valid");
                })
            };
            mm.munmap(&here, HVA, PAGE_SIZE).expect("mapped");
            walker.join().unwrap();
            assert_eq!(host.memory.word(pfn).get().0, 0, "the folio is free");
            consistent(&host);
        },
    );
}
