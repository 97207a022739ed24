//! The one way from Python into a long native call.

use pyo3::prelude::*;
use std::time::{Duration, Instant};

/// How often a long call looks whether Ctrl-C was pressed.
const SIGNAL_PERIOD: Duration = Duration::from_millis(25);

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
        let now = Instant::now();
        if now < self.next {
            return Ok(());
        }
        let checked = Python::attach(|py| py.check_signals());
        self.next = Instant::now() + SIGNAL_PERIOD;
        checked
    }
}

/// Leave the interpreter, run, come back.
pub fn detached<T: Send>(
    py: Python<'_>,
    run: impl FnOnce(&mut Signals) -> PyResult<T> + Send,
) -> PyResult<T> {
    py.detach(|| run(&mut Signals::new()))
}
