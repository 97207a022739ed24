//! What one thread carries while it works on a host: the model's per-CPU area.
//!
//! Every operation takes a `&Cpu`. It is made for one native call or one
//! thread, and never shared: counters, the trace buffer, the page cache of the
//! allocator and the RCU readers are the thread's own, so that measuring a
//! protocol does not add contention to it.

use crate::error::{Errno, Error, Result};
use crate::host::Host;
use crate::lru_gen;
use crate::mm::Pfn;
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::lock::{QrwLock, QrwReadGuard, QrwWriteGuard, Wait};
use crate::sync::rcu;
use crate::trace::{Counter, Counters, Event, Record};
use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::time::{Duration, Instant};

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
    /// New folios that wait to be put on their lists (`cpu_fbatches.lru_add`).
    lru_add: RefCell<KeptFolios>,
    /// How many may wait; 0 for none.
    lru_add_room: Cell<usize>,
    trace_mask: u32,
    trace: RefCell<Vec<Record>>,
    error: RefCell<Option<Error>>,
    reclaiming: Cell<bool>,
    stop: Arc<AtomicBool>,
    poll: Option<RefCell<Poll>>,
    until_poll: Cell<u32>,
}

/// New folios that a thread keeps before it puts them on their lists
/// (`PAGEVEC_SIZE`).
pub const FOLIO_BATCH: usize = 31;

/// New folios that wait to be put on their lists (`struct folio_batch`).
#[derive(Clone, Copy)]
pub(crate) struct KeptFolios {
    len: usize,
    folios: [Pfn; FOLIO_BATCH],
}

impl Default for KeptFolios {
    fn default() -> Self {
        KeptFolios {
            len: 0,
            folios: [Pfn(0); FOLIO_BATCH],
        }
    }
}

impl KeptFolios {
    /// Those that wait, in the order in which they came.
    pub(crate) fn folios(&self) -> &[Pfn] {
        &self.folios[..self.len]
    }
}

/// What [`Cpu::keep_for_lru`] did.
pub(crate) enum KeptForLru {
    No,
    Yes,
    Full,
}

/// A hook that asks the outside world whether to go on.
struct Poll {
    hook: Box<dyn FnMut() -> Result<()>>,
    last: Instant,
}

/// Polls between two looks at the clock.
const POLLS_PER_LOOK: u32 = 64;
/// Time between two calls of the hook.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// What another thread of the same run needs to make its own [`Cpu`]; the
/// threads of a run stop together.
#[derive(Clone)]
pub struct CpuSeed {
    host: Arc<Host>,
    stop: Arc<AtomicBool>,
}

impl CpuSeed {
    /// A per-CPU area for the calling thread.
    pub fn cpu(&self) -> Cpu {
        Cpu::make(&self.host, Arc::clone(&self.stop), None)
    }

    /// Ask every thread of the run to stop.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

impl Cpu {
    /// A per-CPU area for the calling thread.
    pub fn new(host: &Arc<Host>) -> Self {
        Self::make(host, Arc::default(), None)
    }

    /// A per-CPU area whose long loops call `hook` every 20 ms or so; its error
    /// stops them, and the threads made from [`Cpu::seed`] with them.
    pub fn with_poll(host: &Arc<Host>, hook: Box<dyn FnMut() -> Result<()>>) -> Self {
        let poll = Poll {
            hook,
            last: Instant::now(),
        };
        Self::make(host, Arc::default(), Some(RefCell::new(poll)))
    }

    /// For the other threads of this run.
    pub fn seed(&self) -> CpuSeed {
        CpuSeed {
            host: Arc::clone(&self.host),
            stop: Arc::clone(&self.stop),
        }
    }

    /// Whether to stop. Long loops ask once a page-table page, a batch, or
    /// about a thousand accesses; what they leave behind must be consistent.
    #[inline]
    pub fn poll(&self) -> bool {
        if self.stop.load(Ordering::Relaxed) {
            return true;
        }
        let left = self.until_poll.get();
        self.until_poll.set(left.wrapping_sub(1) % POLLS_PER_LOOK);
        if left == 0 { self.poll_slow() } else { false }
    }

    /// [`poll`](Self::poll), looking at the clock each time: for whoever waits
    /// between two calls.
    pub fn poll_now(&self) -> bool {
        self.stop.load(Ordering::Relaxed) || self.poll_slow()
    }

    #[cold]
    fn poll_slow(&self) -> bool {
        let Some(poll) = &self.poll else {
            return false;
        };
        // A hook that itself gets here (a callback that runs a pass) is not asked again.
        let Ok(mut poll) = poll.try_borrow_mut() else {
            return false;
        };
        if poll.last.elapsed() < POLL_INTERVAL {
            return false;
        }
        poll.last = Instant::now();
        if let Err(error) = (poll.hook)() {
            drop(poll);
            self.raise(error);
            self.stop.store(true, Ordering::Relaxed);
            return true;
        }
        false
    }

