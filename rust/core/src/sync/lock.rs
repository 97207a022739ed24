//! Locks, by the kernel's kinds.
//!
//! * [`SpinLock`]: `spinlock_t`. Tickets: first come, first served.
//! * [`QrwLock`]: `rwlock_t`, the queued reader-writer lock that `mmu_lock` is.
//! * [`Mutex`], [`RwSem`]: `struct mutex`, `struct rw_semaphore`: sleeping.

use super::atomic::{AtomicU32, Ordering};
use super::spin::LockWait;
#[cfg(not(loom))]
use super::ticket::TicketLock;
use std::time::{Duration, Instant};

#[cfg(not(loom))]
pub use parking_lot::{
    Condvar, Mutex, MutexGuard, RwLock as RwSem, RwLockReadGuard, RwLockWriteGuard,
};

/// What waiting for a lock cost; [`Duration::ZERO`] when it was free.
pub type Wait = Duration;

/// `spinlock_t`: fair, because the kernel's queued spinlock is
/// ([`TicketLock`]).
#[cfg(not(loom))]
pub type SpinLock<T> = parking_lot::lock_api::Mutex<TicketLock, T>;
/// Proof that a [`SpinLock`] is held.
#[cfg(not(loom))]
pub type SpinGuard<'a, T> = parking_lot::lock_api::MutexGuard<'a, TicketLock, T>;

#[cfg(loom)]
mod model {
    //! The same names over loom's locks, whose methods return `Result`s
    //! because a panicking thread may poison them.

    pub use loom::sync::{RwLockReadGuard, RwLockWriteGuard};
    use std::ops::{Deref, DerefMut};
    use std::time::Duration;

    const POISONED: &str = "a thread of the model panicked while it held the lock";

    /// A sleeping mutual exclusion lock.
    #[derive(Default)]
    pub struct Mutex<T>(loom::sync::Mutex<T>);

    /// Proof that a [`Mutex`] is held; empty only inside [`Condvar::wait`].
    pub struct MutexGuard<'a, T>(Option<loom::sync::MutexGuard<'a, T>>);

    impl<T> Deref for MutexGuard<'_, T> {
        type Target = T;
        fn deref(&self) -> &T {
            self.0.as_ref().expect("not waiting")
        }
    }

    impl<T> DerefMut for MutexGuard<'_, T> {
        fn deref_mut(&mut self) -> &mut T {
            self.0.as_mut().expect("not waiting")
        }
    }

    /// Waiting for a condition under a [`Mutex`].
    #[derive(Default)]
    pub struct Condvar(loom::sync::Condvar);

    impl Condvar {
        /// Nobody waits.
        pub fn new() -> Self {
            Self::default()
        }
        /// Drop the lock, wait, take it again.
        pub fn wait<T>(&self, guard: &mut MutexGuard<'_, T>) {
            let held = guard.0.take().expect("not waiting");
            guard.0 = Some(self.0.wait(held).expect(POISONED));
        }
        /// The same: no time passes in a model.
        pub fn wait_for<T>(&self, guard: &mut MutexGuard<'_, T>, _timeout: Duration) {
            self.wait(guard);
        }
        /// Wake one.
        pub fn notify_one(&self) {
            self.0.notify_one();
        }
        /// Wake all.
        pub fn notify_all(&self) {
            self.0.notify_all();
        }
    }

    impl<T> Mutex<T> {
        /// An unlocked lock.
        pub fn new(value: T) -> Self {
            Mutex(loom::sync::Mutex::new(value))
        }
        /// Take it.
        pub fn lock(&self) -> MutexGuard<'_, T> {
            MutexGuard(Some(self.0.lock().expect(POISONED)))
        }
        /// Take it if it is free.
        pub fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
            self.0.try_lock().ok().map(|guard| MutexGuard(Some(guard)))
        }
        /// The value, of which there is no other owner.
        pub fn get_mut(&mut self) -> &mut T {
            self.0.get_mut().expect(POISONED)
        }
    }

    /// `spinlock_t`: loom schedules fairly enough that no ticket is needed.
    pub type SpinLock<T> = Mutex<T>;
    /// Proof that a [`SpinLock`] is held.
    pub type SpinGuard<'a, T> = MutexGuard<'a, T>;

    /// A sleeping reader-writer lock.
    #[derive(Default)]
    pub struct RwSem<T>(loom::sync::RwLock<T>);

    impl<T> RwSem<T> {
        /// An unlocked lock.
        pub fn new(value: T) -> Self {
            RwSem(loom::sync::RwLock::new(value))
        }
        /// Take it shared.
        pub fn read(&self) -> RwLockReadGuard<'_, T> {
            self.0.read().expect(POISONED)
        }
        /// Take it shared if no writer is in the way.
        pub fn try_read(&self) -> Option<RwLockReadGuard<'_, T>> {
            self.0.try_read().ok()
        }
        /// Take it exclusively.
        pub fn write(&self) -> RwLockWriteGuard<'_, T> {
            self.0.write().expect(POISONED)
        }
        /// Take it exclusively if it is free.
        pub fn try_write(&self) -> Option<RwLockWriteGuard<'_, T>> {
            self.0.try_write().ok()
        }
        /// The value, of which there is no other owner.
        pub fn get_mut(&mut self) -> &mut T {
            self.0.get_mut().expect(POISONED)
        }
    }
}
#[cfg(loom)]
pub use model::*;

