//! The claims about lockless code, each checked under every interleaving up to
//! a bound by the loom model checker, on the code that ships.
//!
//! `make protocols` runs it, with each mutant and without.
#![cfg(loom)]

#[path = "protocols/model.rs"]
mod model;

const RELAXED: youngbit_core::sync::atomic::Ordering =
    youngbit_core::sync::atomic::Ordering::Relaxed;

#[path = "protocols/machine.rs"]
mod machine;

#[path = "protocols/folio.rs"]
mod folio;
#[path = "protocols/lock.rs"]
mod lock;
#[path = "protocols/lru.rs"]
mod lru;
#[path = "protocols/nested.rs"]
mod nested;
#[path = "protocols/notifier.rs"]
mod notifier;
#[path = "protocols/rcu.rs"]
mod rcu;
#[path = "protocols/rmap.rs"]
mod rmap;
#[path = "protocols/scenes.rs"]
mod scenes;
#[path = "protocols/shadow.rs"]
mod shadow;
#[path = "protocols/tdp.rs"]
mod tdp;
