//! Threads: one per vCPU and one per ager, started for a run and joined before it returns.

#[cfg(not(loom))]
pub use std::thread::{Scope, ScopedJoinHandle, available_parallelism, scope};

#[cfg(loom)]
pub use loom::thread::{JoinHandle, spawn};

/// Give the processor away (`cond_resched()`).
pub fn yield_now() {
    #[cfg(not(loom))]
    std::thread::yield_now();
    #[cfg(loom)]
    loom::thread::yield_now();
}
