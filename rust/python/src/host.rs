//! The host, its memory cgroups and its counters.

use crate::error::to_python;
use crate::mm::Mm;
use crate::native::{counters, run};
use crate::vm::{Vm, VmParameters};
use numpy::{PyArray1, PyArray2, PyArrayMethods, ToPyArray};
use pyo3::exceptions::{PyKeyError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyDict;
use std::sync::Arc;
use std::time::Instant;
use youngbit_core::kvm::mmu::shadow::ShadowConfig;
use youngbit_core::kvm::tlb::TlbConfig;
use youngbit_core::lru_gen::{self, Asking, caps, debugfs};
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
            .map_err(to_python)?;
        Ok(Host { core })
    }

    /// Make a memory cgroup; returns its number and its path.
    fn create_memcg(&self, py: Python<'_>, name: &str) -> PyResult<(u16, String)> {
        let made = py.detach(|| self.core.create_memcg(name));
        let made = made.map_err(to_python)?;
        Ok((made.id, made.name.clone()))
    }

    /// Remove a memory cgroup.
    fn remove_memcg(&self, py: Python<'_>, memcg: u16) -> PyResult<()> {
        let removed = py.detach(|| {
            let memcg = Host::memcg_of(&self.core, memcg)?;
            self.core.remove_memcg(&memcg)
        });
        removed.map_err(to_python)
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
            core: mm.map_err(to_python)?,
            process: None,
        })
    }

    /// Make a virtual machine with memory, in a process: a new one of a memory
    /// cgroup, if none is given.
    #[allow(clippy::too_many_arguments)]
    fn create_vm(
        &self,
        py: Python<'_>,
        memcg: u16,
        mm: Option<&Mm>,
        nr_pages: u64,
        vcpus: u32,
        mmu: String,
        protocol: String,
        ad: bool,
        format: String,
        levels: u32,
        backing: u32,
        kind: &str,
        direct: bool,
        l1_ad: bool,
        aliases: u64,
        tlb_entries: u32,
        tlb_ways: u32,
    ) -> PyResult<Vm> {
        let parameters = VmParameters {
            nr_pages,
            vcpus,
            mmu,
            protocol,
            ad,
            format,
            levels,
            backing,
            kind: crate::mm::kind(kind)?,
            shadow: ShadowConfig {
                direct,
                l1_ad,
                aliases,
                ..ShadowConfig::default()
            },
            tlb: TlbConfig {
                entries: tlb_entries,
                ways: tlb_ways,
            },
        };
        Vm::create(py, &self.core, memcg, mm, &parameters)
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

    /// What aging asks secondary MMUs.
    #[getter]
    fn aging_asks(&self) -> &'static str {
        match self.core.lru_gen.asking() {
            Asking::None => "none",
            Asking::Accurate => "accurate",
            Asking::FastOnly => "fast_only",
        }
    }

    /// Choose what aging asks.
    fn set_aging_asks(&self, asks: &str) -> PyResult<()> {
        self.core.lru_gen.set_asking(match asks {
            "none" => Asking::None,
            "accurate" => Asking::Accurate,
            "fast_only" => Asking::FastOnly,
            other => {
                return Err(PyValueError::new_err(format!(
                    "aging_asks: {other:?} is none of 'none', 'accurate', 'fast_only'"
                )));
            }
        });
        Ok(())
    }

    /// Whether the aging walk asks once a PTE table.
    #[getter]
    fn aging_batched(&self) -> bool {
        self.core.lru_gen.batched()
    }

    /// Let the aging walk ask once a PTE table, or once a page.
    fn set_aging_batched(&self, batched: bool) {
        self.core.lru_gen.set_batched(batched);
    }

    /// The generations of a memory cgroup on a node, oldest first: number, age
    /// in ms, anonymous and file pages.
    fn generations(&self, memcg: u16, node: usize) -> PyResult<Vec<(u64, u64, u64, u64)>> {
        let memcg = Self::memcg_of(&self.core, memcg).map_err(to_python)?;
        let lruvec = memcg
            .lruvecs
            .get(node)
            .ok_or_else(|| to_python(Error::invalid(format!("the host has no node {node}"))))?;
        let all = lruvec.generations(self.core.clock.now_ns(), None);
        let rows = all
            .iter()
            .map(|g| (g.seq, g.age_ms, g.pages[0], g.pages[1]));
        Ok(rows.collect())
    }

    /// One aging pass: youngest generation before and after, seconds, counters.
    fn age<'py>(
        &self,
        py: Python<'py>,
        memcg: u16,
        node: usize,
        can_swap: bool,
        force_scan: bool,
    ) -> PyResult<(u64, u64, f64, Bound<'py, PyDict>)> {
        let (pass, _) = run(py, &self.core, |cpu| {
            let memcg = Self::memcg_of(&self.core, memcg)?;
            let pass = lru_gen::age(cpu, &memcg, node, can_swap, force_scan)?;
            Ok((pass, memcg.lruvecs[node].max_seq()))
        })?;
        let (pass, max_seq) = pass;
        let counted = counters(py, &pass.counters)?;
        Ok((pass.seq, max_seq, pass.elapsed.as_secs_f64(), counted))
    }

    /// Evict generations up to one: pages reclaimed, seconds, counters.
    fn evict<'py>(
        &self,
        py: Python<'py>,
        memcg: u16,
        node: usize,
        seq: u64,
        swappiness: Option<u32>,
        nr_to_reclaim: Option<u64>,
    ) -> PyResult<(u64, f64, Bound<'py, PyDict>)> {
        let start = Instant::now();
        let (reclaimed, counted) = run(py, &self.core, |cpu| {
            let memcg = Self::memcg_of(&self.core, memcg)?;
            debugfs::evict(cpu, &memcg, node, seq, swappiness, nr_to_reclaim)
        })?;
        let elapsed = start.elapsed().as_secs_f64();
        Ok((reclaimed, elapsed, counters(py, &counted)?))
    }

    /// What one of the text files of MGLRU reads as.
    fn read_file(&self, py: Python<'_>, name: &str) -> PyResult<String> {
        let show = match name {
            "enabled" => debugfs::show_enabled,
            "min_ttl_ms" => debugfs::show_min_ttl_ms,
            "lru_gen" => debugfs::show,
            "lru_gen_full" => debugfs::show_full,
            other => return Err(PyKeyError::new_err(other.to_owned())),
        };
        Ok(py.detach(|| show(&self.core)))
    }

    /// Write one of the text files of MGLRU.
    fn write_file(&self, py: Python<'_>, name: &str, text: &[u8]) -> PyResult<()> {
        if !["enabled", "min_ttl_ms", "lru_gen", "lru_gen_full"].contains(&name) {
            return Err(PyKeyError::new_err(name.to_owned()));
        }
        run(py, &self.core, |cpu| match name {
            "enabled" => debugfs::write_enabled(&self.core, text),
            "min_ttl_ms" => debugfs::write_min_ttl_ms(&self.core, text),
            "lru_gen" => debugfs::write(cpu, text),
            _ => Err(Error::new(Errno::EINVAL, "lru_gen_full is read only")),
        })?;
        Ok(())
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
