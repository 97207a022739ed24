//! Chains of reverse maps: the writer under `mmu_lock` and the bit, readers
//! under the bit alone.

use super::model::{check, check_up_to, head_text, i_am, name, spawn, tally};
use loom::thread::JoinHandle;
use std::sync::Arc;
use youngbit_core::kvm::mmu::rmap::{DescArena, DescCache, RmapHead, SptePtr};
use youngbit_core::sync::atomic::AtomicU64;
use youngbit_core::table::TableId;
use youngbit_core::trace::{Counter, Counters};

struct Chain {
    head: AtomicU64,
    descs: DescArena,
}

impl Chain {
    /// A chain of `len` SPTEs, and a cache to add from.
    fn new(len: u32) -> (Arc<Self>, DescCache) {
        let chain = Arc::new(Chain {
            head: AtomicU64::new(0),
            descs: DescArena::new(),
        });
        i_am("writer");
        name(&chain.head, "rmap head", head_text);
        let mut cache = DescCache::default();
        chain.descs.topup(&mut cache).expect("room");
        let counters = Counters::default();
        for n in 0..len {
            chain.descs.add(&counters, chain.head(), ptr(n), &mut cache);
        }
        (chain, cache)
    }

    fn head(&self) -> RmapHead<'_> {
        RmapHead(&self.head)
    }

    /// A thread that walks it as an ager does.
    fn ager(self: &Arc<Self>, who: &'static str) -> JoinHandle<Vec<SptePtr>> {
        let chain = Arc::clone(self);
        spawn(who, move || chain.walk())
    }

    fn walk(&self) -> Vec<SptePtr> {
        let counters = Counters::default();
        let mut found = Vec::new();
        self.descs.for_each_lockless(&counters, self.head(), |ptr| {
            found.push(ptr);
            true
        });
        assert!(
            counters.get(Counter::PoisonReads) == 0,
            "a freed descriptor was read"
        );
        found
    }
}

fn ptr(n: u32) -> SptePtr {
    SptePtr::new(TableId(n), 0)
}

const WALK: &str = "a chain is walked held: a reader sees it whole, before or after a change, \
                    and no freed descriptor; what it read does not move past its unlock";

/// One reader against one change of a chain of `len`; what the reader finds is
/// the chain before or after it. `descs` are left at the end.
fn reader_against(len: u32, after: &'static [u32], descs: u32, change: fn(&Chain, &mut DescCache)) {
    check(WALK, move || {
        let (chain, mut cache) = Chain::new(len);
        let reader = chain.ager("ager");
        change(&chain, &mut cache);
        let mut found = reader.join().unwrap();
        found.sort_unstable();
        let before: Vec<_> = (0..len).map(ptr).collect();
        let after: Vec<_> = after.iter().copied().map(ptr).collect();
        assert!(
            found == before || found == after,
            "the walk saw {found:?}, neither {before:?} nor {after:?}"
        );
        let mut left = chain.descs.verify(chain.head()).expect("a sound chain");
        left.sort_unstable();
        assert_eq!(left, after);
        chain.descs.drain(&mut cache);
        assert_eq!(chain.descs.live(), descs, "descriptors in use");
    });
}

fn add(chain: &Chain, cache: &mut DescCache, n: u32) {
    let counters = Counters::default();
    chain.descs.add(&counters, chain.head(), ptr(n), cache);
}

fn remove(chain: &Chain, n: u32) {
    let counters = Counters::default();
    chain
        .descs
        .remove(&counters, chain.head(), ptr(n))
        .expect("it is there");
}

fn zap(chain: &Chain, _: &mut DescCache) {
    chain
        .descs
        .zap_all(&Counters::default(), chain.head(), |_| {});
}

/// A test each: length before, what is left, descriptors left, the change.
macro_rules! readers_against {
    ($($name:ident: $len:literal => $after:expr, $descs:literal, $change:expr;)*) => {$(
        #[test]
        fn $name() {
            reader_against($len, &$after, $descs, $change);
        }
    )*};
}

