//! Operations on one entry, over a flat array: what the hardware allows, and
//! what aging makes of it.

use super::contest::{Case, Contestant, Metric, Sample, Stage, worked};
use super::wrong;
use crate::error::Result;
use crate::kvm::mmu::spte::{ACC_ALL, AD_DISABLED, AD_ENABLED, LEVEL_4K, Leaf, SpteFormat, Write};
use crate::mm::Pfn;
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering, zeroed};
use crate::sync::thread::{self, Affinity};
use crate::table::{TABLE_ENTRIES, prefetch};
use crate::trace::{Counter, CounterTotals, CounterValues};
use rand::{RngCore, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;
use std::hint::black_box;

/// Entries in a flat array, and the loops over it that nothing can be faster
/// than.
pub struct Flat {
    words: Box<[AtomicU64]>,
    format: SpteFormat,
}

/// Which entries are young: `percent` of them, by the seed.
pub fn fill(flat: &Flat, percent: u64, seed: u64) -> u64 {
    let mut random = Xoshiro256PlusPlus::seed_from_u64(seed);
    let format = &flat.format;
    let mut young = 0;
    for (i, word) in flat.words.iter().enumerate() {
        let is_young = random.next_u64() % 100 < percent;
        young += u64::from(is_young);
        let leaf = format.make_leaf(Leaf {
            pfn: Pfn(i as u32),
            level: LEVEL_4K,
            access: ACC_ALL,
            host_writable: true,
            prefetch: !is_young,
            ad_type: format.default_ad_type(),
        });
        word.store(leaf, Ordering::Relaxed);
    }
    young
}

impl Flat {
    /// `len` entries.
    pub fn new(len: usize, format: SpteFormat) -> Self {
        Flat {
            words: zeroed(len),
            format,
        }
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.words.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.words.is_empty()
    }

    /// Limit: load each, count the young.
    #[inline(never)]
    pub fn scan(&self) -> u64 {
        let accessed = self.format.accessed;
        let young = |word: &AtomicU64| u64::from(word.load(Ordering::Relaxed) & accessed != 0);
        self.words.iter().map(young).sum()
    }

    /// Limit: [`scan`](Self::scan) a cache line at a time, which fetches the
    /// page after the next ahead: processors do not fetch beyond the page that
    /// they are in.
    #[inline(never)]
    pub fn scan_ahead(&self) -> u64 {
        const LINE: usize = 8;
        let accessed = self.format.accessed;
        let (lines, rest) = self.words.as_chunks::<LINE>();
        let mut young = 0;
        for (n, line) in lines.iter().enumerate() {
            if let Some(ahead) = lines.get(n + 2 * TABLE_ENTRIES / LINE) {
                prefetch(&ahead[0]);
            }
            let seen: [u64; LINE] = std::array::from_fn(|i| line[i].load(Ordering::Relaxed));
            if seen.iter().fold(0, |all, seen| all | seen) & accessed != 0 {
                young += seen.iter().filter(|&seen| seen & accessed != 0).count() as u64;
            }
        }
        let is_young = |word: &&AtomicU64| word.load(Ordering::Relaxed) & accessed != 0;
        young + rest.iter().filter(is_young).count() as u64
    }

    /// Limit: a read-modify-write of each, whose result nobody looks at: that
    /// is one instruction where the machine has it. Returns 0.
    #[inline(never)]
    pub fn fetch_and(&self) -> u64 {
        for word in &self.words {
            word.fetch_and(!self.format.accessed, Ordering::AcqRel);
        }
        0
    }

    /// What aging does, entry by entry; counts the young.
    #[inline(never)]
    pub fn age(&self) -> u64 {
        let age = |word: &AtomicU64| u64::from(self.format.age(word, LEVEL_4K).young);
        self.words.iter().map(age).sum()
    }

    /// What aging did before the series, with `mmu_lock` held for write.
    #[inline(never)]
    pub fn age_locked(&self) -> u64 {
        let age = |word: &AtomicU64| u64::from(self.format.age_locked(word, LEVEL_4K).young);
        self.words.iter().map(age).sum()
    }

    /// What testing does.
    #[inline(never)]
    pub fn test(&self) -> u64 {
        let test = |word: &AtomicU64| u64::from(self.format.test(word, LEVEL_4K));
        self.words.iter().map(test).sum()
    }

    /// Entries that count as young now.
    fn young(&self) -> u64 {
        self.test()
    }

    /// Make entries young at random, as a processor does: loads first, writes
    /// only what is old. Returns how many it made young.
    fn set_until(&self, stop: &AtomicBool, seed: u64) -> u64 {
        let mut random = Xoshiro256PlusPlus::seed_from_u64(seed);
        let mut set = 0;
        while !stop.load(Ordering::Relaxed) {
            for _ in 0..256 {
                let word = &self.words[random.next_u64() as usize % self.words.len()];
                let seen = word.load(Ordering::Relaxed);
                let new = if self.format.ad_bits {
                    seen | self.format.accessed
                } else {
                    crate::kvm::mmu::spte::restore_access_track(seen)
                };
                if !self.format.is_accessed(seen)
                    && word
                        .compare_exchange(seen, new, Ordering::AcqRel, Ordering::Relaxed)
                        .is_ok()
                {
                    set += 1;
                }
            }
        }
        set
    }
}

/// The limit that does not look at what it clears.
const BLIND: &str = "flat fetch_and";

type Loop = fn(&Flat) -> u64;

/// Share of entries that a pass found young.
const YOUNG: Metric = Metric::count("young_share", "1");
/// What the other thread did meanwhile.
const SET: Metric = Metric::rate("set_per_second", "1/s");

fn counted(flat: &Flat, young: u64, write: Option<Write>) -> CounterValues {
    let totals = CounterTotals::default();
    totals.add(Counter::SpteLoads, flat.len() as u64);
    match write {
        Some(Write::FetchAnd) => totals.add(Counter::SpteFetchAnd, young),
        Some(Write::Exchanged) => totals.add(Counter::SpteCas, young),
        Some(Write::PlainStore) => totals.add(Counter::SptePlainStores, young),
        _ => {}
    }
    totals.snapshot()
}

/// Name, array, loop, how it writes, what it is held against, whether it clears.
type Row<'a> = (&'a str, &'a Flat, Loop, Option<Write>, &'a str, bool);

