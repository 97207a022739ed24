//! MMU notifiers: section 5 of the series, statement by statement.

use std::sync::Arc;
use youngbit_core::host::ROOT_MEMCG;
use youngbit_core::mm::{MmuNotifier, Ops, PAGE_SIZE, Subscription};
use youngbit_core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use youngbit_core::sync::thread;
use youngbit_core::trace::Counter;
use youngbit_core::{Cpu, Errno, Error, Host, HostConfig};

fn host() -> Arc<Host> {
    Host::new(&HostConfig {
        nodes: vec![1024],
        swap_pages: 0,
        virtual_clock: true,
    })
    .expect("a valid host")
}

/// A subscriber that answers what it is told to and counts its calls.
struct Fake {
    ops: Ops,
    young: AtomicBool,
    asked: AtomicU64,
    started: AtomicU64,
    ended: AtomicU64,
    released: AtomicU64,
    gone: AtomicBool,
}

impl Fake {
    fn new(ops: Ops, young: bool) -> Arc<Self> {
        Arc::new(Fake {
            ops,
            young: AtomicBool::new(young),
            asked: AtomicU64::new(0),
            started: AtomicU64::new(0),
            ended: AtomicU64::new(0),
            released: AtomicU64::new(0),
            gone: AtomicBool::new(false),
        })
    }

    fn asked(&self) -> u64 {
        self.asked.load(Ordering::SeqCst)
    }

    fn answer(&self) -> bool {
        assert!(!self.gone.load(Ordering::SeqCst), "called after unregister");
        self.asked.fetch_add(1, Ordering::SeqCst);
        self.young.load(Ordering::SeqCst)
    }
}

impl MmuNotifier for Fake {
    fn ops(&self) -> Ops {
        self.ops
    }
    fn clear_flush_young(&self, _: &Cpu, _: u64, _: u64) -> bool {
        self.answer()
    }
    fn clear_young(&self, cpu: &Cpu, _: u64, _: u64, _: bool) -> bool {
        assert!(cpu.srcu.is_inside());
        self.answer()
    }
    fn test_young(&self, _: &Cpu, _: u64, _: bool) -> bool {
        self.answer()
    }
    fn invalidate_range_start(&self, _: &Cpu, _: u64, _: u64) {
        self.started.fetch_add(1, Ordering::SeqCst);
    }
    fn invalidate_range_end(&self, _: &Cpu, _: u64, _: u64) {
        self.ended.fetch_add(1, Ordering::SeqCst);
    }
    fn release(&self, _: &Cpu) {
        self.released.fetch_add(1, Ordering::SeqCst);
    }
}

#[test]
fn without_subscribers_every_call_is_a_no_op_that_says_not_young() {
    let host = host();
    let cpu = Cpu::new(&host);
    let mm = host.create_mm(ROOT_MEMCG).expect("mm");
    assert!(!mm.notifiers.has_notifiers());
    assert!(!mm.notifiers.clear_young(&cpu, 0, PAGE_SIZE, false));
    assert!(!mm.notifiers.clear_flush_young(&cpu, 0, PAGE_SIZE));
    assert!(!mm.notifiers.test_young(&cpu, 0, true));
    assert_eq!(cpu.counters.get(Counter::NotifierClearYoungSlow), 0);
}

#[test]
fn clear_asks_all_and_ors_but_test_stops_at_the_first_young() {
    let host = host();
    let cpu = Cpu::new(&host);
    let mm = host.create_mm(ROOT_MEMCG).expect("mm");
    let (first, second) = (Fake::new(Ops::ALL, true), Fake::new(Ops::ALL, false));
    mm.register_notifier(&cpu, first.clone());
    mm.register_notifier(&cpu, second.clone());
    assert!(mm.notifiers.clear_young(&cpu, 0, PAGE_SIZE, false));
    assert!(mm.notifiers.clear_flush_young(&cpu, 0, PAGE_SIZE));
    assert_eq!((first.asked(), second.asked()), (2, 2));
    assert!(mm.notifiers.test_young(&cpu, 0, false));
    assert_eq!((first.asked(), second.asked()), (3, 2));
    first.young.store(false, Ordering::SeqCst);
    assert!(!mm.notifiers.test_young(&cpu, 0, false));
    assert_eq!((first.asked(), second.asked()), (4, 3));
}

#[test]
fn fast_only_leaves_subscribers_that_are_not_fast_alone() {
    let host = host();
    let cpu = Cpu::new(&host);
    let mm = host.create_mm(ROOT_MEMCG).expect("mm");
    let (slow, fast) = (Fake::new(Ops::ALL, true), Fake::new(Ops::ALL, false));
    mm.register_notifier(&cpu, slow.clone());
    assert!(!mm.notifiers.has_fast_young_notifiers());
    assert!(!mm.notifiers.clear_young(&cpu, 0, PAGE_SIZE, true));
    assert_eq!(slow.asked(), 0);
    assert_eq!(cpu.counters.get(Counter::NotifierSkipped), 1);
    let subscription = mm.register_notifier(&cpu, fast.clone());
    subscription.set_fast_aging(&mm.notifiers, true);
    assert!(mm.notifiers.has_fast_young_notifiers());
    assert!(!mm.notifiers.clear_young(&cpu, 0, PAGE_SIZE, true));
    assert_eq!((slow.asked(), fast.asked()), (0, 1));
    mm.unregister_notifier(&cpu, &subscription).expect("ended");
    assert!(!mm.notifiers.has_fast_young_notifiers());
    assert!(mm.notifiers.has_notifiers());
    // KVM sets the flag after it registered: the mm may have exited since.
    subscription.set_fast_aging(&mm.notifiers, true);
    assert!(!mm.notifiers.has_fast_young_notifiers(), "nobody is fast");
}

