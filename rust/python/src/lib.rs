//! `youngbit._core`: the extension module. It converts values, calls the core,
//! and maps errors; whatever needs no Python lives in the core.

mod build;
mod error;
mod host;
mod mm;
mod native;
mod notifier;
mod stream;
mod traces;
mod vm;

use pyo3::prelude::*;

/// The native half of youngbit. Use the package `youngbit`, not this module.
#[pymodule(gil_used = true)]
mod _core {
    #[pymodule_export]
    use super::build::build_info;
    #[pymodule_export]
    use super::host::Host;
    #[pymodule_export]
    use super::mm::{Mm, Registration};
    #[pymodule_export]
    use super::traces::{read_csv, read_lackey};
    #[pymodule_export]
    use super::vm::Vm;
}
