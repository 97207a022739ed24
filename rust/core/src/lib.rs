//! youngbit's core: the multi-gen LRU, MMU notifiers and KVM's MMU as a
//! reference model with real atomics and real threads.
//!
//! Data flows one way: a guest access sets bits in an SPTE ([`kvm`]); aging
//! ([`lru_gen`]) reads and clears them through page tables and notifiers
//! ([`mm`]), which moves folios between generations; reclaim takes the oldest.

#![warn(missing_docs)]

pub mod access;
#[cfg(not(loom))]
pub mod bench;
pub mod cpu;
pub mod error;
pub mod host;
pub mod kvm;
pub mod lru_gen;
pub mod mm;
pub mod mutant;
pub mod scenario;
#[cfg(not(loom))]
pub mod stress;
pub mod sync;
pub mod table;
pub mod text;
pub mod trace;

pub use cpu::Cpu;
pub use error::{Errno, Error, Result};
pub use host::{Host, HostConfig};
