//! The host, its memory cgroups and its counters.

use crate::mm::Mm;
use crate::native::{counters, run};
use numpy::{PyArray1, PyArray2, PyArrayMethods, ToPyArray};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyDict;
use std::sync::Arc;
use youngbit_core::lru_gen::caps;
use youngbit_core::mm::Memcg;
use youngbit_core::trace::Event;
use youngbit_core::{Errno, Error, HostConfig, Result};

/// One machine.
#[pyclass(frozen, module = "youngbit._core")]
pub struct Host {
    pub core: Arc<youngbit_core::Host>,
}

impl Host {
    /// A memory cgroup by number.
    pub fn memcg_of(core: &youngbit_core::Host, id: u16) -> Result<Arc<Memcg>> {
        core.memcg(id)
            .ok_or_else(|| Error::new(Errno::ENOENT, format!("no memory cgroup has number {id}")))
    }
}

#[pymethods]
impl Host {
    /// A machine of so many pages on each node.
    #[new]
    fn new(
        py: Python<'_>,
        nodes: Vec<u64>,
        swap_pages: u64,
        virtual_clock: bool,
    ) -> PyResult<Self> {
        let config = HostConfig {
            nodes,
            swap_pages,
            virtual_clock,
        };
        let core = py
            .detach(|| youngbit_core::Host::new(&config))
            .map_err(crate::error::to_python)?;
        Ok(Host { core })
    }

    /// Make a memory cgroup; returns its number.
    fn create_memcg(&self, py: Python<'_>, name: &str) -> PyResult<u16> {
        let made = py.detach(|| self.core.create_memcg(name));
        Ok(made.map_err(crate::error::to_python)?.id)
    }

    /// Number, name and pages charged of every memory cgroup.
    fn memcgs(&self) -> Vec<(u16, String, u64)> {
        let all = self.core.memcgs();
        all.iter()
            .map(|memcg| (memcg.id, memcg.name.clone(), memcg.usage()))
            .collect()
    }

    /// Make a process in a memory cgroup.
    fn create_mm(&self, memcg: u16) -> PyResult<Mm> {
        let mm = self.core.create_mm(memcg);
        Ok(Mm {
            host: Arc::clone(&self.core),
            core: mm.map_err(crate::error::to_python)?,
        })
    }

    /// End a process.
    fn exit_mm(&self, py: Python<'_>, mm: &Mm) -> PyResult<()> {
        run(py, &self.core, |cpu| {
            self.core.exit_mm(cpu, &mm.core);
            Ok(())
        })?;
        Ok(())
    }

    /// Pages of each node, and how many of them are free.
    fn nodes(&self) -> Vec<(u64, u64)> {
        let memory = &self.core.memory;
        (0..memory.nr_nodes())
            .map(|node| {
                let (start, end) = memory.node_span(node);
                (u64::from(end - start), memory.nr_free(node))
            })
            .collect()
    }

    /// Sums over all finished calls.
    fn counters<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        counters(py, &self.core.totals.snapshot())
    }

    /// Nanoseconds on the host's clock.
    fn now_ns(&self) -> u64 {
        self.core.clock.now_ns()
    }

    /// Let virtual time pass.
    fn advance_ns(&self, ns: u64) {
        self.core.clock.advance_ns(ns);
    }

    /// Capabilities of the multi-gen LRU that are on.
    #[getter]
    fn capabilities(&self) -> u32 {
        self.core.lru_gen.caps()
    }

    /// Switch capabilities; unknown bits are ignored.
    fn set_capabilities(&self, mask: u64) {
        self.core
            .lru_gen
            .set_caps((mask & u64::from(caps::ALL)) as u32);
    }

    /// Switch tracepoints on by name, and all others off.
    fn set_tracepoints(&self, names: Vec<String>) -> PyResult<()> {
        let mut mask = 0;
        for name in names {
            let event = Event::ALL.iter().find(|event| event.name() == name);
            let event = event.ok_or_else(|| {
                let known: Vec<_> = Event::ALL.iter().map(|event| event.name()).collect();
                PyValueError::new_err(format!(
                    "tracepoint {name:?} is none of {}",
                    known.join(", ")
                ))
            })?;
            mask |= *event as u32;
        }
        self.core.set_trace_mask(mask);
        Ok(())
    }

    /// Names of the tracepoints that are on.
    fn tracepoints(&self) -> Vec<&'static str> {
        let mask = self.core.trace_mask();
        let on = Event::ALL.iter().filter(|event| mask & **event as u32 != 0);
        on.map(|event| event.name()).collect()
    }

    /// Take what was traced: per event its argument names, times in ns, and a
    /// row of arguments for each record.
    fn drain_trace<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let records = py.detach(|| self.core.drain_trace());
        let dict = PyDict::new(py);
        for event in Event::ALL {
            let mine: Vec<_> = records.iter().filter(|r| r.event == *event).collect();
            if mine.is_empty() {
                continue;
            }
            let names = event.arg_names();
            let times: Vec<u64> = mine.iter().map(|record| record.time_ns).collect();
            let rows: Vec<u64> = mine
                .iter()
                .flat_map(|record| &record.args[..names.len()])
                .copied()
                .collect();
            let rows: Bound<'py, PyArray2<u64>> =
                PyArray1::from_vec(py, rows).reshape([mine.len(), names.len()])?;
            dict.set_item(event.name(), (names.to_vec(), times.to_pyarray(py), rows))?;
        }
        Ok(dict)
    }
}
