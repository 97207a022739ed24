//! Readers of recorded programs.

use crate::native::{Signals, detached};
use numpy::{PyArray1, ToPyArray};
use pyo3::exceptions::PyOSError;
use pyo3::prelude::*;
use std::fs::File;
use std::io::{BufReader, Read, stdin};
use std::path::PathBuf;
use youngbit_core::access::trace_text::{self, LackeyOptions, PageTrace, ReadError, ReadResult};

type Columns<'py> = (
    Bound<'py, PyArray1<u64>>,
    Bound<'py, PyArray1<u64>>,
    Bound<'py, PyArray1<bool>>,
    u64,
    u64,
);

/// Read `path`, or standard input for `-`. A text that is wrong raises the
/// package's own error, which knows file and line.
fn read<'py>(
    py: Python<'py>,
    path: PathBuf,
    reader: impl FnOnce(BufReader<Box<dyn Read>>, &mut dyn FnMut() -> PyResult<()>) -> ReadResult<PyErr>
    + Send,
) -> PyResult<Columns<'py>> {
    let outcome = detached(py, |signals: &mut Signals| {
        let input: Box<dyn Read> = if path.as_os_str() == "-" {
            Box::new(stdin())
        } else {
            match File::open(&path) {
                Ok(file) => Box::new(file),
                Err(error) => return Ok(Err(ReadError::Io(error))),
            }
        };
        let input = BufReader::with_capacity(1 << 16, input);
        Ok(reader(input, &mut || signals.check()))
    })?;
    match outcome {
        Ok(PageTrace {
            time,
            page,
            write,
            window,
            duration,
        }) => Ok((
            time.to_pyarray(py),
            page.to_pyarray(py),
            write.to_pyarray(py),
            window,
            duration,
        )),
        Err(ReadError::Stopped(error)) => Err(error),
        Err(ReadError::Io(error)) => {
            let what = error.to_string();
            Err(match error.raw_os_error() {
                Some(errno) => PyOSError::new_err((errno, what, path)),
                None => PyOSError::new_err(what),
            })
        }
        Err(ReadError::Text {
            line,
            found,
            expected,
        }) => {
            let error = py.import("youngbit.errors")?.getattr("TraceError")?;
            let error = error.call1((path, format!("line {line}"), found, expected))?;
            Err(PyErr::from_value(error))
        }
    }
}

/// Read a CSV trace; returns time, page, write, window and duration.
#[pyfunction]
pub fn read_csv(py: Python<'_>, path: PathBuf) -> PyResult<Columns<'_>> {
    read(py, path, |input, poll| trace_text::read_csv(input, poll))
}

/// Read lackey text; returns time, page, write, window and duration.
#[pyfunction]
#[pyo3(signature = (path, window, max_instructions=0))]
pub fn read_lackey(
    py: Python<'_>,
    path: PathBuf,
    window: u64,
    max_instructions: u64,
) -> PyResult<Columns<'_>> {
    let options = LackeyOptions {
        window,
        max_instructions,
    };
    read(py, path, move |input, poll| {
        trace_text::read_lackey(input, options, poll)
    })
}
