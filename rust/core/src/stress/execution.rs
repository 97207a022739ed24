//! Which pages the guest's own tables let be executed, and what a fetch must
//! find.
//!
//! The guest's kernel forbids and allows execution while vCPUs fetch, and keeps
//! a stamp for each of its leaves. A vCPU reads the stamp before its fetches and
//! after them: where it has not moved, what the guest's tables say was the same
//! all along, and the fetch must have ended accordingly.

use super::RELAXED;
use super::room::{Region, UNMAPPED};
use crate::sync::atomic::{AtomicU32, Ordering};
use crate::table::TABLE_SHIFT;

/// What a stamp says, by its remainder.
const ALLOWED: u32 = 0;
const FORBIDDEN: u32 = 2;
const PHASES: u32 = 4;

/// The stamps of the regions that the guest's kernel takes execution from, by
/// leaf of its tables. Each moves when the kernel begins to change what its
/// tables say of the page, and when all of its aliases say so.
pub struct Permits {
    regions: Vec<Box<[AtomicU32]>>,
    shift: u32,
}

impl Permits {
    /// Everything may be executed, by leaves of `level`.
    pub fn new(regions: &[Region], level: u32) -> Self {
        let shift = TABLE_SHIFT * (level - 1);
        let stamps = |region: &Region| {
            let leaves = ((region.slot_pages() - 1) >> shift) + 1;
            (0..leaves).map(|_| AtomicU32::new(0)).collect()
        };
        Permits {
            regions: regions[..UNMAPPED].iter().map(stamps).collect(),
            shift,
        }
    }

    /// The stamp of a page of a region's slot; `None` for a region that nobody
    /// forbids anything in.
    pub fn stamp(&self, region: usize, offset: u64) -> Option<&AtomicU32> {
        let stamps = self.regions.get(region)?;
        Some(&stamps[(offset >> self.shift) as usize])
    }

    /// Pages of a leaf.
    pub fn leaf_pages(&self) -> u64 {
        1 << self.shift
    }
}

/// The guest's kernel begins to change a permission, or has changed it. Only
/// its own thread does.
pub fn advance(stamp: &AtomicU32) {
    let next = stamp.load(RELAXED).wrapping_add(1);
    // Release: pairs with `read`. Who sees the end of a change sees it made;
    // the beginning is in front of the change for whoever sees the change, which
    // a page walk reads with acquire.
    stamp.store(next, Ordering::Release);
}

/// What a vCPU reads before and after its fetches, outside the guest.
pub fn read(stamp: &AtomicU32) -> u32 {
    // Acquire: pairs with `advance`.
    stamp.load(Ordering::Acquire)
}

/// Whether a fetch that was made can have been, between two readings.
pub fn may_succeed((before, after): (u32, u32)) -> bool {
    before != after || before % PHASES != FORBIDDEN
}

/// Whether a fetch that was refused can have been.
pub fn may_fail((before, after): (u32, u32)) -> bool {
    before != after || before % PHASES != ALLOWED
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn only_what_stood_still_is_judged() {
        let stamp = AtomicU32::new(0);
        let verdict = |before| {
            let seen = (before, read(&stamp));
            (may_succeed(seen), may_fail(seen))
        };
        for _ in 0..2 {
            let allowed = read(&stamp);
            assert_eq!(verdict(allowed), (true, false), "executable");
            advance(&stamp);
            let changing = read(&stamp);
            assert_eq!(verdict(allowed), (true, true), "moved");
            assert_eq!(verdict(changing), (true, true), "being forbidden");
            advance(&stamp);
            let forbidden = read(&stamp);
            assert_eq!(verdict(changing), (true, true), "moved");
            assert_eq!(verdict(forbidden), (false, true), "forbidden");
            advance(&stamp);
            assert_eq!(verdict(forbidden), (true, true), "moved");
            assert_eq!(verdict(read(&stamp)), (true, true), "being allowed");
            advance(&stamp);
            assert_eq!(verdict(allowed), (true, true), "a whole turn later");
        }
    }
}