/// A lock that the kernel spins for and that is held for thousands of steps:
/// its waiters spin for longer than a hold, then give the processor away, then
/// sleep; and its holder can pass it on between two holds.
///
/// Among threads that run it is handed on as by the kernel's queued spinlock:
/// a holder that comes back at once stands back for who waits. But a thread
/// that runs need not wait for one that does not. In a kernel nobody who waits
/// for a spinlock can lose its processor; where threads can, and are served in
/// order all the same, everybody goes at the pace of the scheduler, and the
/// convoy never ends (measured: sixteen vCPUs on one processor, fifteen times
/// the time).
#[derive(Default)]
pub struct PatientMutex<T> {
    lock: Mutex<T>,
    waiters: AtomicU32,
}

impl<T> PatientMutex<T> {
    /// Rounds of [`LockWait`] before a waiter sleeps, most of which give the
    /// processor away if another thread can use it.
    const ROUNDS: u32 = 1000;
    /// Looks, a pause between, for which a holder stands back. A waiter that
    /// runs sees the lock free within one or two.
    const STAND_BACK: u32 = 128;

    /// An unlocked lock.
    pub fn new(value: T) -> Self {
        PatientMutex {
            lock: Mutex::new(value),
            waiters: AtomicU32::new(0),
        }
    }

    /// Take it.
    #[inline]
    pub fn lock(&self) -> MutexGuard<'_, T> {
        self.lock_timed().0
    }

    /// Take it, and say what waiting cost.
    #[inline]
    pub fn lock_timed(&self) -> (MutexGuard<'_, T>, Wait) {
        if cfg!(loom) {
            return (self.lock.lock(), Wait::ZERO);
        }
        match self.lock.try_lock() {
            Some(guard) => (guard, Wait::ZERO),
            None => self.lock_slow(),
        }
    }

    #[cold]
    fn lock_slow(&self) -> (MutexGuard<'_, T>, Wait) {
        let start = Instant::now();
        // Relaxed, here and below: a hint to the holder.
        self.waiters.fetch_add(1, Ordering::Relaxed);
        let waiting = LockWait::new();
        let spun = (0..Self::ROUNDS).find_map(|_| {
            waiting.round();
            self.lock.try_lock()
        });
        let guard = spun.unwrap_or_else(|| self.lock.lock());
        self.waiters.fetch_sub(1, Ordering::Relaxed);
        (guard, start.elapsed())
    }

    /// Drop the lock and, if anyone waits for it, let one have it before the
    /// caller takes it again.
    pub fn pass_on(&self, held: MutexGuard<'_, T>) {
        drop(held);
        let waiting = self.waiters.load(Ordering::Relaxed);
        if cfg!(loom) || waiting == 0 {
            return;
        }
        for _ in 0..Self::STAND_BACK {
            if self.waiters.load(Ordering::Relaxed) != waiting {
                return;
            }
            super::spin::relax();
        }
    }
}

