//! Grace periods of the door: what all that is freed late rests on.

use super::model::{check, i_am, spawn};
use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use youngbit_core::sync::rcu::{Domain, RcuCell};

#[test]
fn rcu_callback_waits_for_readers_that_were_inside() {
    check(
        "a deferred callback runs once, after every section that was open when it was deferred",
        || {
            i_am("writer");
            let domain = Arc::new(Domain::new());
            let linked = Arc::new(AtomicBool::new(true));
            let freed = Arc::new(AtomicBool::new(false));
            let reader = {
                let (domain, linked, freed) = (domain.clone(), linked.clone(), freed.clone());
                spawn("reader", move || {
                    let reader = domain.register();
                    let _section = reader.lock();
                    if linked.load(Ordering::Acquire) {
                        // Found it: it must stay for as long as the section lasts.
                        let gone = freed.load(Ordering::Relaxed);
                        assert!(!gone, "freed under a reader that had found it");
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
        },
    );
}

#[test]
fn rcu_value_is_dropped_once_and_never_under_a_reader() {
    struct Counted(Arc<AtomicUsize>, u32);
    impl Drop for Counted {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
    check(
        "a value that was replaced is dropped once, and not while a reader has it",
        || {
            i_am("writer");
            let drops = Arc::new(AtomicUsize::new(0));
            let domain = Arc::new(Domain::new());
            let cell = Arc::new(RcuCell::new(&domain, Counted(drops.clone(), 1)));
            let reader = {
                let (domain, cell, drops) = (domain.clone(), cell.clone(), drops.clone());
                spawn("reader", move || {
                    let reader = domain.register();
                    let section = reader.lock();
                    let value = cell.load(&section);
                    if value.1 == 1 {
                        let dropped = drops.load(Ordering::Relaxed);
                        assert_eq!(dropped, 0, "dropped under its reader");
                    }
                })
            };
            let writer = domain.register();
            cell.replace(Counted(drops.clone(), 2), &writer.lock());
            reader.join().unwrap();
            assert_eq!(drops.load(Ordering::Relaxed), 1);
        },
    );
}
