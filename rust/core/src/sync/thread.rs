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