    /// `Err` with the waiting error, or with `EINTR` if the run was stopped.
    pub fn finish(&self) -> Result<()> {
        self.check_error()?;
        if self.stop.load(Ordering::Relaxed) {
            return Err(Error::new(Errno::EINTR, "the run was interrupted"));
        }
        Ok(())
    }

    fn make(host: &Arc<Host>, stop: Arc<AtomicBool>, poll: Option<RefCell<Poll>>) -> Self {
        Cpu {
            stop,
            poll,
            until_poll: Cell::new(0),
            counters: Counters::default(),
            rcu: host.rcu.register(),
            srcu: host.srcu.register(),
            pcp: RefCell::new(Vec::new()),
            lru_add: RefCell::default(),
            lru_add_room: Cell::new(0),
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

    /// Whether a tracepoint is on.
    #[inline]
    pub fn is_traced(&self, event: Event) -> bool {
        self.trace_mask & event as u32 != 0
    }

    /// Trace an event, if its tracepoint is on.
    #[inline]
    pub fn trace(&self, event: Event, args: &[u64]) {
        if self.is_traced(event) {
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
    pub fn check_error(&self) -> Result<()> {
        self.take_error().map_or(Ok(()), Err)
    }

    /// Let new folios wait, [`FOLIO_BATCH`] at a time, before they are put on
    /// their lists, as the kernel does, or put each there at once. Those that
    /// wait are put there when the batch is full, when this thread reclaims,
    /// and when the `Cpu` goes.
    pub fn set_lru_batching(&self, on: bool) {
        self.lru_add_room.set(if on { FOLIO_BATCH } else { 0 });
        if !on {
            lru_gen::lru_add_drain(self);
        }
    }

    /// Keep a new folio, if they are batched.
    pub(crate) fn keep_for_lru(&self, pfn: Pfn) -> KeptForLru {
        let room = self.lru_add_room.get();
        if room == 0 {
            return KeptForLru::No;
        }
        let mut waiting = self.lru_add.borrow_mut();
        let n = waiting.len;
        waiting.folios[n] = pfn;
        waiting.len += 1;
        if waiting.len < room {
            KeptForLru::Yes
        } else {
            KeptForLru::Full
        }
    }

    /// Take what waits.
    pub(crate) fn take_kept_for_lru(&self) -> KeptFolios {
        let mut waiting = self.lru_add.borrow_mut();
        let kept = *waiting;
        waiting.len = 0;
        kept
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

    /// Count a wait for an LRU lock.
    #[inline]
    pub(crate) fn waited_for_lru_lock(&self, wait: Wait) {
        if !wait.is_zero() {
            self.count(Counter::LruLockContended);
            let ns = u64::try_from(wait.as_nanos()).unwrap_or(u64::MAX);
            self.count_n(Counter::LruLockWaitNs, ns);
        }
    }

    #[inline]
    fn waited(&self, wait: Wait) {
        if !wait.is_zero() {
            self.count(Counter::MmuLockContended);
            let ns = u64::try_from(wait.as_nanos()).unwrap_or(u64::MAX);
            self.count_n(Counter::MmuLockWaitNs, ns);
        }
    }
}

impl Drop for Cpu {
    fn drop(&mut self) {
        lru_gen::lru_add_drain(self);
        self.host.totals.merge(&self.counters.snapshot());
        self.host.memory.drain_pcp(&self.pcp);
        let records = self.trace.take();
        if !records.is_empty() {
            self.host.take_trace(records);
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::host::HostConfig;

    fn host() -> Arc<Host> {
        let config = HostConfig {
            nodes: vec![64],
            swap_pages: 0,
            virtual_clock: true,
        };
        Host::new(&config).expect("a valid host")
    }

    #[test]
    fn an_error_of_the_hook_stops_the_run_and_is_kept() {
        let host = host();
        let calls = std::rc::Rc::new(Cell::new(0));
        let seen = std::rc::Rc::clone(&calls);
        let start = Instant::now();
        let cpu = Cpu::with_poll(
            &host,
            Box::new(move || {
                seen.set(seen.get() + 1);
                Err(Error::new(Errno::EINTR, "asked to stop"))
            }),
        );
        let other = cpu.seed().cpu();
        assert!(!other.poll());
        while !cpu.poll() {
            assert!(start.elapsed() < Duration::from_secs(5), "never asked");
        }
        assert_eq!(calls.get(), 1);
        assert!(start.elapsed() >= POLL_INTERVAL);
        assert!(other.poll(), "threads of a run stop together");
        assert!(
            cpu.finish()
                .expect_err("kept")
                .to_string()
                .contains("asked")
        );
        assert_eq!(cpu.finish().expect_err("stopped").errno(), Errno::EINTR);
    }

    #[test]
    fn counters_reach_the_host_when_the_thread_is_done() {
        let host = host();
        let cpu = Cpu::new(&host);
        cpu.count_n(Counter::PgFault, 3);
        assert_eq!(host.totals.snapshot().get(Counter::PgFault), 0);
        drop(cpu);
        assert_eq!(host.totals.snapshot().get(Counter::PgFault), 3);
    }
}
