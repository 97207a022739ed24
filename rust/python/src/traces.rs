//! Readers of recorded programs.

use crate::native::{Signals, detached};
use numpy::{PyArray1, PyReadonlyArray1};
use pyo3::exceptions::{PyOSError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use std::fs::File;
use std::io::{BufReader, Read, stdin};
use std::path::{Path, PathBuf};
use youngbit_core::access::trace_text::{
    self, LackeyOptions, PageTrace, ReadError, TextFormat, TextTrace,
};
use youngbit_core::sync::lock::Mutex;

type Columns<'py> = (
    Bound<'py, PyArray1<u64>>,
    Bound<'py, PyArray1<u64>>,
    Bound<'py, PyArray1<bool>>,
    u64,
);

type Input = BufReader<Box<dyn Read + Send>>;

/// A recording in text, read a block at a time.
#[pyclass(frozen, module = "youngbit._core")]
pub struct TraceReader {
    path: PathBuf,
    text: Mutex<TextTrace<Input>>,
}

fn io_error(error: &std::io::Error, path: &Path) -> PyErr {
    let what = error.to_string();
    match error.raw_os_error() {
        Some(errno) => PyOSError::new_err((errno, what, path.to_path_buf())),
        None => PyOSError::new_err(what),
    }
}

#[pymethods]
impl TraceReader {
    /// Open `path`, or standard input for `-`.
    #[new]
    fn new(
        py: Python<'_>,
        path: PathBuf,
        format: &str,
        window: u64,
        max_instructions: u64,
    ) -> PyResult<Self> {
        let format = match format {
            "csv" => TextFormat::Csv,
            "lackey" => TextFormat::Lackey(LackeyOptions {
                window,
                max_instructions,
            }),
            "perf" => TextFormat::Perf,
            other => {
                let error = format!("format: {other:?} is none of 'csv', 'lackey', 'perf'");
                return Err(PyValueError::new_err(error));
            }
        };
        // Opening a pipe waits for its other end.
        let opened = py.detach(|| -> std::io::Result<Box<dyn Read + Send>> {
            if path.as_os_str() == "-" {
                return Ok(Box::new(stdin()));
            }
            Ok(Box::new(File::open(&path)?))
        });
        let input = opened.map_err(|error| io_error(&error, &path))?;
        let text = TextTrace::new(BufReader::with_capacity(1 << 18, input), format);
        Ok(TraceReader {
            path,
            text: Mutex::new(text),
        })
    }

    /// About so many more events: time, page, write, and the time that was
    /// spanned so far; None at the end. A text that is wrong raises the
    /// package's own error, which knows file and line.
    fn read<'py>(&self, py: Python<'py>, at_least: usize) -> PyResult<Option<Columns<'py>>> {
        let outcome = detached(py, |signals: &mut Signals| {
            Ok(self.text.lock().read(at_least, &mut || signals.check()))
        })?;
        match outcome {
            Ok(None) => Ok(None),
            Ok(Some(PageTrace {
                time,
                page,
                write,
                duration,
                ..
            })) => Ok(Some((
                PyArray1::from_vec(py, time),
                PyArray1::from_vec(py, page),
                PyArray1::from_vec(py, write),
                duration,
            ))),
            Err(ReadError::Stopped(error)) => Err(error),
            Err(ReadError::Io(error)) => Err(io_error(&error, &self.path)),
            Err(ReadError::Text {
                line,
                found,
                expected,
            }) => {
                let error = py.import("youngbit.errors")?.getattr("TraceError")?;
                let path = self.path.clone();
                let error = error.call1((path, format!("line {line}"), found, expected))?;
                Err(PyErr::from_value(error))
            }
        }
    }

    /// Samples left out so far, because they are not the program's.
    #[getter]
    fn skipped(&self, py: Python<'_>) -> u64 {
        // The lock's holder may wait for the interpreter.
        py.detach(|| self.text.lock().skipped())
    }
}

/// Rows of a CSV trace, without its header.
#[pyfunction]
pub fn format_csv<'py>(
    py: Python<'py>,
    time: PyReadonlyArray1<'py, u64>,
    page: PyReadonlyArray1<'py, u64>,
    write: PyReadonlyArray1<'py, bool>,
) -> PyResult<Bound<'py, PyBytes>> {
    let (time, page, write) = (time.as_slice()?, page.as_slice()?, write.as_slice()?);
    let text = py.detach(|| trace_text::format_csv(time, page, write));
    Ok(PyBytes::new(py, &text))
}
