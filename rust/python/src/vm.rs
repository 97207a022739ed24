//! Virtual machines and runs of their vCPUs.

use crate::error::to_python;
use crate::mm::Mm;
use crate::native::{counters, run};
use crate::stream::{Description, streams};
use numpy::PyArray1;
use pyo3::prelude::*;
use pyo3::types::PyDict;
use std::sync::Arc;
use std::time::{Duration, Instant};
use youngbit_core::access::Stream;
use youngbit_core::access::stream::MAX_PAGES;
use youngbit_core::kvm::memslot::{MemoryRegion, Memslot};
use youngbit_core::kvm::mmu::shadow::{GUEST_TABLE_SLOT, ShadowConfig};
use youngbit_core::kvm::mmu::spte::SpteFormat;
use youngbit_core::kvm::protocol::Protocol;
use youngbit_core::kvm::tlb::TlbConfig;
use youngbit_core::kvm::vcpu::{RunOptions, RunStats};
use youngbit_core::kvm::vm::{self, MmuKind, VmConfig};
use youngbit_core::lru_gen;
use youngbit_core::lru_gen::kswapd::with_kswapd;
use youngbit_core::mm::{self, Kind, PAGE_SIZE, VmFlags, page_idle};
use youngbit_core::sync::thread::{Affinity, cpu_time};
use youngbit_core::trace::{Counter, CounterValues};
use youngbit_core::{Cpu, Error, Host, Result};

/// A virtual machine. When the last reference goes, it is destroyed, and a
/// process that was made for it ends with the last VM in it.
#[pyclass(frozen, module = "youngbit._core")]
pub struct Vm {
    host: Arc<Host>,
    core: Arc<vm::Vm>,
    /// Nobody's, if the process was made without a VM.
    process: Option<Arc<Process>>,
    address: u64,
    nr_pages: u64,
}

/// A process that was made for a VM, and ends with the last of its VMs.
pub struct Process {
    host: Arc<Host>,
    mm: Arc<mm::Mm>,
}

impl Drop for Process {
    fn drop(&mut self) {
        // The GIL is released: a notifier of the process may be Python's.
        Python::attach(|py| {
            py.detach(|| self.host.exit_mm(&Cpu::new(&self.host), &self.mm));
        });
    }
}

/// What Python's `Host.create_vm` has checked.
pub struct VmParameters {
    pub nr_pages: u64,
    pub vcpus: u32,
    pub mmu: String,
    pub protocol: String,
    pub ad: bool,
    pub format: String,
    pub levels: u32,
    /// Level of the host's pages: 1, 2 or 3.
    pub backing: u32,
    /// What its shadow MMU is to be, if it has one.
    pub shadow: ShadowConfig,
    /// Kind of the memory behind the guest's.
    pub kind: Kind,
    pub tlb: TlbConfig,
}

/// Pages of the page cache that back the guest.
fn cached_pages(parameters: &VmParameters) -> u64 {
    if parameters.kind == Kind::Anon {
        0
    } else {
        parameters.nr_pages
    }
}

fn config(parameters: &VmParameters) -> Result<VmConfig> {
    let unknown = |what: &str, name: &str| Error::invalid(format!("{what} {name:?} is unknown"));
    let mmu = match parameters.mmu.as_str() {
        "tdp" => MmuKind::Tdp,
        "shadow" => MmuKind::Shadow,
        "nested" => MmuKind::Nested,
        other => return Err(unknown("mmu", other)),
    };
    let mut format = match parameters.format.as_str() {
        "ept" => SpteFormat::EPT,
        "npt" => SpteFormat::NPT,
        other => return Err(unknown("format", other)),
    };
    format.ad_bits = parameters.ad;
    let config = VmConfig {
        protocol: Protocol::by_name(&parameters.protocol)
            .ok_or_else(|| unknown("protocol", &parameters.protocol))?,
        format,
        mmu,
        levels: parameters.levels,
        shadow: parameters.shadow,
        vcpus: parameters.vcpus,
        tlb: parameters.tlb,
        ..VmConfig::default()
    };
    config.check()?;
    Ok(config)
}

