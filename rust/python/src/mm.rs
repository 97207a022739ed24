//! Processes, their memory, and who else maps it.

use crate::native::run;
use crate::notifier::PyNotifier;
use crate::vm::Process;
use numpy::PyArray1;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use std::sync::Arc;
use youngbit_core::lru_gen;
use youngbit_core::mm::pagetable::TASK_SIZE;
use youngbit_core::mm::{self, AddressSpace, Kind, PAGE_SIZE, Pte, VmFlags, filemap};
use youngbit_core::{Cpu, Errno, Error, Host};

/// A process.
#[pyclass(frozen, module = "youngbit._core")]
pub struct Mm {
    pub host: Arc<Host>,
    pub core: Arc<mm::Mm>,
    /// What ends it, if it was made for a VM.
    pub process: Option<Arc<Process>>,
}

fn checked_range(start: u64, end: u64) -> youngbit_core::Result<()> {
    if start < end {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "the range [{start:#x}, {end:#x}) is empty"
    )))
}

/// A kind of memory by its name.
pub fn kind(name: &str) -> PyResult<Kind> {
    match name {
        "anon" => Ok(Kind::Anon),
        "shmem" => Ok(Kind::Shmem),
        "file" => Ok(Kind::File),
        other => Err(PyValueError::new_err(format!(
            "kind: {other:?} is none of 'anon', 'shmem', 'file'"
        ))),
    }
}

impl Mm {
    /// The file or shmem mapped at an address, the page of it that is there,
    /// and where the mapping ends.
    fn file_at(&self, address: u64) -> youngbit_core::Result<(Arc<AddressSpace>, u64, u64)> {
        let vmas = self.core.mmap_lock.read();
        let vma = vmas
            .find(address)
            .filter(|vma| vma.mapping.kind != Kind::Anon);
        let vma = vma.ok_or_else(|| {
            Error::new(
                Errno::EBADF,
                format!("no file or shared memory is mapped at {address:#x}"),
            )
        })?;
        Ok((Arc::clone(&vma.mapping), vma.page_index(address), vma.end))
    }

    /// Call `act(space, index)` for every page of a range of files.
    fn each_page(
        &self,
        cpu: &Cpu,
        start: u64,
        end: u64,
        mut act: impl FnMut(&Arc<AddressSpace>, u64) -> youngbit_core::Result<()>,
    ) -> youngbit_core::Result<()> {
        checked_range(start, end)?;
        let mut address = start & !(PAGE_SIZE - 1);
        while address < end {
            let (space, first, last) = self.file_at(address)?;
            let pages = (last.min(end) - address).div_ceil(PAGE_SIZE);
            for index in first..first + pages {
                act(&space, index)?;
                if cpu.poll() {
                    return Ok(());
                }
            }
            address += pages * PAGE_SIZE;
        }
        Ok(())
    }
}

#[pymethods]
impl Mm {
    /// Its number on the host.
    #[getter]
    fn id(&self) -> u32 {
        self.core.id
    }

    /// Number of the memory cgroup it is charged to.
    #[getter]
    fn memcg(&self) -> u16 {
        self.core.memcg.id
    }

    /// That memory cgroup's path.
    #[getter]
    fn memcg_name(&self) -> &str {
        &self.core.memcg.name
    }

    /// Map fresh memory of a kind; returns its address.
    #[allow(clippy::fn_params_excessive_bools, clippy::too_many_arguments)]
    #[pyo3(signature = (length, kind, address, thp, hugetlb_order, locked, read_only, no_recency))]
    fn mmap(
        &self,
        py: Python<'_>,
        length: u64,
        kind: &str,
        address: Option<u64>,
        thp: bool,
        hugetlb_order: u32,
        locked: bool,
        read_only: bool,
        no_recency: bool,
    ) -> PyResult<u64> {
        let kind = self::kind(kind)?;
        let pages = if kind == Kind::Anon {
            0
        } else {
            length / PAGE_SIZE
        };
        let flags = VmFlags {
            thp,
            hugetlb_order,
            locked,
            read_only,
            no_recency,
            ..VmFlags::default()
        };
        let (address, _) = run(py, &self.host, |_| {
            // The mapping keeps the space; refused, it goes with this.
            let limit = self.host.memory.nr_pages().max(1) << 8;
            if pages > limit {
                return Err(Error::new(
                    Errno::ENOMEM,
                    format!(
                        "a file of {pages} pages on a host of {}",
                        self.host.memory.nr_pages()
                    ),
                ));
            }
            let space = self.host.create_space(kind, pages);
            self.core.mmap(address, length, &space, 0, flags)
        })?;
        Ok(address)
    }

    /// Unmap a range.
    fn munmap(&self, py: Python<'_>, start: u64, length: u64) -> PyResult<()> {
        run(py, &self.host, |cpu| self.core.munmap(cpu, start, length))?;
        Ok(())
    }

    /// Access every page of a range once, in order, as the process itself.
    fn touch(&self, py: Python<'_>, start: u64, end: u64, write: bool) -> PyResult<()> {
        run(py, &self.host, |cpu| {
            checked_range(start, end)?;
            let mut address = start;
            while address < end {
                self.core.touch(cpu, address, write, None)?;
                if cpu.poll() {
                    break;
                }
                address = (address & !(PAGE_SIZE - 1)).saturating_add(PAGE_SIZE);
            }
            Ok(())
        })?;
        Ok(())
    }

