//! Deliberately broken variants, for the checks that must catch them.
//!
//! A place that a mutant changes asks [`active`]. In a build without the
//! `mutants` feature, which is every build that ships, the answer is the
//! constant `false` and the variant is compiled out. With the feature, one
//! mutant at a time is selected by [`select`], for the whole process.

/// A broken or costly variant, by the name that its catch is reported under.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[repr(u32)]
pub enum Mutant {
    /// Releasing a read-only rmap hold is a relaxed store.
    UnlockRelaxed = 1,
    /// After an empty head was not locked, the walk reads the head again.
    RereadHead,
    /// A waiter for an rmap chain re-reads before it pauses: a cost.
    PauseAfterRead,
    /// The holder of an rmap chain can be descheduled: a cost.
    PreemptOn,
    /// FROZEN contains the accessed bit, so late aging thaws it.
    ThawFrozen,
    /// A lockless rmap walk steps huge levels from an unaligned start.
    UnalignedStep,
    /// A present leaf is written with a plain store.
    PlainLeafWrite,
    /// An SPTE without A/D bits is written plainly.
    AdOffPlain,
    /// Aging without A/D bits retries its exchange without bound: a cost.
    CasRetryForever,
    /// Page-table pages are freed at once after unlinking.
    NoRcuDelay,
    /// The accessed bit is cleared by load, mask, store.
    AgeByStore,
    /// The accessed bit is cleared also where the first look found none.
    ClearUnseen,
    /// The rmap entry is removed before the SPTE is zapped.
    ZapAfterUnlink,
    /// A table or descriptor is linked before its contents are written.
    PublishBeforeInit,
    /// The old memslot set is edited before readers have left.
    NoSrcuWait,
    /// The end of an invalidation lowers the count before it bumps the sequence.
    SeqAfterCount,
    /// Unregistering a notifier does not wait for calls under way.
    NoUnregisterWait,
    /// A fault maps without checking the invalidation sequence again.
    NoSeqCheck,
    /// A fault installs its SPTE by a plain store.
    FaultByStore,
    /// Aging clears accessed bits of non-present SPTEs too.
    AgeNonPresent,
    /// Restoring an access-tracked SPTE returns Writable on any fault.
    RestoreWritable,
    /// Zapping drops the dirty bit instead of passing it on.
    ZapDropsDirty,
    /// A retired table is passed to be freed by both threads that raced to unlink it.
    FreeByLoser,
    /// A walk updates an isolated folio's generation as if it were listed.
    PromoteIsolated,
    /// Two agers of one sequence both increment it.
    DoubleIncrement,
    /// A new generation's number is published by a relaxed store.
    MaxSeqRelaxed,
}

impl Mutant {
    /// Every mutant.
    pub const ALL: &'static [Mutant] = &[
        Mutant::UnlockRelaxed,
        Mutant::RereadHead,
        Mutant::PauseAfterRead,
        Mutant::PreemptOn,
        Mutant::ThawFrozen,
        Mutant::UnalignedStep,
        Mutant::PlainLeafWrite,
        Mutant::AdOffPlain,
        Mutant::CasRetryForever,
        Mutant::NoRcuDelay,
        Mutant::AgeByStore,
        Mutant::ClearUnseen,
        Mutant::ZapAfterUnlink,
        Mutant::PublishBeforeInit,
        Mutant::NoSrcuWait,
        Mutant::SeqAfterCount,
        Mutant::NoUnregisterWait,
        Mutant::NoSeqCheck,
        Mutant::FaultByStore,
        Mutant::AgeNonPresent,
        Mutant::RestoreWritable,
        Mutant::ZapDropsDirty,
        Mutant::FreeByLoser,
        Mutant::PromoteIsolated,
        Mutant::DoubleIncrement,
        Mutant::MaxSeqRelaxed,
    ];

    /// Its name, as in the series' list of faults.
    pub const fn name(self) -> &'static str {
        match self {
            Mutant::UnlockRelaxed => "unlock-relaxed",
            Mutant::RereadHead => "reread-head",
            Mutant::PauseAfterRead => "pause-after-read",
            Mutant::PreemptOn => "preempt-on",
            Mutant::ThawFrozen => "thaw-frozen",
            Mutant::UnalignedStep => "unaligned-step",
            Mutant::PlainLeafWrite => "plain-leaf-write",
            Mutant::AdOffPlain => "ad-off-plain",
            Mutant::CasRetryForever => "cas-retry-forever",
            Mutant::NoRcuDelay => "no-rcu-delay",
            Mutant::AgeByStore => "age-by-store",
            Mutant::ClearUnseen => "clear-unseen",
            Mutant::ZapAfterUnlink => "zap-after-unlink",
            Mutant::PublishBeforeInit => "publish-before-init",
            Mutant::NoSrcuWait => "no-srcu-wait",
            Mutant::SeqAfterCount => "seq-after-count",
            Mutant::NoUnregisterWait => "no-unregister-wait",
            Mutant::NoSeqCheck => "no-seq-check",
            Mutant::FaultByStore => "fault-by-store",
            Mutant::AgeNonPresent => "age-non-present",
            Mutant::RestoreWritable => "restore-writable",
            Mutant::ZapDropsDirty => "zap-drops-dirty",
            Mutant::FreeByLoser => "free-by-loser",
            Mutant::PromoteIsolated => "promote-isolated",
            Mutant::DoubleIncrement => "double-increment",
            Mutant::MaxSeqRelaxed => "max-seq-relaxed",
        }
    }
}

#[cfg(feature = "mutants")]
mod selected {
    use super::Mutant;

    // Not an atomic of the checked code but a setting of the check: chosen
    // before a run's threads start, constant while they run.
    static SELECTED: crate::sync::once::OnceLock<u32> = crate::sync::once::OnceLock::new();

    /// Select a mutant for this process, or none.
    ///
    /// # Panics
    /// If another choice was made before.
    pub fn select(mutant: Option<Mutant>) {
        let value = mutant.map_or(0, |m| m as u32);
        assert_eq!(
            *SELECTED.get_or_init(|| value),
            value,
            "one mutant a process"
        );
    }

    /// Whether `mutant` was selected.
    pub fn active(mutant: Mutant) -> bool {
        SELECTED.get().is_some_and(|&value| value == mutant as u32)
    }
}
#[cfg(feature = "mutants")]
pub use selected::{active, select};

/// With the `mutants` feature, YOUNGBIT_MUTANT names the variant that this
/// crate's own tests run on, to see which of them it breaks.
#[cfg(test)]
pub(crate) fn select_named() {
    #[cfg(feature = "mutants")]
    {
        let wanted = std::env::var("YOUNGBIT_MUTANT").unwrap_or_default();
        select(Mutant::ALL.iter().copied().find(|m| m.name() == wanted));
    }
}

/// Whether `mutant` is selected: never, in this build.
#[cfg(not(feature = "mutants"))]
#[inline(always)]
pub const fn active(_mutant: Mutant) -> bool {
    false
}
