//! MMU notifiers: who else maps an mm's memory (`mm/mmu_notifier.c`).
//!
//! An mm carries a list of subscriptions. Callers read it inside the host's
//! sleepable RCU domain, so callbacks may block, and unregistering waits for
//! every call that is under way.

use super::{Mm, PAGE_SIZE, PageMask};
use crate::cpu::Cpu;
use crate::error::{Errno, Error, Result};
use crate::mutant::{self, Mutant};
use crate::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use crate::sync::lock::Mutex;
use crate::sync::rcu::{Domain, RcuCell, Reader};
use crate::trace::Counter;
use std::sync::Arc;

/// Which operations a subscriber has. A missing one is skipped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ops {
    /// Has [`MmuNotifier::clear_flush_young`].
    pub clear_flush_young: bool,
    /// Has [`MmuNotifier::clear_young`].
    pub clear_young: bool,
    /// Has [`MmuNotifier::test_young`].
    pub test_young: bool,
    /// Has [`MmuNotifier::invalidate_range_start`] and its end.
    pub invalidate: bool,
}

impl Ops {
    /// All of them.
    pub const ALL: Ops = Ops {
        clear_flush_young: true,
        clear_young: true,
        test_young: true,
        invalidate: true,
    };
}

/// A secondary MMU, as the primary sees it (`struct mmu_notifier_ops`).
///
/// Addresses are bytes in the mm, ranges half open. A callback that fails
/// keeps its error with [`Cpu::raise`] and answers "not young".
pub trait MmuNotifier: Send + Sync {
    /// Which operations it has.
    fn ops(&self) -> Ops {
        Ops::ALL
    }
    /// Were pages of the range accessed? Clear that, and flush TLBs if so.
    fn clear_flush_young(&self, cpu: &Cpu, start: u64, end: u64) -> bool;
    /// Were pages of the range accessed? Clear that; a stale TLB is tolerated.
    /// With `fast_only`, answer only what needs no blocking.
    fn clear_young(&self, cpu: &Cpu, start: u64, end: u64, fast_only: bool) -> bool;
    /// [`clear_young`](Self::clear_young) of single pages, all at once: which
    /// pages of `wanted` were accessed? Page 0 of the mask is at `start`.
    /// Beyond the series, whose aging asks a page at a time; a subscriber that
    /// has nothing better is asked so.
    fn clear_young_each(
        &self,
        cpu: &Cpu,
        start: u64,
        wanted: &PageMask,
        fast_only: bool,
    ) -> PageMask {
        let mut young = PageMask::EMPTY;
        for n in wanted.iter() {
            let at = start + n as u64 * PAGE_SIZE;
            if self.clear_young(cpu, at, at + PAGE_SIZE, fast_only) {
                young.set(n);
            }
        }
        young
    }
    /// Was the page accessed? Nothing is changed.
    fn test_young(&self, cpu: &Cpu, address: u64, fast_only: bool) -> bool;
    /// The range is about to be unmapped: drop it, and map nothing of it until
    /// the matching end.
    fn invalidate_range_start(&self, cpu: &Cpu, start: u64, end: u64);
    /// The range is unmapped.
    fn invalidate_range_end(&self, cpu: &Cpu, start: u64, end: u64);
    /// The mm goes away, or the subscription does. Nothing is called after.
    fn release(&self, cpu: &Cpu);
}

/// One subscriber of one mm (`struct mmu_notifier`).
pub struct Subscription {
    /// Rises with every subscription of the mm.
    number: u64,
    notifier: Arc<dyn MmuNotifier>,
    ops: Ops,
    has_fast_aging: AtomicBool,
    released: AtomicBool,
}

impl Subscription {
    /// Say that aging it neither blocks nor makes others block. KVM sets this
    /// after registration, when the VM is set up.
    pub fn set_fast_aging(&self, list: &NotifierList, fast: bool) {
        // Under the list's lock, so that the count agrees with the flags.
        let _writer = list.subscribers.lock();
        // One that ends is counted out under the lock, and not in again. Acquire:
        // pairs with `release`.
        if self.released.load(Ordering::Acquire) {
            return;
        }
        if self.has_fast_aging.swap(fast, Ordering::Relaxed) != fast {
            if fast {
                list.nr_fast.fetch_add(1, Ordering::Release);
            } else {
                list.nr_fast.fetch_sub(1, Ordering::Release);
            }
        }
    }

    /// Whether it takes part in `fast_only` calls.
    #[inline]
    pub fn has_fast_aging(&self) -> bool {
        self.has_fast_aging.load(Ordering::Relaxed)
    }

    fn release(&self, cpu: &Cpu) {
        // In a section, which unregistering waits for: the release may be made
        // by another thread, in which the mm exits.
        let _section = cpu.srcu.lock();
        if !self.released.swap(true, Ordering::AcqRel) {
            self.notifier.release(cpu);
        }
    }
}

type Snapshot = Vec<Arc<Subscription>>;

