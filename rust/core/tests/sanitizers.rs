//! Faults on purpose, one of each kind that a sanitizer is to find:
//! `make sanitize` runs each under its sanitizer and fails if nothing is said.
//! Without one they pass, and some of what they do is undefined.
#![cfg(not(loom))]

use std::cell::UnsafeCell;
use std::hint::black_box;
use std::sync::Arc;
use youngbit_core::sync::atomic::{AtomicBool, Ordering};
use youngbit_core::sync::rcu::{Domain, RcuCell};
use youngbit_core::sync::thread;
use youngbit_core::{Host, HostConfig};

#[test]
#[ignore = "LeakSanitizer has to report it"]
fn a_host_that_nobody_frees() {
    let host = Host::new(&HostConfig {
        nodes: vec![64],
        swap_pages: 0,
        virtual_clock: true,
    });
    std::mem::forget(host.expect("a valid host"));
}

#[test]
#[ignore = "AddressSanitizer has to report it"]
fn a_reader_that_keeps_a_value_past_its_section() {
    let domain = Domain::new();
    let cell = RcuCell::new(&domain, vec![1u8; 64]);
    let reader = domain.register();
    let kept = {
        let section = reader.lock();
        let kept: *const Vec<u8> = cell.load(&section);
        cell.replace(Vec::new(), &section);
        kept
    };
    domain.barrier();
    // SAFETY: none: the grace period has passed, and the value is freed.
    black_box(unsafe { (*kept).len() });
}

/// A value, and whether it is there.
#[derive(Default)]
struct Published {
    value: UnsafeCell<u64>,
    there: AtomicBool,
}

// SAFETY: none without an order of the flag, which is what is tried.
unsafe impl Sync for Published {}

fn publish(store: Ordering, load: Ordering) {
    let published = Arc::new(Published::default());
    let theirs = Arc::clone(&published);
    let writer = thread::spawn(move || {
        // SAFETY: nobody reads before the flag is set.
        unsafe { *theirs.value.get() = 1 };
        theirs.there.store(true, store);
    });
    while !published.there.load(load) {
        thread::yield_now();
    }
    // SAFETY: written before the flag was set, if the two are ordered.
    black_box(unsafe { *published.value.get() });
    writer.join().expect("it only stores");
}

#[test]
#[ignore = "ThreadSanitizer has to report it"]
fn a_publication_without_release() {
    publish(Ordering::Relaxed, Ordering::Acquire);
}

/// And the same is no race with the order that it needs.
#[test]
fn a_publication_with_release() {
    publish(Ordering::Release, Ordering::Acquire);
}

/// Fences, which ThreadSanitizer does not know: the door gives it what it does.
#[test]
fn a_publication_by_fences() {
    use youngbit_core::sync::atomic::fence;
    let published = Arc::new(Published::default());
    let theirs = Arc::clone(&published);
    let writer = thread::spawn(move || {
        // SAFETY: nobody reads before the flag is set.
        unsafe { *theirs.value.get() = 1 };
        fence(Ordering::Release);
        theirs.there.store(true, Ordering::Relaxed);
    });
    while !published.there.load(Ordering::Relaxed) {
        thread::yield_now();
    }
    fence(Ordering::Acquire);
    // SAFETY: the fences order the write before this read.
    black_box(unsafe { *published.value.get() });
    writer.join().expect("it only stores");
}