const WRITER: u32 = 0xff;
const WRITER_WAITING: u32 = 0x100;
const READER: u32 = 0x200;

/// The queued reader-writer lock (`kernel/locking/qrwlock.c`): one count word
/// for holders, one ticket lock as the queue of everyone who must wait.
///
/// Readers enter with one addition while no writer holds or waits. Any other
/// arrival joins the queue, so neither side starves the other and waiters are
/// served in order. The comparison of locked and lockless aging depends on it:
/// an unfair lock would let one side win by luck.
pub struct QrwLock {
    count: AtomicU32,
    queue: SpinLock<()>,
}

impl Default for QrwLock {
    fn default() -> Self {
        Self::new()
    }
}

impl QrwLock {
    /// An unlocked lock.
    pub fn new() -> Self {
        QrwLock {
            count: AtomicU32::new(0),
            queue: SpinLock::new(()),
        }
    }

    /// Take it shared.
    #[inline]
    pub fn read(&self) -> (QrwReadGuard<'_>, Wait) {
        // Acquire: pairs with the release of the last writer's unlock.
        let seen = self.count.fetch_add(READER, Ordering::Acquire);
        let wait = if seen & (WRITER | WRITER_WAITING) == 0 {
            Duration::ZERO
        } else {
            self.read_slow()
        };
        #[cfg(loom)]
        super::step::note("read_lock(&mmu_lock)");
        (QrwReadGuard(self), wait)
    }

    #[cold]
    fn read_slow(&self) -> Wait {
        let start = Instant::now();
        // Step back and queue; at the head, only a writer *holding* the lock
        // can be in the way, for a waiting one would be the head itself.
        self.count.fetch_sub(READER, Ordering::Relaxed);
        let _turn = self.queue.lock();
        self.count.fetch_add(READER, Ordering::Relaxed);
        let waiting = LockWait::new();
        // Acquire: pairs with the release of the writer's unlock.
        while self.count.load(Ordering::Acquire) & WRITER != 0 {
            waiting.round();
        }
        start.elapsed()
    }

    /// Take it exclusively.
    #[inline]
    pub fn write(&self) -> (QrwWriteGuard<'_>, Wait) {
        // Acquire: pairs with the release of every earlier unlock.
        let free = self
            .count
            .compare_exchange(0, WRITER, Ordering::Acquire, Ordering::Relaxed)
            .is_ok();
        let wait = if free {
            Duration::ZERO
        } else {
            self.write_slow()
        };
        #[cfg(loom)]
        super::step::note("write_lock(&mmu_lock)");
        (QrwWriteGuard(self), wait)
    }

    #[cold]
    fn write_slow(&self) -> Wait {
        let start = Instant::now();
        let _turn = self.queue.lock();
        // Only the head of the queue sets this bit, so `fetch_or` is enough;
        // from here on new readers queue behind this writer.
        self.count.fetch_or(WRITER_WAITING, Ordering::Relaxed);
        let waiting = LockWait::new();
        loop {
            // Acquire: pairs with the release of every earlier unlock.
            if self.count.load(Ordering::Relaxed) == WRITER_WAITING
                && self
                    .count
                    .compare_exchange(WRITER_WAITING, WRITER, Ordering::Acquire, Ordering::Relaxed)
                    .is_ok()
            {
                return start.elapsed();
            }
            waiting.round();
        }
    }

