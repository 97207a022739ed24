//! The feedback loop over refaults: which tiers to protect, which type to evict.
//!
//! A proportional-integral controller whose derivative part is zero. The
//! *position* of a tier is how many of its pages were refaulted among those
//! that were evicted or protected: this generation's counts plus the moving
//! average of earlier ones, which is halved once per generation. A tier whose
//! position is above the setpoint's is protected; the type whose first tier is
//! below the other's is evicted.
//!
//! Source: `read_ctrl_pos()`, `reset_ctrl_pos()`, `positive_ctrl_err()`,
//! `get_tier_idx()`, `get_type_to_scan()` of `mm/vmscan.c`.

use super::lruvec::{
    ANON, FILE, Lists, LruVec, MAX_NR_TIERS, MIN_LRU_BATCH, NR_HIST_GENS, hist_from_seq,
};
use crate::sync::atomic::Ordering;

/// The largest swappiness; it evicts anonymous pages first.
pub const MAX_SWAPPINESS: u32 = 200;

/// Where a tier stands (`struct ctrl_pos`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Position {
    /// Pages refaulted.
    pub refaulted: u64,
    /// Pages evicted or protected.
    pub total: u64,
    /// Weight of this side of a comparison.
    pub gain: u64,
}

/// Whether `pv` (the process variable) may be evicted, measured against `sp`
/// (the setpoint): it refaulted little in absolute terms, or no more often than
/// the setpoint in proportion (`positive_ctrl_err()`).
#[inline]
pub fn positive_ctrl_err(sp: &Position, pv: &Position) -> bool {
    let batch = MIN_LRU_BATCH as u64;
    if pv.refaulted < batch {
        return true;
    }
    let wide = |a: u64, b: u64, c: u64| u128::from(a) * u128::from(b) * u128::from(c);
    wide(pv.refaulted, sp.total + batch, sp.gain) <= wide(sp.refaulted + 1, pv.total, pv.gain)
}

impl LruVec {
    /// The position of a tier of the oldest generation of a type
    /// (`read_ctrl_pos()`).
    pub fn ctrl_pos(&self, ty: usize, tier: usize, gain: u64) -> Position {
        let hist = hist_from_seq(self.min_seq(ty));
        // Relaxed: sums that others add to; a late addition is seen next time.
        let mut total = self.avg_total[ty][tier].load(Ordering::Relaxed)
            + self.evicted[hist][ty][tier].load(Ordering::Relaxed);
        if tier > 0 {
            total += self.protected[hist][ty][tier].load(Ordering::Relaxed);
        }
        let refaulted = self.avg_refaulted[ty][tier].load(Ordering::Relaxed)
            + self.refaulted[hist][ty][tier].load(Ordering::Relaxed);
        Position {
            refaulted,
            total,
            gain,
        }
    }

    /// Fold the oldest generation of a type into the averages (`carryover`,
    /// before `min_seq` rises), or clear the history slot that the next
    /// generation will use (before `max_seq` rises) (`reset_ctrl_pos()`).
    pub(crate) fn reset_ctrl_pos(&self, _held: &mut Lists, ty: usize, carryover: bool) {
        let clear = if carryover {
            NR_HIST_GENS == 1
        } else {
            NR_HIST_GENS > 1
        };
        let seq = if carryover {
            self.min_seq(ty)
        } else {
            self.max_seq() + 1
        };
        let hist = hist_from_seq(seq);
        for tier in 0..MAX_NR_TIERS {
            if carryover {
                let now = self.ctrl_pos(ty, tier, 1);
                self.avg_refaulted[ty][tier].store(now.refaulted / 2, Ordering::Relaxed);
                self.avg_total[ty][tier].store(now.total / 2, Ordering::Relaxed);
            }
            if clear {
                self.refaulted[hist][ty][tier].store(0, Ordering::Relaxed);
                self.evicted[hist][ty][tier].store(0, Ordering::Relaxed);
                self.protected[hist][ty][tier].store(0, Ordering::Relaxed);
            }
        }
    }

    /// The highest tier of a type that may be evicted, when the type was not
    /// the controller's choice: the type's own first tier is the setpoint, at
    /// gains 1 to 2 (`get_tier_idx()`).
    pub fn tier_to_evict(&self, ty: usize) -> usize {
        let sp = self.ctrl_pos(ty, 0, 1);
        highest_tier(|tier| positive_ctrl_err(&sp, &self.ctrl_pos(ty, tier, 2)))
    }

