//! How the module was built.

use pyo3::prelude::*;
use pyo3::types::PyDict;
use youngbit_core::trace::Counter;

/// What this module is and how it was built: version, profile, optimisation
/// level, debug assertions, compiler, target.
#[pyfunction]
pub fn build_info(py: Python<'_>) -> PyResult<Bound<'_, PyDict>> {
    let info = PyDict::new(py);
    info.set_item("version", env!("CARGO_PKG_VERSION"))?;
    info.set_item("profile", env!("YOUNGBIT_PROFILE"))?;
    info.set_item("opt_level", env!("YOUNGBIT_OPT_LEVEL"))?;
    info.set_item("debug_assertions", cfg!(debug_assertions))?;
    info.set_item("rustc", env!("YOUNGBIT_RUSTC"))?;
    info.set_item("target", env!("YOUNGBIT_TARGET"))?;
    Ok(info)
}

/// What each counter counts, by its key in results.
#[pyfunction]
pub fn counter_help() -> Vec<(&'static str, &'static str)> {
    Counter::ALL
        .iter()
        .map(|counter| (counter.key(), counter.help().trim()))
        .collect()
}