/// The subscriptions of an mm (`mm->notifier_subscriptions`).
///
/// Writers replace a snapshot; readers follow it under SRCU. `len` lets the
/// many callers of an mm without subscribers leave after one load.
pub struct NotifierList {
    subscribers: Mutex<()>,
    snapshot: RcuCell<Snapshot>,
    len: AtomicU32,
    nr_fast: AtomicU32,
    next: AtomicU64,
}

impl NotifierList {
    /// An empty list, read in the host's sleepable domain.
    pub fn new(srcu: &Domain) -> Self {
        NotifierList {
            subscribers: Mutex::new(()),
            snapshot: RcuCell::new(srcu, Vec::new()),
            len: AtomicU32::new(0),
            nr_fast: AtomicU32::new(0),
            next: AtomicU64::new(0),
        }
    }

    /// `mm_has_notifiers()`.
    #[inline]
    pub fn has_notifiers(&self) -> bool {
        // Acquire: pairs with the release in `register`.
        self.len.load(Ordering::Acquire) != 0
    }

    /// `mm_has_fast_young_notifiers()`: whether any subscriber is fast.
    #[inline]
    pub fn has_fast_young_notifiers(&self) -> bool {
        // Acquire: pairs with the release where the flag is set.
        self.nr_fast.load(Ordering::Acquire) != 0
    }

    /// Publish a subscriber. The caller holds `mmap_lock` for write, which
    /// keeps page-table walkers of the mm out.
    fn publish(&self, cpu: &Cpu, subscription: Arc<Subscription>) {
        let _writer = self.subscribers.lock();
        let guard = cpu.srcu.lock();
        let mut next = self.snapshot.load(&guard).clone();
        next.push(subscription);
        let len = next.len() as u32;
        self.snapshot.replace(next, &guard);
        // Release: whoever sees the count finds the subscriber.
        self.len.store(len, Ordering::Release);
    }

    fn unlink(&self, cpu: &Cpu, subscription: &Subscription) -> bool {
        let _writer = self.subscribers.lock();
        let guard = cpu.srcu.lock();
        let mut next = self.snapshot.load(&guard).clone();
        let Some(at) = next.iter().position(|s| std::ptr::eq(&**s, subscription)) else {
            return false;
        };
        next.remove(at);
        let len = next.len() as u32;
        self.snapshot.replace(next, &guard);
        self.len.store(len, Ordering::Release);
        if subscription.has_fast_aging.swap(false, Ordering::Relaxed) {
            self.nr_fast.fetch_sub(1, Ordering::Release);
        }
        true
    }

    /// Ask every subscriber that `wanted` accepts, until `stop` of an answer.
    // Always inlined, as what it calls: an aging walk gets here once a page.
    #[inline(always)]
    fn ask(
        &self,
        cpu: &Cpu,
        fast_only: bool,
        wanted: impl Fn(&Ops) -> bool,
        counter: Counter,
        stop_at_young: bool,
        call: impl Fn(&dyn MmuNotifier) -> bool,
    ) -> bool {
        if !self.has_notifiers() {
            return false;
        }
        let guard = cpu.srcu.lock();
        let mut young = false;
        for subscription in self.snapshot.load(&guard) {
            if fast_only && !subscription.has_fast_aging() {
                cpu.count(Counter::NotifierSkipped);
                continue;
            }
            if !wanted(&subscription.ops) {
                continue;
            }
            cpu.count(counter);
            if call(&*subscription.notifier) {
                young = true;
                if stop_at_young {
                    break;
                }
            }
        }
        if young {
            cpu.count(Counter::NotifierYoung);
        }
        young
    }

    /// Ask all, OR the answers (`mmu_notifier_clear_flush_young()`).
    pub fn clear_flush_young(&self, cpu: &Cpu, start: u64, end: u64) -> bool {
        let counter = Counter::NotifierClearFlushYoung;
        self.ask(
            cpu,
            false,
            |ops| ops.clear_flush_young,
            counter,
            false,
            |n| n.clear_flush_young(cpu, start, end),
        )
    }

    /// Ask all, or with `fast_only` all fast ones, and OR the answers
    /// (`mmu_notifier_clear_young()`, `mmu_notifier_clear_young_fast_only()`).
    #[inline]
    pub fn clear_young(&self, cpu: &Cpu, start: u64, end: u64, fast_only: bool) -> bool {
        let counter = if fast_only {
            Counter::NotifierClearYoungFast
        } else {
            Counter::NotifierClearYoungSlow
        };
        self.ask(
            cpu,
            fast_only,
            |ops| ops.clear_young,
            counter,
            false,
            |n| n.clear_young(cpu, start, end, fast_only),
        )
    }

    /// Ask all, or with `fast_only` all fast ones, about each page of `wanted`,
    /// page 0 of which is at `start`, and OR the answers. One call a subscriber.
    pub fn clear_young_each(
        &self,
        cpu: &Cpu,
        start: u64,
        wanted: &PageMask,
        fast_only: bool,
    ) -> PageMask {
        let mut young = PageMask::EMPTY;
        let guard = cpu.srcu.lock();
        for subscription in self.snapshot.load(&guard) {
            if fast_only && !subscription.has_fast_aging() {
                cpu.count(Counter::NotifierSkipped);
            } else if subscription.ops.clear_young {
                cpu.count(Counter::NotifierClearYoungBatch);
                let notifier = &subscription.notifier;
                young |= notifier.clear_young_each(cpu, start, wanted, fast_only);
            }
        }
        cpu.count_n(Counter::NotifierYoung, young.count());
        young
    }

