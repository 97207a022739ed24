//! Scenarios, step by step, and recordings compared.

use crate::error::{callback, to_python};
use crate::native::counters;
use pyo3::exceptions::PyIndexError;
use pyo3::prelude::*;
use pyo3::types::PyDict;
use youngbit_core::scenario::{self, Conditions, Recording, Step, parse};
use youngbit_core::sync::lock::Mutex;
use youngbit_core::{Cpu, Host, Result};

/// A `Cpu` whose long loops notice Ctrl-C.
fn interruptible(host: &std::sync::Arc<Host>) -> Cpu {
    let hook = || Python::attach(|py| py.check_signals()).map_err(callback);
    Cpu::with_poll(host, Box::new(hook))
}

/// A scenario on a machine of its own.
#[pyclass(frozen, module = "youngbit._core")]
pub struct Scenario {
    steps: Vec<Step>,
    runner: Mutex<(usize, scenario::Runner)>,
    header: String,
}

#[pymethods]
impl Scenario {
    /// Read a scenario, and make a machine in the conditions of a recording's
    /// first line.
    #[new]
    fn new(py: Python<'_>, conditions: &[u8], text: &[u8]) -> PyResult<Self> {
        let made: Result<Self> = py.detach(|| {
            let header = Recording::parse(conditions)?.header;
            let steps = parse::parse(text)?;
            let runner = scenario::Runner::new(&Conditions::from_header(&header)?)?;
            Ok(Scenario {
                steps,
                runner: Mutex::new((0, runner)),
                header: header.to_json(),
            })
        });
        made.map_err(to_python)
    }

    /// The conditions, as a line of a recording.
    #[getter]
    fn header(&self) -> &str {
        &self.header
    }

    /// Line, operation and arguments of each step.
    #[getter]
    fn steps(&self) -> Vec<(usize, String, String)> {
        let steps = self.steps.iter();
        steps
            .map(|step| (step.line, step.name.clone(), step.args.clone()))
            .collect()
    }

    /// Run the next step; returns the record, as a line of a recording, and
    /// what was counted.
    fn step<'py>(&self, py: Python<'py>) -> PyResult<(String, Bound<'py, PyDict>)> {
        let outcome = py.detach(|| {
            let mut guard = self.runner.lock();
            let (next, runner) = &mut *guard;
            let Some(step) = self.steps.get(*next) else {
                return Ok(None);
            };
            let before = runner.host().totals.snapshot();
            let record = runner.step_on(step, interruptible)?;
            let after = runner.host().totals.snapshot();
            *next += 1;
            Ok(Some((record.to_json(), after.since(&before))))
        });
        match outcome.map_err(to_python)? {
            Some((record, counted)) => Ok((record, counters(py, &counted)?)),
            None => Err(PyIndexError::new_err("the scenario has no step left")),
        }
    }
}

/// Steps, equal steps, and the first difference.
type Compared = (usize, usize, Option<String>);

/// Run a recording's scenario under its conditions and compare.
#[pyfunction]
pub fn replay_recording(py: Python<'_>, recording: &[u8], scenario: &[u8]) -> PyResult<Compared> {
    let outcome: Result<Compared> = py.detach(|| {
        let recording = Recording::parse(recording)?;
        let steps = parse::parse(scenario)?;
        let mut runner = scenario::Runner::new(&Conditions::from_header(&recording.header)?)?;
        let mut ours = Vec::with_capacity(steps.len());
        for step in &steps {
            ours.push(runner.step_on(step, interruptible)?);
        }
        let found = scenario::compare(&recording, &ours);
        Ok((found.steps, found.equal_steps, found.first_difference))
    });
    outcome.map_err(to_python)
}

/// Name of the scenario that a recording is of, and number of its steps.
#[pyfunction]
pub fn recording_scenario(py: Python<'_>, recording: &[u8]) -> PyResult<(String, usize)> {
    let read = py.detach(|| Recording::parse(recording));
    let read = read.map_err(to_python)?;
    Ok((read.header.scenario, read.records.len()))
}

/// Read a scenario; returns line, operation and arguments of each step.
#[pyfunction]
pub fn parse_scenario(py: Python<'_>, text: &[u8]) -> PyResult<Vec<(usize, String, String)>> {
    let steps = py.detach(|| parse::parse(text)).map_err(to_python)?;
    Ok(steps
        .into_iter()
        .map(|s| (s.line, s.name, s.args))
        .collect())
}
