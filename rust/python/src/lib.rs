//! `youngbit._core`: the extension module. It converts values, calls the core,
//! and maps errors; whatever needs no Python lives in the core.

mod bench;
mod build;
mod damon;
mod error;
mod host;
mod lru;
mod mm;
mod native;
mod notifier;
mod policy;
mod scenario;
mod stream;
mod stress;
mod traces;
mod vm;

use pyo3::prelude::*;

/// The native half of youngbit. Use the package `youngbit`, not this module.
#[pymodule(gil_used = true)]
mod _core {
    #[pymodule_export]
    use super::bench::{bench_run, bench_suites};
    #[pymodule_export]
    use super::build::{build_info, counter_help};
    #[pymodule_export]
    use super::damon::{Damon, scan_young};
    #[pymodule_export]
    use super::host::Host;
    #[pymodule_export]
    use super::lru::{
        check, fail_file_writes, fail_swap_writes, format_lru_gen, memcg_read, memcg_write,
        parse_lru_gen, proc_read, proc_write, reuse_distances, run_oracle, stream_accesses, swap,
    };
    #[pymodule_export]
    use super::mm::{Mm, Registration};
    #[pymodule_export]
    use super::policy::{LruView, set_policy};
    #[pymodule_export]
    use super::scenario::{Scenario, parse_scenario, recording_scenario, replay_recording};
    #[pymodule_export]
    use super::stress::{next_seed, stress_round};
    #[pymodule_export]
    use super::traces::{TraceReader, format_csv, format_perf};
    #[pymodule_export]
    use super::vm::Vm;
}