impl Vm {
    /// Map memory in a process, a new one if none is given, and make a VM that
    /// shows it to a guest.
    pub fn create(
        py: Python<'_>,
        host: &Arc<Host>,
        memcg: u16,
        given: Option<&Mm>,
        parameters: &VmParameters,
    ) -> PyResult<Vm> {
        let config = config(parameters).map_err(to_python)?;
        let (mm, process) = if let Some(given) = given {
            let lives = host.mms().iter().any(|mm| Arc::ptr_eq(mm, &given.core));
            if !lives {
                let what = format!("process {} has ended, or is another host's", given.core.id);
                return Err(to_python(Error::invalid(what)));
            }
            (Arc::clone(&given.core), given.process.clone())
        } else {
            let mm = host.create_mm(memcg).map_err(to_python)?;
            let process = Process {
                host: Arc::clone(host),
                mm: Arc::clone(&mm),
            };
            (mm, Some(Arc::new(process)))
        };
        let ((core, address), _) = run(py, host, |cpu| {
            let size = parameters.nr_pages * PAGE_SIZE;
            let mut mapped = None;
            let made = (|| {
                let flags = VmFlags {
                    thp: parameters.backing == 2,
                    hugetlb_order: if parameters.backing == 3 { 18 } else { 0 },
                    ..VmFlags::default()
                };
                let space = host.create_space(parameters.kind, cached_pages(parameters));
                let address = mm.mmap(None, size, &space, 0, flags)?;
                mapped = Some(address);
                let core = vm::Vm::create(cpu, &mm, config)?;
                core.set_memory_region(
                    cpu,
                    &MemoryRegion {
                        as_id: 0,
                        slot: 0,
                        flags: 0,
                        guest_phys_addr: 0,
                        memory_size: size,
                        userspace_addr: address,
                    },
                )?;
                if core.config.mmu == MmuKind::Nested {
                    // Its vCPUs run the guest's guest until told otherwise.
                    for vcpu in 0..parameters.vcpus {
                        core.set_guest_mode(cpu, vcpu, true)?;
                    }
                }
                Ok((core, address))
            })();
            if let (Err(_), Some(address)) = (&made, mapped) {
                mm.munmap(cpu, address, size)?;
            }
            made
        })?;
        Ok(Vm {
            host: Arc::clone(host),
            core,
            process,
            address,
            nr_pages: parameters.nr_pages,
        })
    }

    /// What each vCPU does: with the memory that the VM was made with, or, where
    /// a stream says so, with what memslots have beyond.
    fn streams(&self, cpu: &Cpu, given: &[Description], overlap: bool) -> Result<Vec<Stream>> {
        let end = self.slots(cpu).map(|slot| slot.end_gfn()).max();
        let reach = end.unwrap_or_default().clamp(self.nr_pages, MAX_PAGES);
        streams(given, self.nr_pages, reach, overlap)
    }

    /// Its memslots, but for the one that the guest's own page tables are in.
    fn slots(&self, cpu: &Cpu) -> impl Iterator<Item = Memslot> + use<> {
        let own = self.core.shadow.is_some();
        let all = self.core.memslots.all(cpu).into_iter();
        all.filter(move |slot| !(own && slot.id == GUEST_TABLE_SLOT))
    }

    /// Where in the process a range of guest pages is.
    fn range(&self, first: u64, pages: u64) -> (u64, u64) {
        let start = self.address + first * PAGE_SIZE;
        (start, start + pages * PAGE_SIZE)
    }
}

fn descriptions(given: &[Bound<'_, PyAny>]) -> PyResult<Vec<Description>> {
    given.iter().map(Description::new).collect()
}

fn seconds(stats: &RunStats) -> Vec<f64> {
    stats
        .vcpus
        .iter()
        .map(|vcpu| Duration::from_nanos(vcpu.wall_ns).as_secs_f64())
        .collect()
}

/// Number, flags, first guest address, size, host address.
type SlotRow = (u32, u32, u64, u64, u64);
type RunResult<'py> = (f64, Vec<f64>, Bound<'py, PyDict>);
type RunWhileAgingResult<'py> = (
    f64,
    Vec<f64>,
    Bound<'py, PyDict>,
    Vec<(f64, u64)>,
    Option<(f64, f64)>,
    Bound<'py, PyDict>,
);

#[pymethods]
impl Vm {
    /// The process whose memory the guest sees.
    #[getter]
    fn mm(&self) -> Mm {
        Mm {
            host: Arc::clone(&self.host),
            core: Arc::clone(&self.core.mm),
            process: self.process.clone(),
        }
    }

