//! What reclaim decides, as something that can be replaced.
//!
//! Mechanism is elsewhere; a [`Policy`] says which type and which tiers to
//! evict, and when to age. The kernel's decisions are the provided methods, so
//! a policy that overrides one of them keeps the rest. It is asked once a batch
//! (up to 4096 folios), before the LRU lock is taken, so it may be slow; what it
//! is shown can have changed when its answer is used.

use super::aging;
use super::controller::MAX_SWAPPINESS;
use super::lruvec::{ANON, FILE, LruVec, MAX_NR_TIERS, gen_from_seq};
use crate::cpu::Cpu;
use crate::error::Error;
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::lock::RwSem;
use std::sync::Arc;

/// What a policy is shown of a lruvec.
pub struct View<'a> {
    cpu: &'a Cpu,
    lruvec: &'a LruVec,
}

impl<'a> View<'a> {
    /// A view of a lruvec, for a policy that is asked by `cpu`.
    pub fn new(cpu: &'a Cpu, lruvec: &'a LruVec) -> Self {
        View { cpu, lruvec }
    }

    /// Have the call that asked end with an error, when the model is
    /// consistent again.
    pub fn raise(&self, error: Error) {
        self.cpu.raise(error);
    }

    /// Whether it will end so already.
    pub fn has_error(&self) -> bool {
        self.cpu.has_error()
    }

    /// The memory cgroup's number.
    pub fn memcg(&self) -> u16 {
        self.lruvec.memcg
    }

    /// The node.
    pub fn node(&self) -> usize {
        self.lruvec.node
    }

    /// The youngest generation.
    pub fn max_seq(&self) -> u64 {
        self.lruvec.max_seq()
    }

    /// The oldest generation of a type (0 anonymous, 1 file).
    pub fn min_seq(&self, ty: usize) -> u64 {
        self.lruvec.min_seq(ty)
    }

    /// Pages of a generation and type.
    pub fn nr_pages(&self, seq: u64, ty: usize) -> u64 {
        self.lruvec.nr_pages(gen_from_seq(seq), ty).max(0) as u64
    }

    /// Refaulted pages, and evicted plus protected ones, of a tier.
    pub fn position(&self, ty: usize, tier: usize) -> (u64, u64) {
        let position = self.lruvec.ctrl_pos(ty, tier, 1);
        (position.refaulted, position.total)
    }
}

/// Which folios to evict.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Choice {
    /// 0 anonymous, 1 file.
    pub ty: usize,
    /// The highest tier to evict; `None` to have [`Policy::tier`] say it.
    pub tier: Option<usize>,
}

/// The decisions of reclaim.
pub trait Policy: Send + Sync {
    /// Which type to try first (`isolate_folios()`). Not asked when swappiness
    /// is 0: file then. `may_io` is false when swapping is not allowed now.
    fn choose(&self, view: &View<'_>, swappiness: u32, may_io: bool) -> Choice {
        let (ty, tier) = if view.min_seq(ANON) < view.min_seq(FILE) {
            (ANON, None)
        } else if swappiness == 1 {
            (FILE, None)
        } else if swappiness == MAX_SWAPPINESS {
            (ANON, None)
        } else if !may_io {
            (FILE, None)
        } else {
            let (ty, tier) = view.lruvec.type_to_evict(swappiness);
            (ty, Some(tier))
        };
        Choice { ty, tier }
    }

    /// The highest tier of a type to evict; those above are protected
    /// (`get_tier_idx()`).
    fn tier(&self, view: &View<'_>, ty: usize) -> usize {
        view.lruvec.tier_to_evict(ty)
    }

    /// Whether to age before evicting more (`should_run_aging()`).
    fn should_age(&self, view: &View<'_>, can_swap: bool) -> bool {
        aging::should_run_aging(view.lruvec, view.max_seq(), can_swap).0
    }
}

/// The kernel's decisions.
pub struct Native;

impl Policy for Native {}

/// A host's policy: the kernel's until it is replaced.
#[derive(Default)]
pub struct PolicySlot {
    replaced: AtomicBool,
    policy: RwSem<Option<Arc<dyn Policy>>>,
}

impl PolicySlot {
    /// Replace it; `None` brings the kernel's back. Passes that have begun may
    /// still ask the old one.
    pub fn set(&self, policy: Option<Arc<dyn Policy>>) {
        let mut slot = self.policy.write();
        self.replaced.store(policy.is_some(), Ordering::Release);
        *slot = policy;
    }

    /// Ask it.
    pub(crate) fn ask<R>(&self, question: impl FnOnce(&dyn Policy) -> R) -> R {
        // Acquire: pairs with the release in `set`.
        if self.replaced.load(Ordering::Acquire) {
            let policy = self.policy.read().clone();
            if let Some(policy) = policy {
                return question(&*policy);
            }
        }
        question(&Native)
    }
}

/// Keep an answer inside what there is.
pub(crate) fn clamp(choice: Choice) -> Choice {
    Choice {
        ty: choice.ty.min(FILE),
        tier: choice.tier.map(|tier| tier.min(MAX_NR_TIERS - 1)),
    }
}
