//! The ways of aging that are compared, as data.
//!
//! One walk serves them all; a [`Protocol`] says which locks it takes and how
//! it writes. What MGLRU's aging asks of notifiers (nothing, `accurate` or
//! `fast_only`) is a setting of the multi-gen LRU, not of a VM.

/// How the TDP MMU is aged.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TdpAging {
    /// `mmu_lock` held for write; a plain store where nothing else can be lost.
    Locked,
    /// An RCU section; one atomic operation an entry.
    Lockless,
}

/// How the shadow MMU is aged. Testing is lockless unless all is `Locked`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ShadowAging {
    /// `mmu_lock` held for write.
    Locked,
    /// Lockless for `fast_only` callers, `mmu_lock` for write otherwise.
    LocklessWhenFast,
    /// Always lockless.
    Lockless,
}

/// What a lockless walk does to a young shadow SPTE without A/D bits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ShadowNoAd {
    /// Report it young and leave it: nothing ages it but a locked walk.
    Leave,
    /// Access-track it by one compare-and-exchange.
    CompareExchange,
}

/// How a VM answers `clear_flush_young`, `clear_young` and `test_young`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Protocol {
    /// What users call it.
    pub name: &'static str,
    /// How the TDP MMU is aged.
    pub tdp_aging: TdpAging,
    /// Whether invalid roots are aged too.
    pub all_roots: bool,
    /// How the shadow MMU is aged.
    pub shadow_aging: ShadowAging,
    /// What lockless shadow aging does without A/D bits.
    pub shadow_no_ad: ShadowNoAd,
    /// Whether the notifier registers as fast (`has_fast_aging`).
    pub has_fast_aging: bool,
    /// Whether the three young callbacks walk memslots without `mmu_lock`
    /// (`KVM_MMU_NOTIFIER_YOUNG_LOCKLESS`).
    pub young_lockless: bool,
    /// Whether losing an accessed bit matters when an SPTE is written; v9
    /// tolerates it.
    pub accessed_volatile: bool,
}

impl Protocol {
    /// Before the series: one `mmu_lock` for everything.
    pub const BASELINE: Protocol = Protocol {
        name: "baseline",
        tdp_aging: TdpAging::Locked,
        all_roots: true,
        shadow_aging: ShadowAging::Locked,
        shadow_no_ad: ShadowNoAd::Leave,
        has_fast_aging: false,
        young_lockless: false,
        accessed_volatile: true,
    };
    /// The series, version 7.
    pub const V7: Protocol = Protocol {
        name: "v7",
        tdp_aging: TdpAging::Lockless,
        all_roots: false,
        shadow_aging: ShadowAging::LocklessWhenFast,
        shadow_no_ad: ShadowNoAd::Leave,
        has_fast_aging: true,
        young_lockless: true,
        accessed_volatile: true,
    };
    /// The KVM half as it was merged in 6.15.
    pub const V9: Protocol = Protocol {
        name: "v9",
        tdp_aging: TdpAging::Lockless,
        all_roots: false,
        shadow_aging: ShadowAging::Lockless,
        shadow_no_ad: ShadowNoAd::CompareExchange,
        has_fast_aging: false,
        young_lockless: true,
        accessed_volatile: false,
    };
    /// The series on an architecture that does not opt in: its young callbacks
    /// take `mmu_lock`, so it is not fast and `fast_only` callers skip it.
    pub const V7_ARM64: Protocol = Protocol {
        name: "v7-arm64",
        tdp_aging: TdpAging::Locked,
        all_roots: true,
        shadow_aging: ShadowAging::Locked,
        has_fast_aging: false,
        young_lockless: false,
        ..Protocol::V7
    };
    /// All of them.
    pub const ALL: &'static [Protocol] = &[
        Protocol::BASELINE,
        Protocol::V7,
        Protocol::V9,
        Protocol::V7_ARM64,
    ];

    /// By name.
    pub fn by_name(name: &str) -> Option<Protocol> {
        Self::ALL.iter().copied().find(|p| p.name == name)
    }

    /// Whether a call needs `mmu_lock` for the shadow MMU's part.
    #[inline]
    pub fn shadow_lockless(&self, fast_only: bool, test: bool) -> bool {
        match self.shadow_aging {
            ShadowAging::Locked => false,
            ShadowAging::LocklessWhenFast => fast_only || test,
            ShadowAging::Lockless => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn section_9_table_of_protocols() {
        let [b, v7, v9] = ["baseline", "v7", "v9"].map(|n| Protocol::by_name(n).expect("known"));
        assert!(!b.shadow_lockless(true, true) && !b.has_fast_aging && !b.young_lockless);
        assert!(v7.shadow_lockless(true, false) && v7.shadow_lockless(false, true));
        assert!(!v7.shadow_lockless(false, false) && v7.has_fast_aging);
        assert!(v9.shadow_lockless(false, false) && !v9.has_fast_aging && v9.young_lockless);
        assert_eq!(v9.shadow_no_ad, ShadowNoAd::CompareExchange);
    }

    #[test]
    fn an_architecture_that_does_not_opt_in_is_locked_and_not_fast() {
        let arm = Protocol::by_name("v7-arm64").expect("known");
        assert!(!arm.young_lockless && !arm.has_fast_aging);
        assert!(Protocol::by_name("v8").is_none());
    }
}
