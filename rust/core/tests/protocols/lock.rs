//! The ticket lock: its order, its exclusion, and that nobody sleeps for ever.
//! In models a waiter sleeps at once, so every path to the bed and out of it
//! is taken. And the queued reader-writer lock that `mmu_lock` is.

use super::model::{check, check_up_to, note, spawn};
use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, Ordering};
use youngbit_core::sync::lock::QrwLock;
use youngbit_core::sync::ticket::TicketLock;

/// A lock and what it guards.
struct Guarded {
    lock: TicketLock,
    value: loom::cell::UnsafeCell<u32>,
}

// SAFETY: the value is reached by holders of the lock only; that this is
// enough is what is checked.
unsafe impl Sync for Guarded {}
// SAFETY: as above.
unsafe impl Send for Guarded {}

impl Guarded {
    fn new() -> Arc<Self> {
        Arc::new(Guarded {
            lock: TicketLock::new(),
            value: loom::cell::UnsafeCell::new(0),
        })
    }

    /// Add one to the value, whose lock the caller holds; returns what it was.
    fn count(&self) -> u32 {
        note("holds the lock");
        self.value.with_mut(|value| {
            // SAFETY: the lock is held; the checker reports it where that is
            // not enough.
            let value = unsafe { &mut *value };
            *value += 1;
            *value - 1
        })
    }

    fn count_locked(&self) -> u32 {
        self.lock.lock();
        let was = self.count();
        self.lock.unlock();
        was
    }
}

#[test]
fn lock_wakes_every_sleeper() {
    check_up_to(
        "ticket lock: holders exclude each other, and everyone who sleeps for it is woken",
        2,
        || {
            let shared = Guarded::new();
            let threads = ["waiter 1", "waiter 2"].map(|name| {
                let shared = Arc::clone(&shared);
                spawn(name, move || shared.count_locked())
            });
            shared.count_locked();
            for thread in threads {
                thread.join().unwrap();
            }
            assert!(!shared.lock.is_locked(), "nobody is left");
            assert_eq!(shared.count_locked(), 3, "everyone was in it once");
        },
    );
}

#[test]
fn lock_is_not_overtaken_by_its_last_holder() {
    check(
        "ticket lock: who lets go and comes back at once is served after who waits",
        || {
            let shared = Guarded::new();
            let drawn = Arc::new(AtomicBool::new(false));
            shared.lock.lock();
            let waiter = {
                let (shared, drawn) = (Arc::clone(&shared), Arc::clone(&drawn));
                spawn("waiter", move || {
                    shared
                        .lock
                        .lock_after(|| drawn.store(true, Ordering::Release));
                    let was = shared.count();
                    shared.lock.unlock();
                    was
                })
            };
            let waits = drawn.load(Ordering::Acquire);
            shared.lock.unlock();
            let mine = shared.count_locked();
            let theirs = waiter.join().unwrap();
            assert_eq!(mine + theirs, 1);
            assert!(!waits || theirs == 0, "overtaken");
        },
    );
}

#[test]
fn lock_is_tried() {
    check(
        "ticket lock: trying takes only what nobody holds or waits for",
        || {
            let shared = Guarded::new();
            let other = {
                let shared = Arc::clone(&shared);
                spawn("holder", move || shared.count_locked())
            };
            let mut expected = 1;
            if shared.lock.try_lock() {
                shared.count();
                shared.lock.unlock();
                expected += 1;
            }
            other.join().unwrap();
            assert!(shared.lock.try_lock(), "free");
            assert!(!shared.lock.try_lock(), "held");
            assert_eq!(shared.count(), expected);
            shared.lock.unlock();
        },
    );
}

#[test]
fn rwlock_excludes_writers_from_everyone() {
    check(
        "reader-writer lock: a writer is alone, and who comes after it sees what it wrote",
        || {
            let lock = Arc::new(QrwLock::new());
            let cell = Arc::new(loom::cell::UnsafeCell::new(0));
            let writer = {
                let (lock, cell) = (Arc::clone(&lock), Arc::clone(&cell));
                spawn("writer", move || {
                    let _held = lock.write();
                    // SAFETY: held exclusively; the checker reports it where
                    // that is not enough.
                    cell.with_mut(|value| unsafe { *value += 1 });
                })
            };
            let reader = {
                let (lock, cell) = (Arc::clone(&lock), Arc::clone(&cell));
                spawn("reader", move || {
                    let _held = lock.read();
                    // SAFETY: held shared, so nobody writes; as above.
                    cell.with(|value| unsafe { *value })
                })
            };
            {
                let _held = lock.write();
                // SAFETY: as above.
                cell.with_mut(|value| unsafe { *value += 1 });
            }
            writer.join().unwrap();
            assert!(reader.join().unwrap() <= 2);
            let _held = lock.read();
            // SAFETY: held shared, and the other threads are joined.
            assert_eq!(cell.with(|value| unsafe { *value }), 2);
        },
    );
}
