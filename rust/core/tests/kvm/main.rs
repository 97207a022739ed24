//! The secondary MMU: sections 1, 2, 3 and 5 of the series, statement by
//! statement, then with threads, then against an oracle.

mod batched;
#[path = "../budget/mod.rs"]
mod budget;
mod fetches;
mod machine;
mod memslots;
mod notifiers;
mod oracle;
mod program;
mod sptes;
mod tdp;
mod threads;
mod vcpus;