    /// The type to evict, and the highest of its tiers that may be, by
    /// comparing with the other type's first tier (`get_type_to_scan()`).
    pub fn type_to_evict(&self, swappiness: u32) -> (usize, usize) {
        let gain = [
            u64::from(swappiness),
            u64::from(MAX_SWAPPINESS - swappiness),
        ];
        let anon = self.ctrl_pos(ANON, 0, gain[ANON]);
        let file = self.ctrl_pos(FILE, 0, gain[FILE]);
        let ty = usize::from(positive_ctrl_err(&anon, &file));
        let sp = if ty == FILE { anon } else { file };
        let tier = highest_tier(|tier| positive_ctrl_err(&sp, &self.ctrl_pos(ty, tier, gain[ty])));
        (ty, tier)
    }
}

/// The last tier before the first that is refused.
fn highest_tier(allowed: impl Fn(usize) -> bool) -> usize {
    (1..MAX_NR_TIERS)
        .find(|&tier| !allowed(tier))
        .unwrap_or(MAX_NR_TIERS)
        - 1
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn at(refaulted: u64, total: u64, gain: u64) -> Position {
        Position {
            refaulted,
            total,
            gain,
        }
    }

    #[test]
    fn few_refaults_never_protect() {
        let sp = at(0, 1_000_000, 1);
        assert!(positive_ctrl_err(&sp, &at(63, 63, 2)));
        assert!(!positive_ctrl_err(&sp, &at(64, 64, 2)));
    }

    #[test]
    fn rates_are_compared_with_their_gains() {
        // 10% refaulted at the setpoint: at gain 2, up to about 20% is let go.
        let sp = at(999, 9936, 1);
        assert!(positive_ctrl_err(&sp, &at(200, 1000, 2)));
        assert!(!positive_ctrl_err(&sp, &at(201, 1000, 2)));
        // Large counts must not overflow.
        let sp = at(1 << 40, 1 << 41, 200);
        assert!(positive_ctrl_err(&sp, &at((1 << 40) - 64, 1 << 41, 200)));
        assert!(!positive_ctrl_err(&sp, &at(1 << 40, 1 << 41, 200)));
    }

    #[test]
    fn averages_halve_once_a_generation_and_history_is_cleared() {
        let lruvec = LruVec::new(1, 0, 0);
        lruvec.refaulted[0][FILE][1].store(100, Ordering::Relaxed);
        lruvec.evicted[0][FILE][1].store(300, Ordering::Relaxed);
        lruvec.protected[0][FILE][1].store(100, Ordering::Relaxed);
        assert_eq!(lruvec.ctrl_pos(FILE, 1, 1), at(100, 400, 1));
        let mut lists = lruvec.lru_lock.lock();
        lruvec.reset_ctrl_pos(&mut lists, FILE, true);
        lruvec.set_min_seq(&mut lists, FILE, 1);
        assert_eq!(lruvec.ctrl_pos(FILE, 1, 1), at(50, 200, 1));
        // The generation after max_seq 3 reuses slot 0.
        lruvec.reset_ctrl_pos(&mut lists, FILE, false);
        assert_eq!(lruvec.evicted[0][FILE][1].load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_tier_that_refaults_more_is_protected_with_all_above_it() {
        let lruvec = LruVec::new(1, 0, 0);
        assert_eq!(lruvec.tier_to_evict(FILE), MAX_NR_TIERS - 1);
        for (tier, refaulted) in [(0, 10), (1, 10), (2, 500), (3, 10)] {
            lruvec.refaulted[0][FILE][tier].store(refaulted, Ordering::Relaxed);
            lruvec.evicted[0][FILE][tier].store(1000, Ordering::Relaxed);
        }
        assert_eq!(lruvec.tier_to_evict(FILE), 1);
        // Anon never refaulted: file, which did, is kept.
        lruvec.evicted[0][ANON][0].store(1000, Ordering::Relaxed);
        lruvec.refaulted[0][FILE][0].store(500, Ordering::Relaxed);
        assert_eq!(lruvec.type_to_evict(100).0, ANON);
        lruvec.refaulted[0][FILE][0].store(0, Ordering::Relaxed);
        assert_eq!(lruvec.type_to_evict(100).0, FILE);
    }
}