    /// Read the file pages mapped in a range by descriptor; a byte a page.
    fn read_pages<'py>(
        &self,
        py: Python<'py>,
        start: u64,
        end: u64,
    ) -> PyResult<Bound<'py, PyBytes>> {
        let (bytes, _) = run(py, &self.host, |cpu| {
            let mut bytes = Vec::new();
            self.each_page(cpu, start, end, |space, index| {
                bytes.push(filemap::read(cpu, &self.core.memcg, space, index)?);
                Ok(())
            })?;
            Ok(bytes)
        })?;
        Ok(PyBytes::new(py, &bytes))
    }

    /// Write the file pages mapped in a range by descriptor, each full of a
    /// byte.
    fn write_pages(&self, py: Python<'_>, start: u64, end: u64, byte: u8) -> PyResult<()> {
        run(py, &self.host, |cpu| {
            self.each_page(cpu, start, end, |space, index| {
                filemap::write(cpu, &self.core.memcg, space, index, byte)
            })
        })?;
        Ok(())
    }

    /// Write back the file mapped at an address; returns the pages written.
    fn fsync(&self, py: Python<'_>, address: u64) -> PyResult<u64> {
        let (written, _) = run(py, &self.host, |cpu| {
            filemap::fsync(cpu, &self.file_at(address)?.0)
        })?;
        Ok(written)
    }

    /// Pages present in a range, and how many of them have the accessed bit
    /// of the process's own page tables set.
    fn resident(&self, py: Python<'_>, start: u64, end: u64) -> PyResult<(u64, u64)> {
        let (found, _) = run(py, &self.host, |cpu| {
            checked_range(start, end)?;
            let _rcu = cpu.rcu.lock();
            let (mut present, mut young) = (0, 0);
            self.core.for_each_leaf(start, end, |_, at, pte: Pte| {
                let pages = 1u64 << (9 * (at.level - 1));
                present += pages;
                young += if pte.is_young() { pages } else { 0 };
            });
            Ok((present, young))
        })?;
        Ok(found)
    }

    /// For each page of a range the number of its generation, or -1.
    fn page_generations<'py>(
        &self,
        py: Python<'py>,
        start: u64,
        pages: u64,
    ) -> PyResult<Bound<'py, PyArray1<i64>>> {
        let (found, _) = run(py, &self.host, |cpu| {
            let end = pages
                .checked_mul(PAGE_SIZE)
                .and_then(|len| start.checked_add(len));
            if end.is_none_or(|end| end > TASK_SIZE) || !start.is_multiple_of(PAGE_SIZE) {
                return Err(Error::invalid(format!(
                    "{pages} pages at {start:#x}: expected whole pages below {TASK_SIZE:#x}"
                )));
            }
            Ok(lru_gen::page_generations(cpu, &self.core, start, pages))
        })?;
        Ok(PyArray1::from_vec(py, found))
    }

    /// Ask all notifiers, or only the fast ones, and clear.
    fn clear_young(&self, py: Python<'_>, start: u64, end: u64, fast_only: bool) -> PyResult<bool> {
        let (young, _) = run(py, &self.host, |cpu| {
            checked_range(start, end)?;
            Ok(self.core.notifiers.clear_young(cpu, start, end, fast_only))
        })?;
        Ok(young)
    }

    /// Ask all notifiers, clear, and flush.
    fn clear_flush_young(&self, py: Python<'_>, start: u64, end: u64) -> PyResult<bool> {
        let (young, _) = run(py, &self.host, |cpu| {
            checked_range(start, end)?;
            Ok(self.core.notifiers.clear_flush_young(cpu, start, end))
        })?;
        Ok(young)
    }

    /// Ask notifiers until one says young.
    fn test_young(&self, py: Python<'_>, address: u64, fast_only: bool) -> PyResult<bool> {
        let (young, _) = run(py, &self.host, |cpu| {
            Ok(self.core.notifiers.test_young(cpu, address, fast_only))
        })?;
        Ok(young)
    }

    /// Whether any subscriber is fast.
    fn has_fast_young_notifiers(&self) -> bool {
        self.core.notifiers.has_fast_young_notifiers()
    }

    /// Subscribe a Python notifier.
    fn register(&self, py: Python<'_>, notifier: &Bound<'_, PyAny>) -> PyResult<Registration> {
        let fast = notifier.getattr("has_fast_aging")?.is_truthy()?;
        let made = Arc::new(PyNotifier::new(notifier)?);
        let (core, _) = run(py, &self.host, |cpu| {
            let subscription = self.core.register_notifier(cpu, made);
            subscription.set_fast_aging(&self.core.notifiers, fast);
            Ok(subscription)
        })?;
        Ok(Registration {
            host: Arc::clone(&self.host),
            mm: Arc::clone(&self.core),
            core,
        })
    }
}

/// A Python notifier's subscription to an mm.
#[pyclass(frozen, module = "youngbit._core")]
pub struct Registration {
    host: Arc<Host>,
    mm: Arc<mm::Mm>,
    core: Arc<mm::Subscription>,
}

#[pymethods]
impl Registration {
    /// End it. No callback runs after this returned.
    fn unregister(&self, py: Python<'_>) -> PyResult<()> {
        run(py, &self.host, |cpu| {
            self.mm.unregister_notifier(cpu, &self.core)
        })?;
        Ok(())
    }

    /// Whether it takes part in `fast_only` calls.
    #[getter]
    fn has_fast_aging(&self) -> bool {
        self.core.has_fast_aging()
    }
}
