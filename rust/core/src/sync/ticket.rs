//! A spinlock that serves in order of arrival, and whose waiters sleep when
//! their turn takes too long.
//!
//! The kernel's queued spinlock (`kernel/locking/qspinlock.c`) hands itself on
//! in order to waiters that spin, none of which can lose its processor. Threads
//! can: with more of them than processors, whoever spins may hold the very
//! processor that the holder, or the next in line, needs. So does a kernel whose
//! processors are themselves threads of a host, and it spins for a while, then
//! halts until it is kicked (`qspinlock_paravirt.h`). This is that: a ticket
//! each, a bounded spin, a bounded number of yields, and then sleep until the
//! thread that serves one's ticket says so. The order is that of the tickets
//! throughout; nobody can overtake, not even a holder that lets go and comes
//! back at once.

use super::atomic::{AtomicU32, Ordering};
use super::spin;
use super::thread;

#[cfg(not(loom))]
use std::thread::{Thread, current, park};

#[cfg(loom)]
use loom::thread::{Thread, current, park};

/// From one ticket to the next; the bit below is [`SLEEPERS`].
const TICKET: u32 = 2;
/// In [`TicketLock::serving`]: some waiter sleeps, or is about to.
const SLEEPERS: u32 = 1;

/// Rounds of a waiter that keep its processor, a pause each: some
/// microseconds, which is most holds.
const SPINS: u32 = if cfg!(loom) { 0 } else { 256 };
/// Rounds that then give the processor away, of the next in line. Where nobody
/// else wants it these are a hundred microseconds or so: longer than any hold.
const YIELDS: u32 = if cfg!(loom) { 0 } else { 256 };

/// The words of the lock, without what it guards.
pub struct TicketLock {
    /// The ticket that the next to come takes (`tail`).
    next: AtomicU32,
    /// The ticket of the holder, or, where that is `next`, nobody's; and
    /// whether anybody sleeps.
    serving: AtomicU32,
    #[cfg(loom)]
    bed: Bed,
}

impl TicketLock {
    /// An unlocked lock.
    #[cfg(not(loom))]
    pub const fn new() -> Self {
        TicketLock {
            next: AtomicU32::new(0),
            serving: AtomicU32::new(0),
        }
    }

    /// An unlocked lock.
    #[cfg(loom)]
    pub fn new() -> Self {
        TicketLock {
            next: AtomicU32::new(0),
            serving: AtomicU32::new(0),
            bed: Bed::default(),
        }
    }

    /// Take it, in turn.
    #[inline]
    pub fn lock(&self) {
        self.lock_after(|| {});
    }

    /// [`lock`](Self::lock) that calls `drawn` once the caller has its ticket,
    /// and so its place: for checks of the order.
    #[inline]
    pub fn lock_after(&self, drawn: impl FnOnce()) {
        // Relaxed: the ticket orders nothing; `serving` does.
        let mine = self.next.fetch_add(TICKET, Ordering::Relaxed);
        drawn();
        // Acquire: pairs with the release in `unlock`.
        if self.serving.load(Ordering::Acquire) & !SLEEPERS != mine {
            self.wait(mine);
        }
    }

    /// Take it if it is free.
    #[inline]
    pub fn try_lock(&self) -> bool {
        // Acquire: pairs with the release in `unlock`. Where the exchange then
        // succeeds no ticket was given out since, so nothing newer was served.
        let serving = self.serving.load(Ordering::Acquire) & !SLEEPERS;
        self.next
            .compare_exchange(
                serving,
                serving.wrapping_add(TICKET),
                Ordering::Relaxed,
                Ordering::Relaxed,
            )
            .is_ok()
    }

    /// Let it go, to the next ticket. Only the holder may.
    #[inline]
    pub fn unlock(&self) {
        // Release: pairs with the acquire of whoever's turn it is now. One
        // operation on one word, so that a waiter that sets `SLEEPERS` either
        // sees its turn there or is seen here.
        let was = self.serving.fetch_add(TICKET, Ordering::Release);
        if was & SLEEPERS != 0 {
            self.wake(was.wrapping_add(TICKET) & !SLEEPERS);
        }
    }

    /// Whether somebody holds it.
    pub fn is_locked(&self) -> bool {
        let serving = self.serving.load(Ordering::Relaxed) & !SLEEPERS;
        self.next.load(Ordering::Relaxed) != serving
    }

    #[cold]
    fn wait(&self, mine: u32) {
        for round in 0.. {
            // Acquire: as in `lock`.
            let serving = self.serving.load(Ordering::Acquire) & !SLEEPERS;
            if serving == mine {
                return;
            }
            let ahead = mine.wrapping_sub(serving) / TICKET;
            if round < SPINS {
                spin::relax();
            } else if ahead == 1 && round < SPINS + YIELDS {
                thread::yield_now();
            } else {
                break;
            }
        }
        self.sleep(mine);
    }

    /// Sleep until `mine` is served.
    fn sleep(&self, mine: u32) {
        {
            let mut asleep = self.bed().0.lock();
            // Under the lock of the bed: whoever serves `mine` after this sees
            // `SLEEPERS`, comes here, and finds this thread.
            let mut seen = self.serving.load(Ordering::Acquire);
            loop {
                if seen & !SLEEPERS == mine {
                    return;
                }
                let with = seen | SLEEPERS;
                match self.serving.compare_exchange(
                    seen,
                    with,
                    Ordering::Acquire,
                    Ordering::Acquire,
                ) {
                    Ok(_) => break,
                    Err(now) => seen = now,
                }
            }
            asleep.push(Sleeper {
                lock: self.address(),
                ticket: mine,
                thread: current(),
            });
        }
        // Acquire: as in `lock`.
        while self.serving.load(Ordering::Acquire) & !SLEEPERS != mine {
            // May also end for no reason, or for somebody else's.
            park();
        }
    }