    /// Take it exclusively if nobody holds it or waits for it.
    pub fn try_write(&self) -> Option<QrwWriteGuard<'_>> {
        // Acquire: as in `write`.
        self.count
            .compare_exchange(0, WRITER, Ordering::Acquire, Ordering::Relaxed)
            .ok()
            .map(|_| QrwWriteGuard(self))
    }

    /// Whether someone else waits for the lock (`rwlock_needbreak()`).
    pub fn is_contended(&self) -> bool {
        self.count.load(Ordering::Relaxed) & WRITER_WAITING != 0
    }

    /// Whether a writer holds it, for assertions (`lockdep_assert_held_write()`).
    pub fn is_write_locked(&self) -> bool {
        self.count.load(Ordering::Relaxed) & WRITER != 0
    }
}

/// Proof that a [`QrwLock`] is held shared.
pub struct QrwReadGuard<'a>(&'a QrwLock);

impl Drop for QrwReadGuard<'_> {
    fn drop(&mut self) {
        #[cfg(loom)]
        super::step::note("read_unlock(&mmu_lock)");
        // Release: pairs with the acquire of the next writer.
        self.0.count.fetch_sub(READER, Ordering::Release);
    }
}

/// Proof that a [`QrwLock`] is held exclusively.
pub struct QrwWriteGuard<'a>(&'a QrwLock);

impl Drop for QrwWriteGuard<'_> {
    fn drop(&mut self) {
        #[cfg(loom)]
        super::step::note("write_unlock(&mmu_lock)");
        // Release: pairs with the acquire of the next holder. Subtract, not
        // store: a waiter's bit and queued readers' counts may be in the word.
        self.0.count.fetch_sub(WRITER, Ordering::Release);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::sync::atomic::AtomicU64;
    use crate::sync::thread;

    #[test]
    fn writers_exclude_and_readers_share() {
        let lock = QrwLock::new();
        let value = AtomicU64::new(0);
        thread::scope(|s| {
            for _ in 0..2 {
                s.spawn(|| {
                    for _ in 0..20_000 {
                        let _held = lock.write();
                        // Not a read-modify-write: lost unless exclusive.
                        value.store(value.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
                    }
                });
            }
            s.spawn(|| {
                for _ in 0..20_000 {
                    let _held = lock.read();
                    let before = value.load(Ordering::Relaxed);
                    assert_eq!(before, value.load(Ordering::Relaxed));
                }
            });
        });
        assert_eq!(value.load(Ordering::Relaxed), 40_000);
        let (first, _) = lock.read();
        assert!(lock.try_write().is_none());
        let _second = lock.read();
        drop(first);
    }

    #[test]
    fn holders_of_a_patient_lock_exclude_each_other_when_they_pass_it_on() {
        const THREADS: u64 = 6;
        const ROUNDS: u64 = 5000;
        let lock = PatientMutex::new(0u64);
        thread::scope(|s| {
            for n in 0..THREADS {
                let lock = &lock;
                s.spawn(move || {
                    for _ in 0..ROUNDS {
                        let mut value = lock.lock();
                        *value += 1;
                        if n % 2 == 0 {
                            lock.pass_on(value);
                        }
                    }
                });
            }
        });
        assert_eq!(*lock.lock(), THREADS * ROUNDS);
        assert_eq!(lock.waiters.load(Ordering::Relaxed), 0, "nobody waits");
        assert!(lock.lock_timed().1.is_zero(), "it is free");
    }

    #[test]
    fn a_queued_writer_goes_before_later_readers() {
        let lock = QrwLock::new();
        let order = Mutex::new(Vec::new());
        let (held, _) = lock.read();
        thread::scope(|s| {
            s.spawn(|| {
                let (_w, wait) = lock.write();
                assert!(wait > Duration::ZERO);
                order.lock().push("writer");
            });
            while !lock.is_contended() {
                thread::yield_now();
            }
            s.spawn(|| {
                let _r = lock.read();
                order.lock().push("reader");
            });
            // Time for the reader to barge in, if it could.
            std::thread::sleep(Duration::from_millis(20));
            drop(held);
        });
        assert_eq!(*order.lock(), ["writer", "reader"]);
    }
}
