//! Readers of recorded programs.

use crate::native::{Signals, detached};
use numpy::{PyArray1, PyReadonlyArray1};
use pyo3::exceptions::{PyOSError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use std::fs::File;
use std::io::{self, BufReader, Read, stdin};
use std::os::fd::{AsFd, FromRawFd};
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

type Input = BufReader<Interruptible>;

/// A recording in text, read a block at a time.
#[pyclass(frozen, module = "youngbit._core")]
pub struct TraceReader {
    path: PathBuf,
    text: Mutex<TextTrace<Input>>,
}

/// How long a reader waits for the other end of a pipe before it looks whether a
/// signal came. A signal ends the wait too, but not one that comes just before it.
const LOOK: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 50_000_000,
};

/// A file whose other end may keep its reader waiting. Handlers of signals run
/// meanwhile, and what they raise travels inside the error.
struct Interruptible(File);

impl Read for Interruptible {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let mut wanted = [PollFd::new(&self.0, PollFlags::IN)];
            match poll(&mut wanted, Some(&LOOK)) {
                Ok(0) | Err(Errno::INTR) => {
                    Python::attach(|py| py.check_signals()).map_err(io::Error::other)?;
                }
                // There is something to read, an end, or an error that reading says.
                Ok(_) => return self.0.read(buffer),
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

/// Open a file as Python does: opening a pipe waits for its other end, and that
/// wait too is ended by what a signal handler raises.
fn open(py: Python<'_>, path: &Path) -> PyResult<File> {
    let os = py.import("os")?;
    let flags: i32 = os.getattr("O_RDONLY")?.extract()?;
    let descriptor: i32 = os.call_method1("open", (path, flags))?.extract()?;
    // SAFETY: the descriptor was opened just now and for nobody else, so it is
    // open, and the file may close it.
    Ok(unsafe { File::from_raw_fd(descriptor) })
}

fn io_error(error: io::Error, path: &Path) -> PyErr {
    if error.get_ref().is_some_and(|inner| inner.is::<PyErr>()) {
        return error.into();
    }
    let what = error.to_string();
    match error.raw_os_error() {
        // As Python says it: the number is there already, and the name is a text.
        Some(errno) => {
            let what = what.split(" (os error").next().unwrap_or(&what).to_owned();
            PyOSError::new_err((errno, what, path.as_os_str().to_owned()))
        }
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
        let file = if path.as_os_str() == "-" {
            let own = stdin().as_fd().try_clone_to_owned();
            File::from(own.map_err(|error| io_error(error, &path))?)
        } else {
            open(py, &path)?
        };
        let input = BufReader::with_capacity(1 << 18, Interruptible(file));
        let text = TextTrace::new(input, format);
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
            Err(ReadError::Io(error)) => Err(io_error(error, &self.path)),
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

/// Samples as perf prints them.
#[pyfunction]
pub fn format_perf<'py>(
    py: Python<'py>,
    time: PyReadonlyArray1<'py, u64>,
    page: PyReadonlyArray1<'py, u64>,
    write: PyReadonlyArray1<'py, bool>,
) -> PyResult<Bound<'py, PyBytes>> {
    let (time, page, write) = (time.as_slice()?, page.as_slice()?, write.as_slice()?);
    let text = py.detach(|| trace_text::format_perf(time, page, write));
    Ok(PyBytes::new(py, &text))
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