    /// Guest memory in pages.
    #[getter]
    fn nr_pages(&self) -> u64 {
        self.nr_pages
    }

    /// vCPUs.
    #[getter]
    fn nr_vcpus(&self) -> u32 {
        self.core.config.vcpus
    }

    /// Where in the process guest memory begins.
    #[getter]
    fn address(&self) -> u64 {
        self.address
    }

    /// First byte of guest memory and one past the last, as the guest counts.
    #[getter]
    fn guest_physical(&self) -> (u64, u64) {
        (0, self.nr_pages * PAGE_SIZE)
    }

    /// Create, change, move or delete a memslot.
    fn set_memory_region(
        &self,
        py: Python<'_>,
        slot: u32,
        flags: u32,
        guest_phys_addr: u64,
        memory_size: u64,
        userspace_addr: u64,
    ) -> PyResult<()> {
        let region = MemoryRegion {
            // As in the ioctl: the address space, then the number in it.
            as_id: (slot >> 16) as usize,
            slot: slot & 0xffff,
            flags,
            guest_phys_addr,
            memory_size,
            userspace_addr,
        };
        run(py, &self.host, |cpu| {
            if self.core.shadow.is_some() && region.slot == GUEST_TABLE_SLOT {
                return Err(Error::invalid(format!(
                    "memslot {GUEST_TABLE_SLOT}: the guest has its own page tables in it"
                )));
            }
            self.core.set_memory_region(cpu, &region)
        })?;
        Ok(())
    }

    /// Number, flags, first guest address, size and host address of each
    /// memslot, by guest address.
    fn memslots(&self, py: Python<'_>) -> PyResult<Vec<SlotRow>> {
        let (slots, _) = run(py, &self.host, |cpu| {
            Ok(self.slots(cpu).collect::<Vec<_>>())
        })?;
        let rows = slots.iter().map(|slot| {
            (
                (slot.as_id as u32) << 16 | slot.id,
                slot.flags,
                slot.base_gfn * PAGE_SIZE,
                slot.npages * PAGE_SIZE,
                slot.userspace_addr,
            )
        });
        Ok(rows.collect())
    }