// Descriptors hold two. The head alone may be partly full, and the oldest are
// at the tail.
readers_against! {
    rmap_add_first: 0 => [0], 0, |chain, cache| add(chain, cache, 0);
    rmap_add_second: 1 => [0, 1], 1, |chain, cache| add(chain, cache, 1);
    rmap_add_beyond_a_descriptor: 2 => [0, 1, 2], 2, |chain, cache| add(chain, cache, 2);
    rmap_add_fills_the_head: 3 => [0, 1, 2, 3], 2, |chain, cache| add(chain, cache, 3);
    rmap_add_beyond_two_descriptors: 4 => [0, 1, 2, 3, 4], 3, |chain, cache| add(chain, cache, 4);
    rmap_remove_only: 1 => [], 0, |chain, _| remove(chain, 0);
    rmap_remove_first_of_two: 2 => [1], 1, |chain, _| remove(chain, 0);
    rmap_remove_second_of_two: 2 => [0], 1, |chain, _| remove(chain, 1);
    rmap_remove_from_the_tail_empties_the_head: 3 => [1, 2], 1, |chain, _| remove(chain, 0);
    rmap_remove_the_head_of_three: 3 => [0, 1], 1, |chain, _| remove(chain, 2);
    rmap_remove_from_the_head: 4 => [0, 1, 2], 2, |chain, _| remove(chain, 3);
    rmap_remove_from_the_tail_of_four: 4 => [1, 2, 3], 2, |chain, _| remove(chain, 0);
    rmap_zap_one: 1 => [], 0, zap;
    rmap_zap_two: 2 => [], 0, zap;
    rmap_zap_all: 3 => [], 0, zap;
    rmap_zap_two_descriptors: 4 => [], 0, zap;
}

#[test]
fn rmap_filled_and_emptied_again() {
    // The walk begins on an empty chain, which then gets a descriptor and loses
    // it: whoever looks again without holding it reads a freed one.
    check(WALK, || {
        let (chain, mut cache) = Chain::new(0);
        let reader = chain.ager("ager");
        add(&chain, &mut cache, 0);
        add(&chain, &mut cache, 1);
        zap(&chain, &mut cache);
        let found = reader.join().unwrap();
        assert!(found.len() <= 2);
        chain.descs.drain(&mut cache);
        assert_eq!(chain.descs.live(), 0);
    });
}

#[test]
fn rmap_freed_descriptor_is_reused() {
    // Removing one of three frees the head descriptor; adding takes another,
    // and a second chain takes the freed one.
    check(WALK, || {
        let (chain, mut cache) = Chain::new(3);
        let other = AtomicU64::new(0);
        let reader = chain.ager("ager");
        remove(&chain, 0);
        chain.descs.drain(&mut cache);
        chain.descs.topup(&mut cache).expect("room");
        let counters = Counters::default();
        for n in 7..9 {
            chain
                .descs
                .add(&counters, RmapHead(&other), ptr(n), &mut cache);
        }
        let found = reader.join().unwrap();
        assert!(found.iter().all(|ptr| ptr.table().0 < 3), "{found:?}");
        assert!(found.len() >= 2);
    });
}

#[test]
fn rmap_two_readers_and_a_writer() {
    // Two waiters that yield to each other have no end of interleavings with
    // more preemptions.
    check_up_to(WALK, 1, || {
        let (chain, _cache) = Chain::new(2);
        let readers: Vec<_> = ["ager 1", "ager 2"]
            .into_iter()
            .map(|who| chain.ager(who))
            .collect();
        remove(&chain, 1);
        for reader in readers {
            assert!((1..=2).contains(&reader.join().unwrap().len()));
        }
    });
}

#[test]
fn rmap_waiting_costs() {
    // Not a failure but a cost: how often the head is looked at, and how many
    // exchanges are lost, while another thread holds the chain.
    check(
        "a waiter for a chain looks again only after its pause, so what it saw is fresh",
        || {
            let (chain, _cache) = Chain::new(1);
            let work = |chain: Arc<Chain>| {
                let counters = Counters::default();
                for _ in 0..2 {
                    let value = chain.head().lock(&counters);
                    chain.head().unlock_readonly(value);
                }
                assert_eq!(counters.get(Counter::RmapLocks), 2);
                counters
            };
            let other = {
                let chain = Arc::clone(&chain);
                spawn("ager", move || work(chain))
            };
            let mine = work(chain);
            let theirs = other.join().unwrap();
            for counters in [mine, theirs] {
                tally("rmap_spins", counters.get(Counter::RmapSpins));
                tally("rmap_lost", counters.get(Counter::RmapLost));
            }
        },
    );
}
