//! Each test names the statement about rmaps that it checks.

use super::*;
use crate::sync::lock::{Mutex, QrwLock};
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
const LENGTHS: &[usize] = &[0, 1, 2, 13, 14, 15, 16, 27, 28, 29, 30, 41, 42, 43, 44];

#[test]
fn section_4_spte_addresses_leave_both_tag_bits_free_and_are_never_zero() {
    for (table, index) in [(0, 0), (0, 511), (1, 0), (u32::MAX, 511)] {
        let ptr = SptePtr::new(TableId(table), index);
        assert_eq!(ptr.0 & (RMAP_MANY | RMAP_LOCKED), 0);
        assert_ne!(ptr.0, 0);
        assert_eq!((ptr.table(), ptr.index()), (TableId(table), index));
    }
}

#[test]
fn section_4_one_word_says_none_one_or_many() {
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
fn section_4_a_descriptor_holds_fourteen_in_128_bytes() {
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
fn section_4_adding_and_removing_keep_only_the_head_partly_full() {
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
fn section_4_an_empty_head_is_not_locked_and_returns_zero() {
    let counters = Counters::default();
    let word = AtomicU64::new(0);
    assert_eq!(RmapHead(&word).lock(&counters), 0);
    assert_eq!(word.load(Ordering::Relaxed), 0);
    assert_eq!(counters.get(Counter::RmapLocks), 0);
}

#[test]
fn section_4_the_lock_returns_the_value_without_its_bit() {
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
fn section_4_a_locked_head_is_spun_on_and_the_emptied_one_is_not_taken() {
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
fn section_4_a_read_only_holder_walks_what_the_lock_returned_and_gives_it_back() {
    for &len in LENGTHS {
        let mut bench = Bench::new();
        let word = AtomicU64::new(0);
        let head = RmapHead(&word);
        (0..len).for_each(|n| {
            bench.add(head, spte(n));
        });
        let before = word.load(Ordering::Relaxed);
        for stop_after in [1, len / 2 + 1, len + 1] {
            let counters = Counters::default();
            let mut met = 0;
            bench.arena.for_each_lockless(&counters, head, |_| {
                assert_eq!(word.load(Ordering::Relaxed), before | RMAP_LOCKED);
                met += 1;
                met < stop_after
            });
            assert_eq!(met, len.min(stop_after));
            assert_eq!(word.load(Ordering::Relaxed), before, "given back");
            // An empty head stays unlocked and is not walked.
            assert_eq!(counters.get(Counter::RmapLocks), u64::from(len > 0));
        }
    }
}

#[test]
fn section_4_the_bit_excludes_readers_from_each_other_too() {
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
fn section_4_a_walk_into_a_freed_descriptor_is_seen() {
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
fn section_4_heads_take_eight_bytes_a_page_and_level() {
    let rmaps = SlotRmaps::new(512, 4096);
    assert_eq!(rmaps.bytes(), 8 * (4096 + 8 + 1));
    // A slot that begins inside a huge page shares that page's head.
    let rmaps = SlotRmaps::new(500, 20);
    assert_eq!(rmaps.bytes(), 8 * (20 + 2 + 1));
}

#[test]
fn section_4_a_range_yields_every_huge_page_it_meets_once() {
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

/// Chains that threads change and walk at once, and the SPTEs behind them. A
/// slot holds the chain that it belongs to, counted from 1; 0 is zapped.
struct Torn {
    arena: DescArena,
    tables: Arena<()>,
    table: TableId,
    heads: Vec<AtomicU64>,
    mmu_lock: QrwLock,
    /// Under `mmu_lock`.
    truth: Mutex<Truth>,
    stop: AtomicU64,
    met: AtomicU64,
}

/// What the writers did.
struct Truth {
    chains: Vec<Vec<usize>>,
    free: Vec<usize>,
    added: Vec<u64>,
    /// Taken out one by one, and with a whole chain.
    removed: Vec<u64>,
    zapped: Vec<u64>,
}

impl Torn {
    const HEADS: usize = 3;

    fn new(len: usize) -> Self {
        let tables = Arena::new();
        let table = tables.alloc().expect("room");
        Torn {
            arena: DescArena::new(),
            tables,
            table,
            heads: (0..Self::HEADS).map(|_| AtomicU64::new(0)).collect(),
            mmu_lock: QrwLock::new(),
            truth: Mutex::new(Truth {
                chains: vec![Vec::new(); Self::HEADS],
                free: (0..Self::HEADS * (len + 3)).collect(),
                added: vec![0; Self::HEADS],
                removed: vec![0; Self::HEADS],
                zapped: vec![0; Self::HEADS],
            }),
            stop: AtomicU64::new(0),
            met: AtomicU64::new(0),
        }
    }

    fn slot(&self, slot: usize) -> &AtomicU64 {
        &self.tables.entries(self.table)[slot]
    }

    fn head(&self, h: usize) -> RmapHead<'_> {
        RmapHead(&self.heads[h])
    }

    fn add(&self, counters: &Counters, cache: &mut DescCache, truth: &mut Truth, h: usize) {
        // The slot freed last: reused as soon as the code allows it.
        let Some(slot) = truth.free.pop() else { return };
        self.slot(slot).store(h as u64 + 1, Ordering::Relaxed);
        let ptr = SptePtr::new(self.table, slot);
        let count = self.arena.add(counters, self.head(h), ptr, cache);
        truth.chains[h].push(slot);
        truth.added[h] += 1;
        assert_eq!(count, truth.chains[h].len() as u64);
    }

    fn remove(&self, counters: &Counters, truth: &mut Truth, h: usize, at: usize) {
        let slot = truth.chains[h].swap_remove(at);
        self.slot(slot).store(0, Ordering::Relaxed);
        self.arena
            .remove(counters, self.head(h), SptePtr::new(self.table, slot))
            .expect("it is there");
        truth.free.push(slot);
        truth.removed[h] += 1;
    }

    fn zap(&self, counters: &Counters, truth: &mut Truth, h: usize) {
        self.arena.zap_all(counters, self.head(h), |ptr| {
            self.slot(ptr.index()).store(0, Ordering::Relaxed);
        });
        truth.zapped[h] += truth.chains[h].len() as u64;
        let mut gone = std::mem::take(&mut truth.chains[h]);
        truth.free.append(&mut gone);
    }

    /// One writer, under `mmu_lock` like every other: it moves a chain towards
    /// `len`, past it and back, and with `zaps` empties one now and then.
    fn writer(&self, seed: u64, len: usize, rounds: usize, zaps: bool) {
        let counters = Counters::default();
        let mut cache = DescCache::default();
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
        let mut round = 0;
        // On a busy machine the readers may come late.
        while self.stop.load(Ordering::Relaxed) == 0
            && (round < rounds || self.met.load(Ordering::Relaxed) == 0)
        {
            round += 1;
            self.arena.topup(&mut cache).expect("room");
            let (locked, _) = self.mmu_lock.write();
            let truth = &mut *self.truth.lock();
            let h = rng.random_range(0..Self::HEADS);
            let now = truth.chains[h].len();
            if zaps && round % 128 == 0 {
                self.zap(&counters, truth, h);
            } else if now < len.saturating_sub(2)
                || now == 0
                || now < len + 2 && rng.random_bool(0.5)
            {
                self.add(&counters, &mut cache, truth, h);
            } else {
                self.remove(&counters, truth, h, rng.random_range(0..now));
            }
            drop(locked);
            if round % 32 == 0 {
                thread::yield_now();
            }
        }
        assert_eq!(counters.get(Counter::PoisonReads), 0);
        self.arena.drain(&mut cache);
    }

    /// Walk every chain, held by its bit alone, and return how many SPTEs were
    /// met, or what was wrong. Nothing panics while a chain is held: writers
    /// would wait for it for ever.
    fn reader(&self) -> std::result::Result<u64, String> {
        let counters = Counters::default();
        let mut walked = 0;
        while self.stop.load(Ordering::Relaxed) == 0 {
            for h in 0..Self::HEADS {
                let head = self.head(h);
                let mut expected = 0;
                let mut reached: Vec<usize> = Vec::new();
                let mut wrong = None;
                self.arena.for_each_lockless(&counters, head, |ptr| {
                    reached.push(ptr.index());
                    if reached.len() == 1 {
                        expected = self.arena.count(head.value());
                        // Time for whoever does not respect the hold.
                        thread::yield_now();
                    }
                    // All that were reached so far: a slot may be zapped under
                    // a holder, but belongs to no other chain.
                    for &slot in &reached {
                        let owner = self.slot(slot).load(Ordering::Relaxed);
                        if owner != 0 && owner != h as u64 + 1 {
                            wrong = Some(format!(
                                "chain {h}: slot {slot} was reused for chain {} in reach of a holder",
                                owner - 1
                            ));
                        }
                    }
                    true
                });
                walked += reached.len() as u64;
                if !reached.is_empty() {
                    self.met.store(1, Ordering::Relaxed);
                }
                if counters.get(Counter::PoisonReads) != 0 {
                    wrong = Some(format!("chain {h}: a freed descriptor was read"));
                } else if reached.len() as u64 != expected {
                    wrong = wrong.or(Some(format!(
                        "chain {h}: {} SPTEs of {expected}",
                        reached.len()
                    )));
                }
                if let Some(wrong) = wrong {
                    self.stop.store(1, Ordering::Relaxed);
                    return Err(wrong);
                }
            }
            thread::yield_now();
        }
        Ok(walked)
    }

    /// Everything about one chain that nobody changes any more, worked out
    /// from the words themselves.
    fn check(&self, h: usize, truth: &Truth) {
        let expected = &truth.chains[h];
        let n = expected.len();
        assert_eq!(
            truth.added[h] - truth.removed[h] - truth.zapped[h],
            n as u64,
            "chain {h}: added less removed"
        );
        let value = self.heads[h].load(Ordering::Relaxed);
        assert_eq!(value & RMAP_LOCKED, 0, "chain {h} of {n} was left held");
        assert_eq!(self.arena.count(value), n as u64, "chain {h}: its count");
        let mut found = Vec::new();
        if value & RMAP_MANY == 0 {
            assert!(n <= 1, "chain {h} of {n} has no descriptor");
            assert_eq!(value == 0, n == 0, "chain {h} of {n}: head {value:#x}");
            found.extend((n == 1).then(|| SptePtr(value).index()));
        } else {
            // Only the head is partly full, so `n` says what every descriptor
            // holds, and how many are behind it.
            let behind = (n - 1) / PTE_LIST_EXT;
            let mut at = Some(DescId::of_head(value));
            for place in (0..=behind).rev() {
                let id = at.unwrap_or_else(|| panic!("chain {h} of {n} ends early"));
                let desc = self.arena.desc(id);
                assert!(!desc.is_poisoned(), "chain {h} leads to a freed descriptor");
                let here = if place == behind {
                    n - behind * PTE_LIST_EXT
                } else {
                    PTE_LIST_EXT
                };
                let tail = (place * PTE_LIST_EXT) as u64;
                assert_eq!(
                    desc.counts(),
                    (here, tail),
                    "chain {h} of {n}: spte_count and tail_count of a descriptor with {place} behind it"
                );
                for slot in 0..PTE_LIST_EXT {
                    let word = desc.get(W_SPTES + slot);
                    if slot < here {
                        found.push(SptePtr(word).index());
                    }
                }
                at = desc.more();
            }
            assert_eq!(at, None, "chain {h} of {n} goes on");
        }
        found.sort_unstable();
        let mut expected = expected.clone();
        expected.sort_unstable();
        assert_eq!(found, expected, "chain {h}: its SPTEs");
        let verified = self.arena.verify(self.head(h)).expect("well formed");
        assert_eq!(verified.len(), n);
    }
}

/// Three threads add, remove and zap under `mmu_lock`, two walk by the bit
/// alone, all on the same chains, which stay around `len` SPTEs. Afterwards
/// every chain is put at exactly `len` and looked at word by word.
fn threads_around(len: usize, rounds: usize) {
    let torn = Torn::new(len);
    thread::scope(|s| {
        let readers: Vec<_> = (0..2).map(|_| s.spawn(|| torn.reader())).collect();
        let writers: Vec<_> = (0..3)
            .map(|n| {
                let torn = &torn;
                s.spawn(move || torn.writer((len * 3 + n) as u64, len, rounds, n == 2))
            })
            .collect();
        // Readers stop when the writers have, however those ended.
        let ended: Vec<_> = writers.into_iter().map(|w| w.join()).collect();
        torn.stop.store(1, Ordering::Relaxed);
        let walked: u64 = readers
            .into_iter()
            .map(|r| {
                r.join()
                    .expect("no panic")
                    .unwrap_or_else(|e| panic!("around {len}: {e}"))
            })
            .sum();
        for writer in ended {
            writer.expect("a writer's own checks");
        }
        assert!(walked > 0, "no reader met a chain around {len}");
    });
    let counters = Counters::default();
    let mut cache = DescCache::default();
    let truth = &mut *torn.truth.lock();
    for h in 0..Torn::HEADS {
        torn.check(h, truth);
        while truth.chains[h].len() < len {
            torn.arena.topup(&mut cache).expect("room");
            torn.add(&counters, &mut cache, truth, h);
        }
        while truth.chains[h].len() > len {
            torn.remove(&counters, truth, h, 0);
        }
        torn.check(h, truth);
        torn.zap(&counters, truth, h);
        torn.check(h, truth);
    }
    torn.arena.drain(&mut cache);
    assert_eq!(
        torn.arena.live(),
        0,
        "every descriptor came back exactly once"
    );
}

#[test]
fn section_4_tail_counts_hold_after_threads_add_remove_zap_and_walk_the_same_heads() {
    mutant::select_named();
    for &len in LENGTHS {
        threads_around(len, 3_000);
    }
}

#[test]
fn section_4_a_slot_in_reach_of_a_read_only_holder_is_never_reused() {
    mutant::select_named();
    // Chains that empty all the time, and such as free descriptors.
    for len in [1, 2, 15] {
        threads_around(len, 20_000);
    }
}
