//! Torture, round by round.

use crate::error::{callback, to_python};
use crate::native::counters;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyDict;
use std::time::{Duration, Instant};
use youngbit_core::kvm::{MmuKind, Protocol};
use youngbit_core::stress::{self, Options};

/// How often signal handlers are run.
const SIGNAL_PERIOD: Duration = Duration::from_millis(50);

/// One round of torture, ended early after `seconds` or by Ctrl-C: its counts
/// come back nevertheless. `progress` is told how many accesses were made.
#[pyfunction]
#[allow(clippy::too_many_arguments)]
pub fn stress_round<'py>(
    py: Python<'py>,
    mmu: &str,
    protocol: &str,
    threads: u32,
    agers: u32,
    accesses: u64,
    seed: u64,
    seconds: f64,
    progress: Option<Py<PyAny>>,
) -> PyResult<Bound<'py, PyDict>> {
    let kind = match mmu {
        "tdp" => MmuKind::Tdp,
        "shadow" => MmuKind::Shadow,
        "nested" => MmuKind::Nested,
        _ => return Err(PyValueError::new_err(format!("no MMU is called {mmu:?}"))),
    };
    let protocol = Protocol::by_name(protocol)
        .ok_or_else(|| PyValueError::new_err(format!("no protocol is called {protocol:?}")))?;
    let limit = Duration::try_from_secs_f64(seconds)
        .map_err(|_| PyValueError::new_err(format!("{seconds} seconds is no time")))?;
    let options = Options {
        mmu: kind,
        protocol,
        vcpus: threads,
        agers,
        accesses,
        seed,
        ..Options::default()
    };
    let mut raised = None;
    let outcome = py.detach(|| {
        let start = Instant::now();
        let mut asked = start;
        stress::round(&options, &mut |made| {
            if asked.elapsed() >= SIGNAL_PERIOD {
                asked = Instant::now();
                let told = Python::attach(|py| {
                    py.check_signals()?;
                    progress
                        .as_ref()
                        .map_or(Ok(()), |f| f.call1(py, (made,)).map(drop))
                });
                if let Err(error) = told {
                    raised = Some(error);
                    return false;
                }
            }
            start.elapsed() < limit
        })
    });
    // What Ctrl-C raised is told by `interrupted`; what a broken callback
    // raised is an error.
    let mut stopped = false;
    if let Some(error) = raised {
        if !error.is_instance_of::<pyo3::exceptions::PyKeyboardInterrupt>(py) {
            return Err(to_python(callback(error)));
        }
        stopped = true;
    }
    let round = outcome.map_err(to_python)?;
    let dict = PyDict::new(py);
    dict.set_item("machine", round.machine)?;
    dict.set_item("accesses", round.accesses)?;
    dict.set_item("interrupted", stopped)?;
    dict.set_item("wall_ns", round.wall_ns)?;
    let deeds = PyDict::new(py);
    for (name, n) in round.deeds {
        deeds.set_item(name, n)?;
    }
    dict.set_item("deeds", deeds)?;
    dict.set_item("counters", counters(py, &round.counters)?)?;
    dict.set_item("failure", round.failure)?;
    Ok(dict)
}

/// The seed of the round that follows one.
#[pyfunction]
pub fn next_seed(seed: u64) -> u64 {
    stress::next_seed(seed)
}