    /// Wake the thread that holds a ticket, if it sleeps.
    #[cold]
    fn wake(&self, ticket: u32) {
        let mut asleep = self.bed().0.lock();
        let here = |sleeper: &Sleeper| sleeper.lock == self.address();
        let found = asleep
            .iter()
            .position(|sleeper| here(sleeper) && sleeper.ticket == ticket);
        let woken = found.map(|at| asleep.swap_remove(at));
        if !asleep.iter().any(here) {
            // Under the lock of the bed, so that nobody lies down meanwhile.
            self.serving.fetch_and(!SLEEPERS, Ordering::Relaxed);
        }
        drop(asleep);
        if let Some(sleeper) = woken {
            sleeper.thread.unpark();
        }
    }

    fn address(&self) -> usize {
        std::ptr::from_ref(self).addr()
    }
}

impl Default for TicketLock {
    fn default() -> Self {
        Self::new()
    }
}

/// A thread that waits for its ticket.
struct Sleeper {
    lock: usize,
    ticket: u32,
    thread: Thread,
}

/// Where waiters of some locks sleep, so that a lock need not have room for it.
#[derive(Default)]
struct Bed(super::lock::Mutex<Vec<Sleeper>>);

#[cfg(not(loom))]
impl TicketLock {
    /// The bed for this lock, which it shares with others.
    fn bed(&self) -> &'static Bed {
        use super::CachePadded;
        const BEDS: usize = 64;
        static ALL: [CachePadded<Bed>; BEDS] =
            [const { CachePadded::new(Bed(super::lock::Mutex::new(Vec::new()))) }; BEDS];
        // The high bits of a multiplicative hash.
        let hash = (self.address() as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        &ALL[(hash >> 58) as usize]
    }
}

#[cfg(loom)]
impl TicketLock {
    fn bed(&self) -> &Bed {
        &self.bed
    }
}

// SAFETY: between a `lock` or successful `try_lock` and the `unlock` that
// follows no other thread gets past either: each ticket is given out once, and
// `serving` moves on only in `unlock`.
#[cfg(not(loom))]
unsafe impl parking_lot::lock_api::RawMutex for TicketLock {
    const INIT: Self = Self::new();
    type GuardMarker = parking_lot::lock_api::GuardSend;

    #[inline]
    fn lock(&self) {
        TicketLock::lock(self);
    }

    #[inline]
    fn try_lock(&self) -> bool {
        TicketLock::try_lock(self)
    }

    #[inline]
    unsafe fn unlock(&self) {
        TicketLock::unlock(self);
    }

    fn is_locked(&self) -> bool {
        TicketLock::is_locked(self)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::sync::lock::{Mutex, SpinLock};

    #[test]
    fn holders_exclude_each_other_also_where_most_must_sleep() {
        const THREADS: u64 = 12;
        const ROUNDS: u64 = 4000;
        let lock = SpinLock::new(0u64);
        thread::scope(|s| {
            for _ in 0..THREADS {
                s.spawn(|| {
                    for _ in 0..ROUNDS {
                        *lock.lock() += 1;
                    }
                });
            }
        });
        assert_eq!(*lock.lock(), THREADS * ROUNDS);
        assert!(lock.try_lock().is_some());
    }

    #[test]
    fn sleepers_are_served_in_the_order_in_which_they_came() {
        const WAITERS: u32 = 6;
        let lock = TicketLock::new();
        let order = Mutex::new(Vec::new());
        lock.lock();
        thread::scope(|s| {
            for n in 0..WAITERS {
                let (lock, order) = (&lock, &order);
                s.spawn(move || {
                    lock.lock();
                    order.lock().push(n);
                    lock.unlock();
                });
                // Until it has its ticket.
                while lock.next.load(Ordering::Relaxed) != (n + 2) * TICKET {
                    thread::yield_now();
                }
            }
            // Until all of them sleep: each adds itself to the bed.
            let asleep = || {
                let bed = lock.bed().0.lock();
                bed.iter().filter(|s| s.lock == lock.address()).count()
            };
            while asleep() < WAITERS as usize {
                thread::yield_now();
            }
            assert_ne!(lock.serving.load(Ordering::Relaxed) & SLEEPERS, 0);
            assert!(!lock.try_lock());
            lock.unlock();
        });
        assert_eq!(*order.lock(), (0..WAITERS).collect::<Vec<_>>());
        assert_eq!(
            lock.serving.load(Ordering::Relaxed),
            (WAITERS + 1) * TICKET,
            "nobody sleeps, and the flag says so"
        );
    }

    #[test]
    fn tickets_wrap_round() {
        let lock = TicketLock::new();
        for word in [&lock.next, &lock.serving] {
            word.store(0u32.wrapping_sub(TICKET), Ordering::Relaxed);
        }
        for _ in 0..3 {
            lock.lock();
            assert!(lock.is_locked() && !lock.try_lock());
            lock.unlock();
            assert!(!lock.is_locked() && lock.try_lock());
            lock.unlock();
        }
        // Waited for across the end of the numbers.
        lock.next
            .store(0u32.wrapping_sub(TICKET), Ordering::Relaxed);
        lock.serving
            .store(0u32.wrapping_sub(TICKET), Ordering::Relaxed);
        lock.lock();
        thread::scope(|s| {
            s.spawn(|| {
                lock.lock();
                lock.unlock();
            });
            while lock.next.load(Ordering::Relaxed) != TICKET {
                thread::yield_now();
            }
            lock.unlock();
        });
        assert!(!lock.is_locked());
    }
}
