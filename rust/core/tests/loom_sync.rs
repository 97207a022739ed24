//! The door itself, and what rests on it alone, under the model checker.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p youngbit-core --release --test loom_sync`
#![cfg(loom)]

use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use loom::thread;
use youngbit_core::mm::folio::{FolioWord, LRU, REFERENCED};
use youngbit_core::sync::atomic::AtomicU64;
use youngbit_core::sync::lock::QrwLock;
use youngbit_core::sync::rcu::{Domain, RcuCell};

fn check(model: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(model);
}

#[test]
fn rwlock_excludes_writers_from_everyone() {
    check(|| {
        let lock = Arc::new(QrwLock::new());
        let cell = Arc::new(loom::cell::UnsafeCell::new(0));
        let writer = {
            let (lock, cell) = (Arc::clone(&lock), Arc::clone(&cell));
            thread::spawn(move || {
                let _held = lock.write();
                // SAFETY: held exclusively; loom checks that it is so.
                cell.with_mut(|value| unsafe { *value += 1 });
            })
        };
        let reader = {
            let (lock, cell) = (Arc::clone(&lock), Arc::clone(&cell));
            thread::spawn(move || {
                let _held = lock.read();
                // SAFETY: held shared, so nobody writes; loom checks it.
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
    });
}

#[test]
fn a_deferred_callback_waits_for_readers_that_were_inside() {
    check(|| {
        let domain = Arc::new(Domain::new());
        let linked = Arc::new(AtomicBool::new(true));
        let freed = Arc::new(AtomicBool::new(false));
        let reader = {
            let (domain, linked, freed) = (domain.clone(), linked.clone(), freed.clone());
            thread::spawn(move || {
                let reader = domain.register();
                let _section = reader.lock();
                if linked.load(Ordering::Acquire) {
                    // Found it: it must stay for as long as the section lasts.
                    assert!(!freed.load(Ordering::Relaxed));
                }
            })
        };
        let writer = domain.register();
        {
            let section = writer.lock();
            linked.store(false, Ordering::Release);
            let freed = freed.clone();
            section.defer(move || freed.store(true, Ordering::Relaxed));
        }
        reader.join().unwrap();
        domain.barrier();
        assert_eq!(domain.deferred_and_run(), (1, 1));
    });
}

#[test]
fn a_replaced_value_is_dropped_once_and_never_under_a_reader() {
    struct Counted(Arc<AtomicUsize>, u32);
    impl Drop for Counted {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
    check(|| {
        let drops = Arc::new(AtomicUsize::new(0));
        let domain = Arc::new(Domain::new());
        let cell = Arc::new(RcuCell::new(&domain, Counted(drops.clone(), 1)));
        let reader = {
            let (domain, cell) = (domain.clone(), cell.clone());
            let drops = drops.clone();
            thread::spawn(move || {
                let reader = domain.register();
                let section = reader.lock();
                let value = cell.load(&section);
                if value.1 == 1 {
                    assert_eq!(drops.load(Ordering::Relaxed), 0);
                }
            })
        };
        let writer = domain.register();
        cell.replace(Counted(drops.clone(), 2), &writer.lock());
        reader.join().unwrap();
        assert_eq!(drops.load(Ordering::Relaxed), 1);
    });
}

#[test]
fn a_folio_is_isolated_by_one_thread_and_loses_no_flag() {
    check(|| {
        let word = Arc::new(AtomicU64::new(LRU));
        let isolate = |word: &AtomicU64| word.clear(LRU).has(LRU);
        let other = {
            let word = word.clone();
            thread::spawn(move || isolate(&word))
        };
        let promoted = {
            let word = word.clone();
            thread::spawn(move || {
                word.modify(|w| w.generation().is_none().then(|| w.with_generation(Some(2))))
                    .1
            })
        };
        word.set(REFERENCED);
        let mine = isolate(&word);
        assert!(mine ^ other.join().unwrap(), "exactly one thread owns it");
        assert!(promoted.join().unwrap());
        assert!(word.get().has(REFERENCED));
        assert_eq!(word.get().generation(), Some(2));
    });
}
