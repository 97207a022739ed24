//! Measuring: the suites of `youngbit bench`.

use crate::error::{callback, to_python};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use youngbit_core::bench::{self, Options, Scale, Suite};

/// Names of the suites, in the order in which they are run.
#[pyfunction]
pub fn bench_suites() -> Vec<&'static str> {
    Suite::ALL.iter().map(|suite| suite.name()).collect()
}

/// Run a suite outside the interpreter. `progress` is called before each
/// repetition with what comes, `finished` with each row as a line of JSON; an
/// exception of either, or of a signal handler, stops the run. Between
/// repetitions only: nothing that Python does is inside a timer.
///
/// # Errors
/// `ValueError` for a name that is none; what the callbacks raise; `OSError`
/// as the core says.
#[pyfunction]
#[pyo3(signature = (suite, scale, seed, repetitions, only, progress, finished))]
#[allow(clippy::too_many_arguments)]
pub fn bench_run(
    py: Python<'_>,
    suite: &str,
    scale: &str,
    seed: u64,
    repetitions: Option<usize>,
    only: Option<String>,
    progress: Py<PyAny>,
    finished: Py<PyAny>,
) -> PyResult<()> {
    let suite = Suite::by_name(suite)
        .ok_or_else(|| PyValueError::new_err(format!("{suite:?} is no suite")))?;
    let scale = match scale {
        "smallest" => Scale::Smallest,
        "quick" => Scale::Quick,
        "full" => Scale::Full,
        "large" => Scale::Large,
        other => return Err(PyValueError::new_err(format!("{other:?} is no scale"))),
    };
    let options = Options {
        scale,
        seed,
        repetitions,
        only,
    };
    let told = |hook: &Py<PyAny>, what: &str| {
        Python::attach(|py| {
            py.check_signals()?;
            hook.call1(py, (what,)).map(drop)
        })
        .map_err(callback)
    };
    py.detach(|| {
        bench::run_each(
            suite,
            &options,
            &mut |what| told(&progress, what),
            &mut |row| told(&finished, &row.to_json()?),
        )
    })
    .map_err(to_python)
}
