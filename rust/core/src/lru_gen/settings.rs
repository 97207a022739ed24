//! What the multi-gen LRU of a host is told to do: the files below
//! `/sys/kernel/mm/lru_gen`, and which kernel it stands for.

use super::policy::PolicySlot;
use crate::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering};

/// Capability bits of `/sys/kernel/mm/lru_gen/enabled`.
pub mod caps {
    /// The multi-gen LRU itself.
    pub const CORE: u32 = 0x0001;
    /// Leaf accessed bits are cleared in large batches, by walking page tables.
    pub const MM_WALK: u32 = 0x0002;
    /// Non-leaf accessed bits are used too.
    pub const NONLEAF_YOUNG: u32 = 0x0004;
    /// Secondary MMUs take part in the walk.
    pub const SECONDARY_MMU_WALK: u32 = 0x0008;
    /// All of them.
    pub const ALL: u32 = 0x000f;
}

/// What aging asks secondary MMUs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Asking {
    /// Nothing: kernels before 6.12-rc6.
    None,
    /// The accurate notifier, for every page: 6.12, and 6.15 with a KVM that
    /// needs no lock for it.
    Accurate,
    /// The fast-only notifier, if capability 0x8 is on: the v7 series.
    FastOnly,
}

impl Asking {
    /// The capabilities that a kernel has whose aging asks this.
    #[inline]
    fn supported(self) -> u32 {
        match self {
            Asking::None | Asking::Accurate => caps::ALL & !caps::SECONDARY_MMU_WALK,
            Asking::FastOnly => caps::ALL,
        }
    }
}

/// How the aging walk treats what is not a primary leaf entry.
#[derive(Clone, Copy)]
pub(crate) struct WalkRules {
    /// Whether to call `clear_young`, and with `fast_only` or without.
    pub ask: Option<bool>,
    /// Ask once a PTE table instead of once a page.
    pub batched: bool,
    /// Whether the young bit of a non-leaf entry narrows the walk.
    pub nonleaf: bool,
    /// Only where nobody forces a scan and no secondary MMU is there.
    pub nonleaf_careful: bool,
}

/// Host-wide settings.
pub struct Settings {
    /// The capabilities that were asked for, whether or not this kernel has them.
    asked: AtomicU32,
    asking: AtomicU8,
    batched: AtomicBool,
    min_ttl_ms: AtomicU32,
    swappiness: AtomicU32,
    /// What decides which pages reclaim takes, and when it ages.
    pub policy: PolicySlot,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            asked: AtomicU32::new(caps::ALL),
            asking: AtomicU8::new(Asking::FastOnly as u8),
            batched: AtomicBool::new(false),
            min_ttl_ms: AtomicU32::new(0),
            swappiness: AtomicU32::new(60),
            policy: PolicySlot::default(),
        }
    }
}

impl Settings {
    /// The capabilities that are on: those that were asked for and that the
    /// kernel has.
    #[inline]
    pub fn caps(&self) -> u32 {
        self.asked.load(Ordering::Relaxed) & self.asking().supported()
    }

    /// Whether all capabilities of `mask` are on.
    #[inline]
    pub fn has(&self, mask: u32) -> bool {
        self.caps() & mask == mask
    }

    /// Switch capabilities. Those that the kernel does not have stay off, until
    /// [`Settings::set_asking`] makes it one that has them.
    pub fn set_caps(&self, mask: u32) {
        self.asked.store(mask, Ordering::Relaxed);
    }

    /// What aging asks secondary MMUs.
    pub fn asking(&self) -> Asking {
        match self.asking.load(Ordering::Relaxed) {
            0 => Asking::None,
            1 => Asking::Accurate,
            _ => Asking::FastOnly,
        }
    }

    /// Choose what aging asks, and with it the kernel. Only kernels that ask
    /// `FastOnly` have capability 0x8: it is off in the others, and on again,
    /// if it was asked for, when a kernel that has it comes back.
    pub fn set_asking(&self, asking: Asking) {
        self.asking.store(asking as u8, Ordering::Relaxed);
    }

    /// Whether the aging walk asks secondary MMUs once a PTE table.
    pub fn batched(&self) -> bool {
        self.batched.load(Ordering::Relaxed)
    }

    /// Let the aging walk ask secondary MMUs once a PTE table, about all its
    /// pages together, instead of once a page. Beyond the series, and off
    /// unless it is switched on. The pages that are asked about and what
    /// becomes of them stay the same as long as nobody else works on them.
    pub fn set_batched(&self, batched: bool) {
        self.batched.store(batched, Ordering::Relaxed);
    }

    /// Milliseconds for which the working set is protected (`min_ttl_ms`).
    pub fn min_ttl_ms(&self) -> u32 {
        self.min_ttl_ms.load(Ordering::Relaxed)
    }

    /// Change [`Settings::min_ttl_ms`].
    pub fn set_min_ttl_ms(&self, ms: u32) {
        self.min_ttl_ms.store(ms, Ordering::Relaxed);
    }

    /// `vm.swappiness`, 0 to 200.
    pub fn swappiness(&self) -> u32 {
        self.swappiness.load(Ordering::Relaxed)
    }

    /// Change [`Settings::swappiness`]; more than 200 counts as 200.
    pub fn set_swappiness(&self, swappiness: u32) {
        self.swappiness
            .store(swappiness.min(200), Ordering::Relaxed);
    }

    /// Whether aging walks page tables (`should_walk_mmu()`).
    pub(crate) fn walks_mmu(&self) -> bool {
        self.has(caps::MM_WALK)
    }

    /// The rules of a walk that begins now.
    pub(crate) fn walk_rules(&self) -> WalkRules {
        let asking = self.asking();
        let secondary = self.has(caps::SECONDARY_MMU_WALK);
        WalkRules {
            ask: match asking {
                Asking::None => None,
                Asking::Accurate => Some(false),
                Asking::FastOnly => secondary.then_some(true),
            },
            batched: self.batched(),
            // A guest's access leaves the primary non-leaf bits alone, which
            // would hide its pages from a walk that asks for them.
            nonleaf: self.has(caps::NONLEAF_YOUNG) && !secondary,
            nonleaf_careful: asking == Asking::Accurate,
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_capability_that_was_asked_for_comes_back_with_a_kernel_that_has_it() {
        let settings = Settings::default();
        for other in [Asking::None, Asking::Accurate] {
            settings.set_asking(other);
            assert_eq!(settings.caps(), 0x7, "{other:?} has no 0x8");
            assert!(!settings.has(caps::SECONDARY_MMU_WALK));
            settings.set_asking(Asking::FastOnly);
            assert_eq!(settings.caps(), 0xf, "after {other:?}");
            assert_eq!(settings.walk_rules().ask, Some(true));
        }
        settings.set_asking(Asking::Accurate);
        settings.set_caps(0x3);
        settings.set_asking(Asking::FastOnly);
        assert_eq!(settings.caps(), 0x3, "nobody asked for 0x8");
        settings.set_caps(0xfff9);
        assert_eq!(settings.caps(), 0x9, "no kernel has the others");
    }
}
