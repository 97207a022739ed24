//! The Bloom filters that tell an aging walk which PMD entries to visit
//! (`mm/vmscan.c`, "Bloom filters").
//!
//! 2^15 bits and two hash functions, as in the kernel. A filter that was never
//! cleared does not exist: it passes everything and drops insertions.

use crate::sync::atomic::{AtomicU64, Ordering, zeroed};
use crate::sync::once::OnceLock;

/// log2 of the bits (`BLOOM_FILTER_SHIFT`).
const SHIFT: u32 = 15;

/// One filter.
pub struct BloomFilter {
    bits: OnceLock<Box<[AtomicU64]>>,
}

/// What a filter is asked about: a PMD entry of an mm.
#[inline]
pub fn pmd_item(mm: u32, pmd: u64) -> u64 {
    u64::from(mm) << 32 ^ pmd
}

fn keys(item: u64) -> [usize; 2] {
    // SplitMix64's finalizer: items are consecutive numbers, which a single
    // multiplication would spread too regularly for the designed rate.
    let mut hash = item.wrapping_add(0x9e37_79b9_7f4a_7c15);
    hash = (hash ^ hash >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ hash >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^= hash >> 31;
    let mask = (1 << SHIFT) - 1;
    [hash & mask, hash >> SHIFT & mask].map(|key| key as usize)
}

impl Default for BloomFilter {
    fn default() -> Self {
        Self::new()
    }
}

impl BloomFilter {
    /// A filter that does not exist yet.
    pub const fn new() -> Self {
        BloomFilter {
            bits: OnceLock::new(),
        }
    }

    /// Whether the filter may hold the item (`test_bloom_filter()`).
    #[inline]
    pub fn test(&self, item: u64) -> bool {
        // Relaxed: a hint; a missed insertion costs a PTE table one visit.
        self.bits.get().is_none_or(|bits| {
            keys(item)
                .iter()
                .all(|&key| bits[key / 64].load(Ordering::Relaxed) >> (key % 64) & 1 != 0)
        })
    }

    /// Put an item in, if the filter exists (`update_bloom_filter()`).
    pub fn insert(&self, item: u64) {
        let Some(bits) = self.bits.get() else { return };
        for key in keys(item) {
            let bit = 1 << (key % 64);
            let word = &bits[key / 64];
            if word.load(Ordering::Relaxed) & bit == 0 {
                word.fetch_or(bit, Ordering::Relaxed);
            }
        }
    }

    /// Empty it, or make it (`reset_bloom_filter()`).
    pub fn reset(&self) {
        let bits = self.bits.get_or_init(|| zeroed((1 << SHIFT) / 64));
        for word in bits {
            word.store(0, Ordering::Relaxed);
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn an_absent_filter_passes_everything_and_keeps_nothing() {
        let filter = BloomFilter::new();
        filter.insert(7);
        assert!(filter.test(8));
        filter.reset();
        assert!(!filter.test(7) && !filter.test(8));
        filter.insert(7);
        assert!(filter.test(7) && !filter.test(8));
        filter.reset();
        assert!(!filter.test(7));
    }

    #[test]
    fn false_positives_stay_near_the_designed_rate() {
        let filter = BloomFilter::new();
        filter.reset();
        for n in 0..10_000 {
            filter.insert(pmd_item(3, n * 8));
        }
        assert!((0..10_000).all(|n| filter.test(pmd_item(3, n * 8))));
        let wrong = (10_000..20_000)
            .filter(|&n| filter.test(pmd_item(3, n * 8)))
            .count();
        assert!((1000..3500).contains(&wrong), "{wrong} of 10,000");
    }
}
