//! Each test names the statement about rmaps that it checks.

use super::*;
use crate::sync::thread;
use crate::table::Arena;
use rand::{Rng, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;

struct Bench {
    arena: DescArena,
    cache: DescCache,
    counters: Counters,
}

impl Bench {
    fn new() -> Self {
        Bench {
            arena: DescArena::new(),
            cache: DescCache::default(),
            counters: Counters::default(),
        }
    }

    fn add(&mut self, head: RmapHead<'_>, spte: SptePtr) -> u64 {
        self.arena.topup(&mut self.cache).expect("room");
        self.arena.add(&self.counters, head, spte, &mut self.cache)
    }

    fn remove(&self, head: RmapHead<'_>, spte: SptePtr) -> Result<()> {
        self.arena.remove(&self.counters, head, spte)
    }
}

fn spte(n: usize) -> SptePtr {
    SptePtr::new(TableId((n / TABLE_ENTRIES) as u32), n % TABLE_ENTRIES)
}

/// Chain lengths around the descriptor boundaries.
const LENGTHS: &[usize] = &[1, 2, 13, 14, 15, 28, 29];

#[test]
fn spte_addresses_leave_both_tag_bits_free_and_are_never_zero() {
    for (table, index) in [(0, 0), (0, 511), (1, 0), (u32::MAX, 511)] {
        let ptr = SptePtr::new(TableId(table), index);
        assert_eq!(ptr.0 & (RMAP_MANY | RMAP_LOCKED), 0);
        assert_ne!(ptr.0, 0);
        assert_eq!((ptr.table(), ptr.index()), (TableId(table), index));
    }
}

#[test]
fn one_word_says_none_one_or_many() {
    let mut bench = Bench::new();
    let word = AtomicU64::new(0);
    let head = RmapHead(&word);
    assert!(head.is_empty());
    assert_eq!(bench.add(head, spte(7)), 1);
    assert_eq!(head.value(), spte(7).0, "one: the SPTE's own address");
    assert_eq!(bench.add(head, spte(8)), 2);
    assert_eq!(head.value() & RMAP_MANY, RMAP_MANY, "two: a descriptor");
    bench.remove(head, spte(8)).expect("there");
    bench.remove(head, spte(7)).expect("there");
    assert!(head.is_empty());
}

#[test]
fn a_descriptor_holds_fourteen_in_128_bytes() {
    assert_eq!((PTE_LIST_EXT, DESC_BYTES), (14, 128));
    let mut bench = Bench::new();
    let word = AtomicU64::new(0);
    let used = |bench: &Bench| bench.arena.live() - bench.cache.0.len() as u32;
    for (count, descriptors) in [(1, 0), (2, 1), (14, 1), (15, 2), (28, 2), (29, 3)] {
        while bench.arena.count(RmapHead(&word).value()) < count {
            let n = bench.arena.count(RmapHead(&word).value());
            bench.add(RmapHead(&word), spte(n as usize));
        }
        assert_eq!(used(&bench), descriptors, "{count} SPTEs");
    }
    assert!(
        bench
            .arena
            .zap_all(&bench.counters, RmapHead(&word), |_| ())
    );
    assert_eq!(used(&bench), 0);
}

#[test]
fn adding_and_removing_keep_only_the_head_partly_full() {
    let mut bench = Bench::new();
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(6);
    for round in 0..200 {
        let word = AtomicU64::new(0);
        let head = RmapHead(&word);
        let mut model: Vec<SptePtr> = Vec::new();
        let limit = LENGTHS[round % LENGTHS.len()] + 2;
        for step in 0..200 {
            if model.len() < limit && (model.is_empty() || rng.random_bool(0.6)) {
                let new = spte(round * 1000 + step);
                assert_eq!(bench.add(head, new), model.len() as u64 + 1);
                model.push(new);
            } else {
                let gone = model.swap_remove(rng.random_range(0..model.len()));
                bench.remove(head, gone).expect("it is there");
            }
            let mut found = bench.arena.verify(head).expect("well formed");
            assert_eq!(bench.arena.count(head.value()), model.len() as u64);
            let mut walked: Vec<_> = bench.arena.iter(&bench.counters, head.value()).collect();
            found.sort_unstable();
            walked.sort_unstable();
            model.sort_unstable();
            assert_eq!(found, model);
            assert_eq!(walked, model);
        }
        let mut zapped = Vec::new();
        bench
            .arena
            .zap_all(&bench.counters, head, |spte| zapped.push(spte));
        zapped.sort_unstable();
        assert_eq!(zapped, model);
        assert!(head.is_empty());
    }
    assert_eq!(bench.arena.live() as usize, bench.cache.0.len());
    assert_eq!(bench.counters.get(Counter::PoisonReads), 0);
}

#[test]
fn removing_what_is_not_there_is_corruption_and_changes_nothing() {
    let mut bench = Bench::new();
    for &len in &[0, 1, 2, 15] {
        let word = AtomicU64::new(0);
        let head = RmapHead(&word);
        for n in 0..len {
            bench.add(head, spte(n));
        }
        let error = bench.remove(head, spte(999)).expect_err("not there");
        assert_eq!(error.errno(), Errno::EIO);
        assert_eq!(bench.arena.verify(head).expect("whole").len(), len);
    }
}

#[test]
fn an_empty_head_is_not_locked_and_returns_zero() {
    let counters = Counters::default();
    let word = AtomicU64::new(0);
    assert_eq!(RmapHead(&word).lock(&counters), 0);
    assert_eq!(word.load(Ordering::Relaxed), 0);
    assert_eq!(counters.get(Counter::RmapLocks), 0);
}

#[test]
fn the_lock_returns_the_value_without_its_bit() {
    let counters = Counters::default();
    for value in [spte(3).0, DescId(5).as_head()] {
        let word = AtomicU64::new(value);
        let head = RmapHead(&word);
        assert_eq!(head.lock(&counters), value);
        assert_eq!(word.load(Ordering::Relaxed), value | RMAP_LOCKED);
        assert_eq!(head.value(), value);
        head.unlock_readonly(value);
        assert_eq!(word.load(Ordering::Relaxed), value);
    }
    assert_eq!(counters.get(Counter::RmapLocks), 2);
}

#[test]
fn a_locked_head_is_spun_on_and_the_emptied_one_is_not_taken() {
    let word = AtomicU64::new(spte(1).0);
    let head = RmapHead(&word);
    let mine = Counters::default();
    assert_eq!(head.lock(&mine), spte(1).0);
    let seen = thread::scope(|s| {
        let waiter = s.spawn(|| {
            let counters = Counters::default();
            let value = head.lock(&counters);
            (
                value,
                counters.get(Counter::RmapSpins),
                counters.get(Counter::RmapLocks),
            )
        });
        // Long enough for the waiter to arrive and find it locked.
        let start = std::time::Instant::now();
        while start.elapsed().as_millis() < 20 {
            thread::yield_now();
        }
        head.unlock(0);
        waiter.join().expect("waiter")
    });
    let (value, spins, locks) = seen;
    assert_eq!((value, locks), (0, 0));
    assert!(spins > 0, "the waiter never found it locked");
    assert_eq!(word.load(Ordering::Relaxed), 0);
}

#[test]
fn the_bit_excludes_readers_from_each_other_too() {
    let mut bench = Bench::new();
    let word = AtomicU64::new(0);
    for n in 0..20 {
        bench.add(RmapHead(&word), spte(n));
    }
    let inside = AtomicU64::new(0);
    thread::scope(|s| {
        for _ in 0..3 {
            s.spawn(|| {
                let counters = Counters::default();
                for _ in 0..5_000 {
                    let head = RmapHead(&word);
                    let value = head.lock(&counters);
                    // Not a read-modify-write: wrong unless exclusive.
                    inside.store(inside.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
                    head.unlock_readonly(value);
                }
            });
        }
    });
    assert_eq!(inside.load(Ordering::Relaxed), 15_000);
}

#[test]
fn an_overfull_cache_is_not_needed_and_gives_everything_back() {
    let arena = DescArena::new();
    let mut cache = DescCache::default();
    arena.topup(&mut cache).expect("room");
    let filled = cache.0.len();
    assert!(filled >= DESC_CACHE_MIN);
    arena.topup(&mut cache).expect("room");
    assert_eq!(cache.0.len(), filled);
    arena.drain(&mut cache);
    assert_eq!(arena.live(), 0);
}

#[test]
#[should_panic(expected = "freed twice")]
fn freeing_a_descriptor_twice_is_caught() {
    let mut bench = Bench::new();
    let word = AtomicU64::new(0);
    bench.add(RmapHead(&word), spte(0));
    bench.add(RmapHead(&word), spte(1));
    let id = DescId::of_head(word.load(Ordering::Relaxed));
    bench.arena.free(id);
    bench.arena.free(id);
}

#[test]
fn a_walk_into_a_freed_descriptor_is_seen() {
    let mut bench = Bench::new();
    let word = AtomicU64::new(0);
    for n in 0..3 {
        bench.add(RmapHead(&word), spte(n));
    }
    let stale = word.load(Ordering::Relaxed);
    bench
        .arena
        .zap_all(&bench.counters, RmapHead(&word), |_| ());
    assert_eq!(bench.arena.iter(&bench.counters, stale).count(), 0);
    assert_eq!(bench.counters.get(Counter::PoisonReads), 1);
}

#[test]
fn heads_take_eight_bytes_a_page_and_level() {
    let rmaps = SlotRmaps::new(512, 4096);
    assert_eq!(rmaps.bytes(), 8 * (4096 + 8 + 1));
    // A slot that begins inside a huge page shares that page's head.
    let rmaps = SlotRmaps::new(500, 20);
    assert_eq!(rmaps.bytes(), 8 * (20 + 2 + 1));
}

#[test]
fn a_range_yields_every_huge_page_it_meets_once() {
    let rmaps = SlotRmaps::new(0, 4096);
    let which = |level, start, end| -> Vec<usize> {
        let base = rmaps.heads[level as usize - 1].as_ptr() as usize;
        rmaps
            .range(level, start, end)
            .map(|h| (std::ptr::from_ref(h.0) as usize - base) / 8)
            .collect()
    };
    assert_eq!(which(1, 510, 514), [510, 511, 512, 513]);
    // From an unaligned start over the boundary: both huge pages.
    assert_eq!(which(2, 510, 514), [0, 1]);
    assert_eq!(which(2, 511, 1025), [0, 1, 2]);
    assert_eq!(which(2, 512, 1024), [1]);
    assert_eq!(which(3, 510, 514), [0]);
    assert_eq!(which(1, 4095, 9999), [4095], "clipped to the slot");
    assert!(which(1, 7, 7).is_empty());
    assert!(which(2, 5000, 6000).is_empty());
}

/// One writer, as `mmu_lock` allows, moves SPTE slots between chains: zap,
/// remove, reuse for another chain, add. Readers walk the chains by the bit
/// alone. A reader that holds a chain may find a slot of it zapped, but never
/// one that already belongs to another chain, and never a freed descriptor.
fn writer_and_lockless_readers(len: usize, rounds: usize) {
    const HEADS: usize = 4;
    let tables: Arena<()> = Arena::new();
    let table = tables.alloc().expect("room");
    let words = tables.entries(table);
    let heads: Vec<AtomicU64> = (0..HEADS).map(|_| AtomicU64::new(0)).collect();
    let arena = DescArena::new();
    let stop = AtomicU64::new(0);
    let met = AtomicU64::new(0);
    let owner = |h: usize| h as u64 + 1;
    thread::scope(|s| {
        let readers: Vec<_> = (0..2)
            .map(|_| {
                s.spawn(|| {
                    let counters = Counters::default();
                    let mut walked = 0u64;
                    while stop.load(Ordering::Relaxed) == 0 {
                        for (h, word) in heads.iter().enumerate() {
                            let head = RmapHead(word);
                            let value = head.lock(&counters);
                            if value == 0 {
                                continue;
                            }
                            let count = arena.count(value);
                            let mut seen = 0;
                            for ptr in arena.iter(&counters, value) {
                                seen += 1;
                                let spte = words[ptr.index()].load(Ordering::Relaxed);
                                assert!(
                                    spte == 0 || spte == owner(h),
                                    "chain {h}: slot {} was reused for chain {}",
                                    ptr.index(),
                                    spte - 1
                                );
                            }
                            assert_eq!(seen, count);
                            walked += seen;
                            met.store(1, Ordering::Relaxed);
                            head.unlock_readonly(value);
                        }
                        thread::yield_now();
                    }
                    assert_eq!(counters.get(Counter::PoisonReads), 0);
                    walked
                })
            })
            .collect();
        let counters = Counters::default();
        let mut cache = DescCache::default();
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(len as u64);
        let mut chains: Vec<Vec<usize>> = vec![Vec::new(); HEADS];
        let mut free: Vec<usize> = (0..HEADS * len).collect();
        let mut round = 0;
        // On a busy machine the readers may come late.
        while round < rounds || met.load(Ordering::Relaxed) == 0 {
            round += 1;
            let h = rng.random_range(0..HEADS);
            arena.topup(&mut cache).expect("room");
            if round % 97 == 96 {
                arena.zap_all(&counters, RmapHead(&heads[h]), |ptr| {
                    words[ptr.index()].store(0, Ordering::Relaxed);
                });
                free.append(&mut chains[h]);
            } else if chains[h].len() < len && !free.is_empty() {
                // The slot freed last: reuse as soon as the code allows it.
                let slot = free.pop().expect("checked");
                words[slot].store(owner(h), Ordering::Relaxed);
                arena.add(
                    &counters,
                    RmapHead(&heads[h]),
                    SptePtr::new(table, slot),
                    &mut cache,
                );
                chains[h].push(slot);
            } else {
                let at = rng.random_range(0..chains[h].len());
                let slot = chains[h].swap_remove(at);
                words[slot].store(0, Ordering::Relaxed);
                arena
                    .remove(&counters, RmapHead(&heads[h]), SptePtr::new(table, slot))
                    .expect("it is there");
                free.push(slot);
            }
            if round % 64 == 0 {
                thread::yield_now();
            }
        }
        stop.store(1, Ordering::Relaxed);
        let walked: u64 = readers.into_iter().map(|r| r.join().expect("reader")).sum();
        assert!(walked > 0, "no reader met a chain of {len}");
        for (h, chain) in chains.iter().enumerate() {
            let mut found: Vec<usize> = arena
                .verify(RmapHead(&heads[h]))
                .expect("tail counts right")
                .iter()
                .map(|p| p.index())
                .collect();
            found.sort_unstable();
            let mut expected = chain.clone();
            expected.sort_unstable();
            assert_eq!(found, expected);
            arena.zap_all(&counters, RmapHead(&heads[h]), |_| ());
        }
        arena.drain(&mut cache);
    });
    assert_eq!(arena.live(), 0, "every descriptor came back exactly once");
}

#[test]
fn a_slot_in_reach_of_a_read_only_holder_is_never_reused() {
    for &len in LENGTHS {
        writer_and_lockless_readers(len, 20_000);
    }
}
