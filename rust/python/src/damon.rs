//! Who else reads accessed bits: a region sampler, and a scan of every page.

use crate::error::to_python;
use crate::mm::Mm;
use crate::native::{counters, run};
use numpy::PyArray1;
use pyo3::prelude::*;
use pyo3::types::PyDict;
use std::sync::Arc;
use youngbit_core::mm::damon::{self, Attrs};
use youngbit_core::mm::young::{self, Flush};
use youngbit_core::sync::lock::Mutex;
use youngbit_core::{Host, mm};

/// A region sampler over a range of a process.
#[pyclass(frozen, module = "youngbit._core")]
pub struct Damon {
    host: Arc<Host>,
    mm: Arc<mm::Mm>,
    core: Mutex<damon::Damon>,
}

type Regions<'py> = (
    Bound<'py, PyArray1<u64>>,
    Bound<'py, PyArray1<u64>>,
    Bound<'py, PyArray1<u32>>,
    Bound<'py, PyArray1<u32>>,
);

#[pymethods]
impl Damon {
    #[new]
    fn new(
        mm: &Mm,
        start: u64,
        pages: u64,
        samples: u32,
        min_regions: u32,
        max_regions: u32,
        seed: u64,
    ) -> PyResult<Self> {
        let attrs = Attrs {
            samples,
            min_regions,
            max_regions,
        };
        let core = damon::Damon::new(start, pages, attrs, seed).map_err(to_python)?;
        Ok(Damon {
            host: Arc::clone(&mm.host),
            mm: Arc::clone(&mm.core),
            core: Mutex::new(core),
        })
    }

    /// Make one page of each region old; returns what was counted.
    fn prepare<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let ((), counted) = run(py, &self.host, |cpu| {
            self.core.lock().prepare(cpu, &self.mm);
            Ok(())
        })?;
        counters(py, &counted)
    }

    /// Ask those pages whether they are young; returns what was counted.
    fn check<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let ((), counted) = run(py, &self.host, |cpu| {
            self.core.lock().check(cpu, &self.mm);
            Ok(())
        })?;
        counters(py, &counted)
    }

    /// End the aggregation interval: first page, end, samples in which it was
    /// accessed and age of each region.
    fn aggregate<'py>(&self, py: Python<'py>) -> Regions<'py> {
        let found = py.detach(|| self.core.lock().aggregate());
        (
            PyArray1::from_iter(py, found.iter().map(|region| region.start)),
            PyArray1::from_iter(py, found.iter().map(|region| region.end)),
            PyArray1::from_iter(py, found.iter().map(|region| region.nr_accesses)),
            PyArray1::from_iter(py, found.iter().map(|region| region.age)),
        )
    }

    /// How many regions there are now.
    #[getter]
    fn nr_regions(&self, py: Python<'_>) -> usize {
        // The lock's holder may wait for the interpreter.
        py.detach(|| self.core.lock().regions().len())
    }
}

/// For each page whether it was accessed since it was last asked, and what was
/// counted.
#[pyfunction]
pub fn scan_young<'py>(
    py: Python<'py>,
    mm: &Mm,
    start: u64,
    pages: u64,
    flush: bool,
) -> PyResult<(Bound<'py, PyArray1<bool>>, Bound<'py, PyDict>)> {
    let flush = if flush { Flush::EachPage } else { Flush::No };
    let (found, counted) = run(py, &mm.host, |cpu| {
        young::scan(cpu, &mm.core, start, pages, flush)
    })?;
    Ok((PyArray1::from_vec(py, found), counters(py, &counted)?))
}