    /// Run each vCPU on its stream; returns seconds, seconds of each vCPU,
    /// counters.
    fn run<'py>(
        &self,
        py: Python<'py>,
        given: Vec<Bound<'py, PyAny>>,
        live: bool,
        overlap: bool,
    ) -> PyResult<RunResult<'py>> {
        let given = descriptions(&given)?;
        let ((elapsed, stats), mut counted) = run(py, &self.host, |cpu| {
            let mut accesses = self.streams(cpu, &given, overlap)?;
            let start = Instant::now();
            let options = RunOptions::default();
            let stats = if live {
                // A node short of memory is balanced beside the guests.
                with_kswapd(&self.host, &cpu.seed(), || {
                    self.core.run_live(cpu, &mut accesses, &options)
                })??
            } else {
                self.core.run_inline(cpu, &mut accesses, &options)?
            };
            Ok((start.elapsed().as_secs_f64(), stats))
        })?;
        if live {
            for vcpu in &stats.vcpus {
                counted.merge(&vcpu.counters);
            }
        }
        Ok((elapsed, seconds(&stats), counters(py, &counted)?))
    }

    /// Run each vCPU on its stream in a thread of its own, and age in a loop
    /// until all are done; returns seconds, seconds of each vCPU, counters; of
    /// each pass the seconds and the pages it asked about; processor seconds of
    /// all vCPUs and of the aging, where the system says; counters of the aging.
    // Python's keywords name them; see the stub.
    #[allow(clippy::too_many_arguments)]
    fn run_while_aging<'py>(
        &self,
        py: Python<'py>,
        given: Vec<Bound<'py, PyAny>>,
        overlap: bool,
        memcg: u16,
        node: usize,
        can_swap: bool,
        force_scan: bool,
        apart: bool,
    ) -> PyResult<RunWhileAgingResult<'py>> {
        let given = descriptions(&given)?;
        let ((elapsed, stats, passes, processor, passed), aged) = run(py, &self.host, |cpu| {
            let mut accesses = self.streams(cpu, &given, overlap)?;
            let memcg = crate::host::Host::memcg_of(&self.host, memcg)?;
            let mut passes = Vec::new();
            let mut passed = CounterValues::default();
            let affinity = Affinity::current();
            let start = Instant::now();
            // Threads take time to start. Passes over a guest that does not
            // run yet are not counted: there would be thousands.
            let before = self.core.mm.memcg.usage();
            let options = RunOptions {
                lru_batching: true,
                apart: apart.then_some(&affinity),
                ..RunOptions::default()
            };
            let meanwhile = |cpu: &Cpu| {
                let pass = lru_gen::age(cpu, &memcg, node, can_swap, force_scan)?;
                if !passes.is_empty() || self.core.mm.memcg.usage() != before {
                    let asked = pass.counters.get(Counter::NotifierClearYoungFast)
                        + pass.counters.get(Counter::NotifierClearYoungSlow);
                    passes.push((pass.elapsed.as_secs_f64(), asked));
                    passed.merge(&pass.counters);
                }
                Ok(())
            };
            let processor = cpu_time();
            let stats = with_kswapd(&self.host, &cpu.seed(), || {
                self.core.run_with(cpu, &mut accesses, &options, meanwhile)
            })??;
            let elapsed = start.elapsed().as_secs_f64();
            let processor = processor.zip(cpu_time()).map(|(before, after)| {
                let aging = after.0 - before.0;
                let all = after.1 - before.1;
                let seconds = |ns| Duration::from_nanos(ns).as_secs_f64();
                (seconds(all.saturating_sub(aging)), seconds(aging))
            });
            Ok((elapsed, stats, passes, processor, passed))
        })?;
        let mut counted = aged;
        for vcpu in &stats.vcpus {
            counted.merge(&vcpu.counters);
        }
        Ok((
            elapsed,
            seconds(&stats),
            counters(py, &counted)?,
            passes,
            processor,
            counters(py, &passed)?,
        ))
    }

    /// Put every vCPU of a nested VM into its guest's guest, or back.
    fn set_guest_mode(&self, py: Python<'_>, l2: bool) -> PyResult<()> {
        run(py, &self.host, |cpu| {
            (0..self.core.config.vcpus).try_for_each(|vcpu| self.core.set_guest_mode(cpu, vcpu, l2))
        })?;
        Ok(())
    }

    /// Mark pages idle; returns how many were not and now are, how many were
    /// still, and how many are not there.
    fn mark_idle(&self, py: Python<'_>, first: u64, pages: u64) -> PyResult<(u64, u64, u64)> {
        let ((still, marked), _) = run(py, &self.host, |cpu| {
            let (start, end) = self.range(first, pages);
            let still = page_idle::test_range(cpu, &self.core.mm, start, end)?;
            let marked = page_idle::mark_range(cpu, &self.core.mm, start, end)?;
            Ok((still, marked))
        })?;
        let newly = marked.idle.saturating_sub(still.idle);
        Ok((newly, still.idle, pages.saturating_sub(marked.present)))
    }

    /// For each page whether it is idle.
    fn test_idle<'py>(
        &self,
        py: Python<'py>,
        first: u64,
        pages: u64,
    ) -> PyResult<Bound<'py, PyArray1<bool>>> {
        let (found, _) = run(py, &self.host, |cpu| {
            let mm = &self.core.mm;
            let (start, _) = self.range(first, pages);
            let mut idle = vec![false; pages as usize];
            for (page, idle) in (0..pages).zip(&mut idle) {
                let address = start + page * PAGE_SIZE;
                let one = page_idle::test_range(cpu, mm, address, address + PAGE_SIZE)?;
                *idle = one.idle != 0;
                if page % 512 == 0 && cpu.poll() {
                    break;
                }
            }
            Ok(idle)
        })?;
        Ok(PyArray1::from_vec(py, found))
    }

    /// For each guest page the number of its generation, or -1.
    fn page_generations<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray1<i64>>> {
        let (found, _) = run(py, &self.host, |cpu| {
            let mm = &self.core.mm;
            Ok(lru_gen::page_generations(
                cpu,
                mm,
                self.address,
                self.nr_pages,
            ))
        })?;
        Ok(PyArray1::from_vec(py, found))
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        // Its process goes after it, as when the program that made it exits.
        // The GIL is released: a notifier of the process may be Python's.
        Python::attach(|py| {
            py.detach(|| {
                let _ = self.core.destroy(&Cpu::new(&self.host));
            });
        });
    }
}
