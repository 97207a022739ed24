//! The only door to atomics, spinning, threads, grace periods and locks.
//!
//! Everything else in the crate takes these from here (a test, `one_door`,
//! refuses the originals), so that with `--cfg loom` the same code runs under a model
//! checker. `Ordering` is re-exported, never hidden: orderings are what this
//! model is about, and they stay visible where they are used.
//!
//! | room | what it stands for in the kernel | where it comes from |
//! |---|---|---|
//! | [`atomic`] | `READ_ONCE`, `xchg`, `cmpxchg`, `set_bit` | `core`, or loom |
//! | [`spin`] | `cpu_relax`, `cond_resched` | `crossbeam-utils`, or loom |
//! | [`lock`] | `spinlock_t`, `rwlock_t`, `rw_semaphore`, `mutex` | [`ticket`], `parking_lot`, or loom |
//! | [`ticket`] | `qspinlock` | here |
//! | [`once`] | a pointer stored once with release | `std` |
//! | [`rcu`] | RCU and SRCU | `crossbeam-epoch`, or a model of it under loom |
//! | [`thread`] | kthreads and vCPU threads | `std`, or loom |

pub mod atomic;
pub mod cell;
pub mod lock;
pub mod once;
pub mod rcu;
pub mod spin;
#[cfg(loom)]
pub mod step;
pub mod thread;
pub mod ticket;

pub use crossbeam_utils::CachePadded;