    /// Ask until one says young (`mmu_notifier_test_young()`).
    pub fn test_young(&self, cpu: &Cpu, address: u64, fast_only: bool) -> bool {
        let counter = if fast_only {
            Counter::NotifierTestYoungFast
        } else {
            Counter::NotifierTestYoungSlow
        };
        self.ask(
            cpu,
            fast_only,
            |ops| ops.test_young,
            counter,
            true,
            |n| n.test_young(cpu, address, fast_only),
        )
    }

    /// Tell all that the range is about to be unmapped. Dropping the result
    /// tells them that it is.
    pub fn invalidate<'a>(&'a self, cpu: &'a Cpu, start: u64, end: u64) -> Invalidation<'a> {
        let mut told_below = 0;
        if self.has_notifiers() {
            let guard = cpu.srcu.lock();
            for subscription in self.snapshot.load(&guard) {
                told_below = subscription.number + 1;
                if subscription.ops.invalidate {
                    cpu.count(Counter::NotifierInvalidate);
                    let notifier = &subscription.notifier;
                    notifier.invalidate_range_start(cpu, start, end);
                }
            }
        }
        Invalidation {
            list: self,
            cpu,
            told_below,
            start,
            end,
        }
    }
}

/// A range between `invalidate_range_start` and `invalidate_range_end`. Those
/// that were told of the start and are still subscribed are told of the end.
pub struct Invalidation<'a> {
    list: &'a NotifierList,
    cpu: &'a Cpu,
    /// Those with a lower number were told; a later one is not told of an end
    /// whose start it missed.
    told_below: u64,
    start: u64,
    end: u64,
}

impl Drop for Invalidation<'_> {
    fn drop(&mut self) {
        if self.told_below == 0 {
            return;
        }
        let guard = self.cpu.srcu.lock();
        for subscription in self.list.snapshot.load(&guard) {
            if subscription.ops.invalidate && subscription.number < self.told_below {
                subscription
                    .notifier
                    .invalidate_range_end(self.cpu, self.start, self.end);
            }
        }
    }
}

impl Mm {
    /// Subscribe (`mmu_notifier_register()`): excludes the mm's page-table
    /// walkers and publishes.
    pub fn register_notifier(
        &self,
        cpu: &Cpu,
        notifier: Arc<dyn MmuNotifier>,
    ) -> Arc<Subscription> {
        let _exclusive = self.mmap_lock.write();
        let subscription = Arc::new(Subscription {
            // Relaxed: numbers are given out under the lock, in the order in
            // which the subscribers then stand in the list.
            number: self.notifiers.next.fetch_add(1, Ordering::Relaxed),
            ops: notifier.ops(),
            notifier,
            has_fast_aging: AtomicBool::new(false),
            released: AtomicBool::new(false),
        });
        self.notifiers.publish(cpu, Arc::clone(&subscription));
        subscription
    }

    /// Unsubscribe (`mmu_notifier_unregister()`): releases, unlinks, and waits
    /// for every callback under way. None runs after this returns.
    ///
    /// # Errors
    /// `EBUSY` from inside a callback, which would wait for itself; `EINVAL`
    /// when the subscription is not of this mm or was ended before.
    pub fn unregister_notifier(&self, cpu: &Cpu, subscription: &Subscription) -> Result<()> {
        Self::refuse_inside_call(cpu)?;
        subscription.release(cpu);
        if !self.notifiers.unlink(cpu, subscription) {
            return Err(Error::invalid(
                "the notifier is not registered with this mm",
            ));
        }
        if !mutant::active(Mutant::NoUnregisterWait) {
            cpu.host().srcu.synchronize();
        }
        Ok(())
    }

    /// `EBUSY` from inside a notifier call, which unregistering would wait for.
    pub(crate) fn refuse_inside_call(cpu: &Cpu) -> Result<()> {
        if cpu.srcu.is_inside() {
            return Err(Error::new(
                Errno::EBUSY,
                "a notifier cannot be unregistered from inside a notifier call",
            ));
        }
        Ok(())
    }

    /// Drop every subscription without a word, when the host itself is gone.
    pub(crate) fn forget_notifiers(&self, cpu_srcu: &Reader) {
        self.notifiers
            .snapshot
            .replace(Vec::new(), &cpu_srcu.lock());
        self.notifiers.len.store(0, Ordering::Release);
    }

    /// Release and unlink every subscription (`__mmu_notifier_release()`), as
    /// the mm exits.
    pub(crate) fn release_notifiers(&self, cpu: &Cpu) {
        let all: Snapshot = {
            let guard = cpu.srcu.lock();
            self.notifiers.snapshot.load(&guard).clone()
        };
        for subscription in all {
            subscription.release(cpu);
            self.notifiers.unlink(cpu, &subscription);
        }
        cpu.host().srcu.synchronize();
    }
}
