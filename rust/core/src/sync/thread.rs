//! Threads: one per vCPU and one per ager, started for a run and joined before it returns.

#[cfg(not(loom))]
pub use std::thread::{JoinHandle, ScopedJoinHandle, available_parallelism, sleep, spawn};
#[cfg(not(any(loom, youngbit_tsan)))]
pub use std::thread::{Scope, scope};
#[cfg(youngbit_tsan)]
pub use told::{Scope, scope};

// Under loom a model starts its threads itself, with `spawn`; whole runs, which
// use `scope`, are no part of models.
#[cfg(loom)]
pub use loom::thread::{JoinHandle, spawn};
#[cfg(loom)]
pub use std::thread::{Scope, ScopedJoinHandle, available_parallelism, scope};

/// Give the processor away (`cond_resched()`).
pub fn yield_now() {
    #[cfg(not(loom))]
    std::thread::yield_now();
    #[cfg(loom)]
    loom::thread::yield_now();
}

/// Processors that a thread may run on.
#[cfg(not(loom))]
#[derive(Clone)]
pub struct Affinity {
    #[cfg(target_os = "linux")]
    allowed: Option<rustix::thread::CpuSet>,
}

#[cfg(not(loom))]
impl Affinity {
    /// Those of the calling thread. New threads inherit them.
    #[must_use]
    pub fn current() -> Self {
        Affinity {
            #[cfg(target_os = "linux")]
            allowed: rustix::thread::sched_getaffinity(None).ok(),
        }
    }

    /// How many there are; 1 where the system does not say.
    fn count(&self) -> usize {
        #[cfg(target_os = "linux")]
        if let Some(allowed) = &self.allowed {
            return allowed.count() as usize;
        }
        1
    }

    /// Keep the calling thread on the `n`th of them, counted round and round.
    /// False where the system does not allow it; then nothing has changed.
    pub fn pin(&self, n: usize) -> bool {
        #[cfg(target_os = "linux")]
        if let Some(allowed) = &self.allowed {
            use rustix::thread::CpuSet;
            let cores: Vec<usize> = (0..CpuSet::MAX_CPU)
                .filter(|&core| allowed.is_set(core))
                .collect();
            let mut only = CpuSet::new();
            if let Some(&core) = n.checked_rem(cores.len()).and_then(|n| cores.get(n)) {
                only.set(core);
                return rustix::thread::sched_setaffinity(None, &only).is_ok();
            }
        }
        let _ = n;
        false
    }

    /// Keep one thread on a processor of its own, the first, and the `n`th of
    /// some others on the rest, which they share where there are too few. False
    /// where the system does not allow it, or there is only one.
    pub fn pin_apart(&self, other: Option<usize>) -> bool {
        match self.count() - 1 {
            0 => false,
            rest => self.pin(other.map_or(0, |n| 1 + n % rest)),
        }
    }

    /// Let the calling thread run on all of them.
    pub fn apply(&self) {
        #[cfg(target_os = "linux")]
        if let Some(allowed) = &self.allowed {
            // Where that fails, the thread merely stays where it is.
            let _ = rustix::thread::sched_setaffinity(None, allowed);
        }
    }
}

/// Processor time of the calling thread and of the whole process, in
/// nanoseconds; `None` where the system does not say.
#[cfg(not(loom))]
pub fn cpu_time() -> Option<(u64, u64)> {
    #[cfg(target_os = "linux")]
    {
        use rustix::time::{ClockId, clock_gettime};
        let ns = |clock| {
            let time = clock_gettime(clock);
            u64::try_from(time.tv_sec)
                .ok()?
                .checked_mul(1_000_000_000)?
                .checked_add(u64::try_from(time.tv_nsec).ok()?)
        };
        Some((ns(ClockId::ThreadCPUTime)?, ns(ClockId::ProcessCPUTime)?))
    }
    #[cfg(not(target_os = "linux"))]
    None
}

#[cfg(all(feature = "mutants", not(loom)))]
static LOST: super::atomic::Tally = super::atomic::Tally::new(0);

/// Now and then lose the processor for a time slice, as a thread does that can
/// be preempted: for the mutant that shows what it costs.
#[cfg(feature = "mutants")]
pub fn lose_time_slice() {
    #[cfg(not(loom))]
    {
        use super::atomic::Ordering;
        use std::cell::Cell;
        thread_local! {
            static CALLS: Cell<u32> = const { Cell::new(0) };
        }
        let calls = CALLS.get().wrapping_add(1);
        CALLS.set(calls);
        if calls.is_multiple_of(2048) {
            LOST.fetch_add(1, Ordering::Relaxed);
            // A time slice of the fair scheduler.
            std::thread::sleep(std::time::Duration::from_millis(3));
            LOST.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// How many threads are without a processor now by [`lose_time_slice`].
#[cfg(all(feature = "mutants", not(loom)))]
pub fn without_processor() -> u64 {
    LOST.load(super::atomic::Ordering::Relaxed)
}

/// As with mutants, without them: nothing.
#[cfg(not(feature = "mutants"))]
pub fn lose_time_slice() {}

#[cfg(youngbit_tsan)]
mod told {
    use crate::sync::atomic::{Ordering, fence};
    use std::thread::ScopedJoinHandle;

    /// As the standard library's, which tells ThreadSanitizer nothing of the
    /// order that the end of a scope makes: it is not instrumented, and joins
    /// no thread whose handle was dropped.
    #[repr(transparent)]
    pub struct Scope<'scope, 'env: 'scope>(std::thread::Scope<'scope, 'env>);

    /// What a thread does last.
    struct End;

    impl Drop for End {
        fn drop(&mut self) {
            // Pairs with the fence at the end of `scope`.
            fence(Ordering::Release);
        }
    }

    impl<'scope> Scope<'scope, '_> {
        /// Start a thread that ends before the scope does.
        pub fn spawn<F, T>(&'scope self, f: F) -> ScopedJoinHandle<'scope, T>
        where
            F: FnOnce() -> T + Send + 'scope,
            T: Send + 'scope,
        {
            self.0.spawn(|| {
                let _end = End;
                f()
            })
        }
    }

    /// Start threads that may borrow, and wait for them.
    pub fn scope<'env, F, T>(f: F) -> T
    where
        F: for<'scope> FnOnce(&'scope Scope<'scope, 'env>) -> T,
    {
        let result = std::thread::scope(|scope| {
            // SAFETY: `Scope` is transparent, so the reference is one of it.
            let scope = unsafe { &*std::ptr::from_ref(scope).cast::<Scope<'_, 'env>>() };
            f(scope)
        });
        // Pairs with the end of each thread.
        fence(Ordering::Acquire);
        result
    }
}
