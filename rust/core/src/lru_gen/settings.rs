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
    caps: AtomicU32,
    supported: AtomicU32,
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
            caps: AtomicU32::new(caps::ALL),
            supported: AtomicU32::new(caps::ALL),
            asking: AtomicU8::new(Asking::FastOnly as u8),
            batched: AtomicBool::new(false),
            min_ttl_ms: AtomicU32::new(0),
            swappiness: AtomicU32::new(60),
            policy: PolicySlot::default(),
        }
    }
}

impl Settings {
    /// The capabilities that are on.
    #[inline]
    pub fn caps(&self) -> u32 {
        self.caps.load(Ordering::Relaxed)
    }

    /// Whether all capabilities of `mask` are on.
    #[inline]
    pub fn has(&self, mask: u32) -> bool {
        self.caps() & mask == mask
    }

    /// Switch capabilities; those that the kernel does not have are ignored.
    pub fn set_caps(&self, mask: u32) {
        let supported = self.supported.load(Ordering::Relaxed);
        self.caps.store(mask & supported, Ordering::Relaxed);
    }

    /// What aging asks secondary MMUs.
    pub fn asking(&self) -> Asking {
        match self.asking.load(Ordering::Relaxed) {
            0 => Asking::None,
            1 => Asking::Accurate,
            _ => Asking::FastOnly,
        }
    }

    /// Choose what aging asks. Only kernels that ask `FastOnly` have
    /// capability 0x8; it is dropped for the others.
    pub fn set_asking(&self, asking: Asking) {
        let supported = if asking == Asking::FastOnly {
            caps::ALL
        } else {
            caps::ALL & !caps::SECONDARY_MMU_WALK
        };
        self.asking.store(asking as u8, Ordering::Relaxed);
        self.supported.store(supported, Ordering::Relaxed);
        self.set_caps(self.caps());
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
