//! Subscriptions: registering and unregistering against a call under way.

use super::model::{check, cpu, host, name, number, spawn};
use std::sync::Arc;
use youngbit_core::cpu::Cpu;
use youngbit_core::host::{Host, ROOT_MEMCG};
use youngbit_core::mm::{Mm, MmuNotifier};
use youngbit_core::sync::atomic::{AtomicU64, Ordering};

/// A subscriber whose state goes when it was unregistered.
#[derive(Default)]
struct Secondary {
    gone: AtomicU64,
    called: AtomicU64,
    released: AtomicU64,
}

impl MmuNotifier for Secondary {
    fn clear_flush_young(&self, _: &Cpu, _: u64, _: u64) -> bool {
        false
    }
    fn clear_young(&self, _: &Cpu, _: u64, _: u64, _: bool) -> bool {
        assert!(
            self.gone.load(Ordering::Relaxed) == 0,
            "a callback ran after unregister returned"
        );
        // And it is still there when the callback ends.
        self.called.fetch_add(1, Ordering::Relaxed);
        assert!(
            self.gone.load(Ordering::Relaxed) == 0,
            "unregister returned under a callback"
        );
        true
    }
    fn test_young(&self, _: &Cpu, _: u64, _: bool) -> bool {
        false
    }
    fn invalidate_range_start(&self, _: &Cpu, _: u64, _: u64) {}
    fn invalidate_range_end(&self, _: &Cpu, _: u64, _: u64) {}
    fn release(&self, _: &Cpu) {
        self.released.fetch_add(1, Ordering::Relaxed);
        assert!(
            self.gone.load(Ordering::Relaxed) == 0,
            "unregister returned under the release"
        );
    }
}

/// A process, and a subscriber that is not registered yet.
fn unsubscribed() -> (Arc<Host>, Arc<Mm>, Arc<Secondary>) {
    let host = host(8);
    let mm = host.create_mm(ROOT_MEMCG).expect("the root cgroup exists");
    let secondary = Arc::new(Secondary::default());
    name(&secondary.gone, "unregistered", number);
    (host, mm, secondary)
}

#[test]
fn notifier_unregister_waits_for_callbacks() {
    check("no callback runs after unregister returned", || {
        let (host, mm, secondary) = unsubscribed();
        let here = cpu(&host);
        let subscription = mm.register_notifier(&here, secondary.clone());
        let caller = {
            let (host, mm) = (Arc::clone(&host), Arc::clone(&mm));
            spawn("ager", move || {
                let cpu = cpu(&host);
                mm.notifiers.clear_young(&cpu, 0, 4096, false)
            })
        };
        mm.unregister_notifier(&here, &subscription)
            .expect("it is registered");
        secondary.gone.store(1, Ordering::Relaxed);
        let young = caller.join().unwrap();
        let called = secondary.called.load(Ordering::Relaxed);
        assert_eq!(called, u64::from(young));
    });
}

#[test]
fn notifier_registered_is_called() {
    check(
        "a call that sees that there are notifiers finds them, and calls each once",
        || {
            let (host, mm, secondary) = unsubscribed();
            let caller = {
                let (host, mm) = (Arc::clone(&host), Arc::clone(&mm));
                spawn("ager", move || {
                    let cpu = cpu(&host);
                    let seen = mm.notifiers.has_notifiers();
                    (seen, mm.notifiers.clear_young(&cpu, 0, 4096, false))
                })
            };
            let here = cpu(&host);
            mm.register_notifier(&here, secondary.clone());
            let (seen, young) = caller.join().unwrap();
            assert!(young || !seen, "seen, and then not called");
            let called = secondary.called.load(Ordering::Relaxed);
            assert_eq!(called, u64::from(young));
            assert!(mm.notifiers.clear_young(&here, 0, 4096, false));
        },
    );
}

#[test]
fn notifier_unregister_waits_for_the_release() {
    check(
        "the release runs once, and has ended when unregister returns, whoever made it",
        || {
            let (host, mm, secondary) = unsubscribed();
            let here = cpu(&host);
            let subscription = mm.register_notifier(&here, secondary.clone());
            let exit = {
                let (host, mm) = (Arc::clone(&host), Arc::clone(&mm));
                spawn("mm exit", move || mm.exit(&cpu(&host)))
            };
            // Fails when the mm exits first.
            let _ = mm.unregister_notifier(&here, &subscription);
            secondary.gone.store(1, Ordering::Relaxed);
            exit.join().unwrap();
            assert_eq!(secondary.released.load(Ordering::Relaxed), 1);
        },
    );
}
