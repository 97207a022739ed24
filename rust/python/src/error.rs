//! The core's errors as Python's.

use pyo3::exceptions::{PyOSError, PyRuntimeError};
use pyo3::prelude::*;
use youngbit_core::error::Error;

/// Box an exception for its way through the core.
pub fn callback(error: PyErr) -> Error {
    Error::Callback(Box::new(error))
}

/// What a failed native call raises: `OSError` with the kernel's number, or
/// the very exception that a Python callback raised.
pub fn to_python(error: Error) -> PyErr {
    match error {
        // With a number first, `OSError` picks its subclass and shows both.
        Error::Sys { errno, what } => PyOSError::new_err((errno as i32, what)),
        Error::Callback(payload) => match payload.downcast::<PyErr>() {
            Ok(error) => *error,
            Err(_) => {
                PyRuntimeError::new_err("a callback failed with something that is no exception")
            }
        },
    }
}