pub(super) fn run(stage: &mut Stage<'_>) -> Result<()> {
    let options = stage.options.clone();
    let affinity = &stage.affinity.clone();
    let sizes: &[usize] = options.pick(
        &[1 << 12][..],
        &[1 << 20],
        &[1 << 20, 16 << 20],
        &[1 << 20, 16 << 20],
    );
    for &len in sizes {
        let with_ad = Flat::new(len, SpteFormat::EPT);
        let without = Flat::new(len, SpteFormat::EPT_NO_AD);
        debug_assert!(SpteFormat::EPT.default_ad_type() == AD_ENABLED);
        debug_assert!(SpteFormat::EPT_NO_AD.default_ad_type() == AD_DISABLED);
        let loops: [Row<'_>; 7] = [
            ("flat scan", &with_ad, Flat::scan, None, "", false),
            (
                "flat scan, ahead",
                &with_ad,
                Flat::scan_ahead,
                None,
                "flat scan",
                false,
            ),
            (
                BLIND,
                &with_ad,
                Flat::fetch_and,
                Some(Write::FetchAnd),
                "",
                true,
            ),
            ("test", &with_ad, Flat::test, None, "flat scan", false),
            (
                "age, fetch_and",
                &with_ad,
                Flat::age,
                Some(Write::FetchAnd),
                BLIND,
                true,
            ),
            (
                "age, compare-and-exchange",
                &without,
                Flat::age,
                Some(Write::Exchanged),
                BLIND,
                true,
            ),
            (
                "age, plain store under a lock",
                &with_ad,
                Flat::age_locked,
                Some(Write::PlainStore),
                BLIND,
                true,
            ),
        ];
        for &contended in &[false, true] {
            for percent in [0, 1, 10, 50, 100] {
                let contestants = loops
                    .iter()
                    // A plain store would lose what another thread sets.
                    .filter(|l| !contended || l.3 != Some(Write::PlainStore))
                    .map(|&(name, flat, work, write, against, clears)| {
                        let contestant = Contestant::new(name, move || {
                            let expected = fill(flat, percent, options.seed);
                            if contended {
                                return beside_a_setter(flat, work, write, options.seed, affinity);
                            }
                            let (ns, young) = worked(|| black_box(work(black_box(flat))));
                            verify(flat, name, clears, expected, young)?;
                            let counters = counted(flat, young, write);
                            let share = young as f64 / flat.len() as f64;
                            Ok(
                                Sample::per_item(ns, flat.len() as u64, counters)
                                    .with(YOUNG, share),
                            )
                        });
                        if against.is_empty() {
                            contestant
                        } else {
                            contestant.against(against)
                        }
                    })
                    .collect();
                let beside = if contended { ", beside a setter" } else { "" };
                let case = Case {
                    name: format!("{len} entries, {percent}% young{beside}"),
                    parameters: vec![
                        ("entries", len.to_string()),
                        ("young_percent", percent.to_string()),
                        ("setter", contended.to_string()),
                    ],
                    threads: 1 + usize::from(contended),
                    repetitions: options.repetitions(9),
                    warm_up: 1,
                };
                stage.contest(&case, contestants)?;
            }
        }
    }
    Ok(())
}

fn verify(flat: &Flat, name: &str, clears: bool, expected: u64, young: u64) -> Result<()> {
    if young != expected && name != BLIND {
        return Err(wrong(format!(
            "{name}: {young} entries were found young of {expected} that were"
        )));
    }
    let left = flat.young();
    if left != if clears { 0 } else { expected } {
        return Err(wrong(format!(
            "{name}: {left} of {expected} entries are young after the pass"
        )));
    }
    Ok(())
}

/// One pass while another thread makes entries young again.
fn beside_a_setter(
    flat: &Flat,
    work: Loop,
    write: Option<Write>,
    seed: u64,
    affinity: &Affinity,
) -> Result<Sample> {
    let stop = AtomicBool::new(false);
    let started = AtomicBool::new(false);
    thread::scope(|scope| {
        let setter = scope.spawn(|| {
            affinity.pin(1);
            started.store(true, Ordering::Release);
            flat.set_until(&stop, seed)
        });
        while !started.load(Ordering::Acquire) {
            thread::yield_now();
        }
        let (ns, young) = worked(|| black_box(work(black_box(flat))));
        stop.store(true, Ordering::Relaxed);
        let set = match setter.join() {
            Ok(set) => set,
            Err(panic) => std::panic::resume_unwind(panic),
        };
        let counters = counted(flat, young, write);
        Ok(Sample::per_item(ns, flat.len() as u64, counters)
            .with(YOUNG, young as f64 / flat.len() as f64)
            .with(SET, set as f64 / (ns as f64 * 1e-9)))
    })
}
