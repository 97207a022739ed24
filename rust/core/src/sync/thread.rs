//! Threads: one per vCPU and one per ager, started for a run and joined before it returns.

#[cfg(not(loom))]
pub use std::thread::{Scope, ScopedJoinHandle, available_parallelism, scope};

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

/// Now and then lose the processor for a time slice, as a thread does that can
/// be preempted: for the mutant that shows what it costs.
#[cfg(feature = "mutants")]
pub fn lose_time_slice() {
    #[cfg(not(loom))]
    {
        use std::cell::Cell;
        thread_local! {
            static CALLS: Cell<u32> = const { Cell::new(0) };
        }
        let calls = CALLS.get().wrapping_add(1);
        CALLS.set(calls);
        if calls % 4096 == 0 {
            // A time slice of the fair scheduler.
            std::thread::sleep(std::time::Duration::from_millis(3));
        }
    }
}

/// As with mutants, without them: nothing.
#[cfg(not(feature = "mutants"))]
pub fn lose_time_slice() {}