#[test]
fn a_missing_operation_is_skipped() {
    let host = host();
    let cpu = Cpu::new(&host);
    let mm = host.create_mm(ROOT_MEMCG).expect("mm");
    let ops = Ops {
        clear_young: false,
        invalidate: false,
        ..Ops::ALL
    };
    let fake = Fake::new(ops, true);
    mm.register_notifier(&cpu, fake.clone());
    assert!(!mm.notifiers.clear_young(&cpu, 0, PAGE_SIZE, false));
    assert_eq!(fake.asked(), 0);
    assert!(mm.notifiers.test_young(&cpu, 0, false));
    drop(mm.notifiers.invalidate(&cpu, 0, PAGE_SIZE));
    assert_eq!(fake.started.load(Ordering::SeqCst), 0);
}

#[test]
fn invalidation_ends_only_where_it_began() {
    let host = host();
    let cpu = Cpu::new(&host);
    let mm = host.create_mm(ROOT_MEMCG).expect("mm");
    let (early, late) = (Fake::new(Ops::ALL, false), Fake::new(Ops::ALL, false));
    let subscription = mm.register_notifier(&cpu, early.clone());
    let invalidation = mm.notifiers.invalidate(&cpu, 0, PAGE_SIZE);
    mm.register_notifier(&cpu, late.clone());
    drop(invalidation);
    assert_eq!(early.ended.load(Ordering::SeqCst), 1);
    assert_eq!(late.ended.load(Ordering::SeqCst), 0);
    let invalidation = mm.notifiers.invalidate(&cpu, 0, PAGE_SIZE);
    mm.unregister_notifier(&cpu, &subscription).expect("ended");
    drop(invalidation);
    // Unsubscribed in between: no callback after unregister, not even the end.
    assert_eq!(early.ended.load(Ordering::SeqCst), 1);
    assert_eq!(late.ended.load(Ordering::SeqCst), 1);
}

#[test]
fn unregister_releases_once_and_refuses_what_is_not_there() {
    let host = host();
    let cpu = Cpu::new(&host);
    let mm = host.create_mm(ROOT_MEMCG).expect("mm");
    let fake = Fake::new(Ops::ALL, false);
    let subscription = mm.register_notifier(&cpu, fake.clone());
    mm.unregister_notifier(&cpu, &subscription).expect("ended");
    let again = mm.unregister_notifier(&cpu, &subscription);
    assert_eq!(again.expect_err("gone").errno(), Errno::EINVAL);
    assert_eq!(fake.released.load(Ordering::SeqCst), 1);
}

#[test]
fn unregister_from_inside_a_callback_is_refused_not_a_deadlock() {
    let host = host();
    let cpu = Cpu::new(&host);
    let mm = host.create_mm(ROOT_MEMCG).expect("mm");
    let subscription = mm.register_notifier(&cpu, Fake::new(Ops::ALL, false));
    let _inside = cpu.srcu.lock();
    let refused = mm.unregister_notifier(&cpu, &subscription);
    assert_eq!(refused.expect_err("inside").errno(), Errno::EBUSY);
}

#[test]
fn no_callback_runs_after_unregister_returned() {
    let host = host();
    let mm = host.create_mm(ROOT_MEMCG).expect("mm");
    let stop = AtomicBool::new(false);
    thread::scope(|s| {
        for _ in 0..2 {
            s.spawn(|| {
                let cpu = Cpu::new(&host);
                while !stop.load(Ordering::Relaxed) {
                    mm.notifiers.clear_young(&cpu, 0, PAGE_SIZE, false);
                    mm.notifiers.test_young(&cpu, 0, true);
                }
            });
        }
        let cpu = Cpu::new(&host);
        for _ in 0..500 {
            let fake = Fake::new(Ops::ALL, false);
            let subscription: Arc<Subscription> = mm.register_notifier(&cpu, fake.clone());
            subscription.set_fast_aging(&mm.notifiers, true);
            mm.unregister_notifier(&cpu, &subscription).expect("ended");
            // Any later call trips the assertion in `answer`.
            fake.gone.store(true, Ordering::SeqCst);
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert!(!mm.notifiers.has_notifiers());
    assert!(!mm.notifiers.has_fast_young_notifiers());
}

#[test]
fn a_callbacks_error_waits_for_whoever_runs_the_pass() {
    let host = host();
    let cpu = Cpu::new(&host);
    cpu.raise(Error::invalid("first"));
    cpu.raise(Error::invalid("second"));
    assert!(cpu.has_error());
    let error = cpu.check_error().expect_err("kept");
    assert!(error.to_string().contains("first"));
    cpu.check_error().expect("taken");
}
