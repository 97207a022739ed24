//! The one way from Python into the machine.

use crate::error::{callback, to_python};
use pyo3::exceptions::PyOSError;
use pyo3::prelude::*;
use pyo3::types::PyDict;
use std::cell::Cell;
use std::sync::Arc;
use std::time::{Duration, Instant};
use youngbit_core::error::Errno;
use youngbit_core::trace::CounterValues;
use youngbit_core::{Cpu, Host, Result};

/// How often a reader looks whether Ctrl-C was pressed.
const SIGNAL_PERIOD: Duration = Duration::from_millis(25);

thread_local! {
    /// Whether this thread is inside a callback written in Python.
    static IN_CALLBACK: Cell<bool> = const { Cell::new(false) };
}

/// Mark this thread as inside a Python callback while `body` runs. The walk
/// that called back holds locks that another call would wait for.
pub fn in_callback<T>(body: impl FnOnce() -> T) -> T {
    let outer = IN_CALLBACK.replace(true);
    let value = body();
    IN_CALLBACK.set(outer);
    value
}

/// Leave the interpreter, run `job` on a `Cpu` of its own, come back. The job
/// stops within a tenth of a second when a signal handler raises; what it
/// counted is returned with its result.
///
/// # Errors
/// What a callback or a signal handler raised, before what the job returned;
/// `EBUSY` from inside a callback.
pub fn run<T: Send>(
    py: Python<'_>,
    host: &Arc<Host>,
    job: impl FnOnce(&Cpu) -> Result<T> + Send,
) -> PyResult<(T, CounterValues)> {
    if IN_CALLBACK.get() {
        return Err(PyOSError::new_err((
            Errno::EBUSY as i32,
            "a notifier callback cannot call into the machine: the pass that called it holds locks",
        )));
    }
    let outcome = py.detach(|| {
        let hook = || Python::attach(|py| py.check_signals()).map_err(callback);
        let cpu = Cpu::with_poll(host, Box::new(hook));
        let value = job(&cpu);
        // A raised exception explains whatever else went wrong.
        cpu.check_error()?;
        let value = value?;
        cpu.finish()?;
        Ok((value, cpu.counters.snapshot()))
    });
    outcome.map_err(to_python)
}

/// Leave the interpreter for work that needs no machine.
pub fn detached<T: Send>(
    py: Python<'_>,
    job: impl FnOnce(&mut Signals) -> PyResult<T> + Send,
) -> PyResult<T> {
    py.detach(|| job(&mut Signals::new()))
}

/// Looks for signals now and then, on the thread that called from Python.
pub struct Signals {
    next: Instant,
}

impl Signals {
    fn new() -> Self {
        Signals {
            next: Instant::now() + SIGNAL_PERIOD,
        }
    }

    /// Run pending signal handlers when it is time; their exception stops the
    /// call.
    pub fn check(&mut self) -> PyResult<()> {
        if Instant::now() < self.next {
            return Ok(());
        }
        let checked = Python::attach(|py| py.check_signals());
        self.next = Instant::now() + SIGNAL_PERIOD;
        checked
    }
}

/// Counters by key; those that are 0 too, so that a reader finds every key.
pub fn counters<'py>(py: Python<'py>, values: &CounterValues) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    for (key, value) in values.iter() {
        dict.set_item(key, value)?;
    }
    Ok(dict)
}
