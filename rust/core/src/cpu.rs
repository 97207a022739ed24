//! What one thread carries while it works on a host: the model's per-CPU area.
//!
//! Every operation takes a `&Cpu`. It is made for one native call or one
//! thread, and never shared: counters, the trace buffer, the page cache of the
//! allocator and the RCU readers are the thread's own, so that measuring a
//! protocol does not add contention to it.

use crate::error::Error;
use crate::host::Host;
use crate::sync::lock::{QrwLock, QrwReadGuard, QrwWriteGuard};
use crate::sync::rcu;
use crate::trace::{Counter, Counters, Event, Record};
use std::cell::{Cell, RefCell};
use std::sync::Arc;

/// The per-CPU area of one thread.
pub struct Cpu {
    host: Arc<Host>,
    /// This thread's counters.
    pub counters: Counters,
    /// Entrance to the host's RCU domain: page-table pages, roots, memslots.
    pub rcu: rcu::Reader,
    /// Entrance to the host's sleepable domain: notifier subscriptions, whose
    /// callbacks may block without holding up [`Cpu::rcu`].
    pub srcu: rcu::Reader,
    /// Pages taken from the allocator ahead of need (`struct per_cpu_pages`).
    pub(crate) pcp: RefCell<Vec<u32>>,
    trace_mask: u32,
    trace: RefCell<Vec<Record>>,
    error: RefCell<Option<Error>>,
    reclaiming: Cell<bool>,
}

impl Cpu {
    /// A per-CPU area for the calling thread.
    pub fn new(host: &Arc<Host>) -> Self {
        Cpu {
            counters: Counters::default(),
            rcu: host.rcu.register(),
            srcu: host.srcu.register(),
            pcp: RefCell::new(Vec::new()),
            trace_mask: host.trace_mask(),
            trace: RefCell::new(Vec::new()),
            error: RefCell::new(None),
            reclaiming: Cell::new(false),
            host: Arc::clone(host),
        }
    }

    /// The host this thread works on.
    #[inline]
    pub fn host(&self) -> &Arc<Host> {
        &self.host
    }

    /// Count one.
    #[inline]
    pub fn count(&self, counter: Counter) {
        self.counters.add(counter, 1);
    }

    /// Count `n`.
    #[inline]
    pub fn count_n(&self, counter: Counter, n: u64) {
        self.counters.add(counter, n);
    }

    /// Trace an event, if its tracepoint is on.
    #[inline]
    pub fn trace(&self, event: Event, args: &[u64]) {
        if self.trace_mask & event as u32 != 0 {
            self.trace_slow(event, args);
        }
    }

    #[cold]
    fn trace_slow(&self, event: Event, args: &[u64]) {
        let mut record = Record {
            time_ns: self.host.clock.now_ns(),
            event,
            args: [0; 5],
        };
        record.args[..args.len()].copy_from_slice(args);
        self.trace.borrow_mut().push(record);
    }

    /// Keep an error that a callback could not return; the first one wins, and
    /// whoever runs the pass takes it when the model is consistent again.
    pub fn raise(&self, error: Error) {
        self.error.borrow_mut().get_or_insert(error);
    }

    /// Whether an error waits to be taken.
    pub fn has_error(&self) -> bool {
        self.error.borrow().is_some()
    }

    /// Take the waiting error.
    pub fn take_error(&self) -> Option<Error> {
        self.error.borrow_mut().take()
    }

    /// `Err` with the waiting error, if there is one.
    pub fn check_error(&self) -> crate::error::Result<()> {
        self.take_error().map_or(Ok(()), Err)
    }

    /// Whether this thread is reclaiming (`current->reclaim_state`).
    pub fn is_reclaiming(&self) -> bool {
        self.reclaiming.get()
    }

    /// Mark this thread as reclaiming or not; returns what it was.
    pub fn set_reclaiming(&self, on: bool) -> bool {
        self.reclaiming.replace(on)
    }

    /// Take an `mmu_lock` for read, counted.
    pub fn read_lock<'a>(&self, lock: &'a QrwLock) -> QrwReadGuard<'a> {
        let (guard, wait) = lock.read();
        self.count(Counter::MmuLockRead);
        self.waited(wait);
        guard
    }

    /// Take an `mmu_lock` for write, counted.
    pub fn write_lock<'a>(&self, lock: &'a QrwLock) -> QrwWriteGuard<'a> {
        let (guard, wait) = lock.write();
        self.count(Counter::MmuLockWrite);
        self.waited(wait);
        guard
    }

    #[inline]
    fn waited(&self, wait: std::time::Duration) {
        if !wait.is_zero() {
            self.count(Counter::MmuLockContended);
            let ns = u64::try_from(wait.as_nanos()).unwrap_or(u64::MAX);
            self.count_n(Counter::MmuLockWaitNs, ns);
        }
    }
}

impl Drop for Cpu {
    fn drop(&mut self) {
        self.host.totals.merge(&self.counters.snapshot());
        self.host.memory.drain_pcp(&self.pcp);
        let records = self.trace.take();
        if !records.is_empty() {
            self.host.take_trace(records);
        }
    }
}
