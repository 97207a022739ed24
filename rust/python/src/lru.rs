//! The text files of memory cgroups, histograms as text, and what checks a
//! host.

use crate::error::to_python;
use crate::host::Host;
use crate::native::{counters, detached, run};
use crate::stream::{Description, streams};
use numpy::{IntoPyArray, PyArray1, PyReadonlyArray1};
use pyo3::exceptions::{PyAssertionError, PyOSError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyDict;
use youngbit_core::access::oracle::{self, Choice, Ticks, When};
use youngbit_core::access::reuse;
use youngbit_core::lru_gen::{self, histogram};
use youngbit_core::mm::{conserve, memcg_files};
use youngbit_core::{Errno, Error};

/// What a file of a memory cgroup reads as.
#[pyfunction]
pub fn memcg_read(py: Python<'_>, host: &Host, memcg: u16, file: &str) -> PyResult<String> {
    py.detach(|| memcg_files::read(&*Host::memcg_of(&host.core, memcg)?, file))
        .map_err(to_python)
}

/// Write a file of a memory cgroup; returns what was counted meanwhile.
#[pyfunction]
pub fn memcg_write<'py>(
    py: Python<'py>,
    host: &Host,
    memcg: u16,
    file: &str,
    text: &[u8],
) -> PyResult<Bound<'py, PyDict>> {
    let value = std::str::from_utf8(text).map_err(|_| {
        let what = format!("{file}: what is written is not text");
        to_python(Error::invalid(what))
    })?;
    let ((), counted) = run(py, &host.core, |cpu| {
        let memcg = Host::memcg_of(&host.core, memcg)?;
        memcg_files::write(cpu, &memcg, file, value)
    })?;
    counters(py, &counted)
}

/// What a file below `/proc` reads as.
#[pyfunction]
pub fn proc_read(py: Python<'_>, host: &Host, file: &str) -> PyResult<String> {
    match file {
        "vmstat" => Ok(py.detach(|| memcg_files::vmstat(&host.core))),
        "sys/vm/swappiness" => Ok(format!("{}\n", host.core.lru_gen.swappiness())),
        _ => Err(no_proc_file(file)),
    }
}

/// Write a file below `/proc`.
#[pyfunction]
pub fn proc_write(host: &Host, file: &str, text: &[u8]) -> PyResult<()> {
    match file {
        "vmstat" => Err(to_python(Error::invalid("vmstat is only read"))),
        "sys/vm/swappiness" => {
            let value = youngbit_core::text::kstrtouint(text).filter(|&n| n <= 200);
            let value = value.ok_or_else(|| {
                let found = youngbit_core::text::quoted(text);
                let what = format!("swappiness {found}: expected 0 to 200");
                to_python(Error::invalid(what))
            })?;
            host.core.lru_gen.set_swappiness(value);
            Ok(())
        }
        _ => Err(no_proc_file(file)),
    }
}

fn no_proc_file(file: &str) -> PyErr {
    let what = format!("/proc/{file}: expected vmstat or sys/vm/swappiness");
    PyOSError::new_err((Errno::ENOENT as i32, what))
}

type Lettered = (u64, char);
/// Number, age, anonymous and file pages, whether each type is retired, tiers,
/// walk.
type Row = (
    u64,
    u64,
    u64,
    u64,
    bool,
    bool,
    Option<(Vec<Vec<Lettered>>, Vec<Lettered>)>,
);
/// Number and path of a memory cgroup, and per node its generations.
type Histogram = (u16, String, Vec<(usize, Vec<Row>)>);

fn lettered(row: &[(u64, u8)]) -> Vec<Lettered> {
    row.iter().map(|&(n, c)| (n, char::from(c))).collect()
}

fn row(generation: histogram::Generation) -> Row {
    let full = generation.full.map(|full| {
        let tiers = full.tiers.iter().map(|tier| lettered(tier)).collect();
        (tiers, lettered(&full.walk))
    });
    let ([anon, file], [anon_retired, file_retired]) = (generation.pages, generation.retired);
    (
        generation.seq,
        generation.age_ms,
        anon,
        file,
        anon_retired,
        file_retired,
        full,
    )
}

/// Read what a kernel's `lru_gen` or `lru_gen_full` printed.
#[pyfunction]
pub fn parse_lru_gen(py: Python<'_>, text: &[u8]) -> PyResult<Vec<Histogram>> {
    let found = py.detach(|| histogram::parse(text)).map_err(to_python)?;
    let memcgs = found.into_iter().map(|memcg| {
        let nodes = memcg.nodes.into_iter();
        let nodes = nodes.map(|node| (node.node, node.generations.into_iter().map(row).collect()));
        (memcg.id, memcg.path, nodes.collect())
    });
    Ok(memcgs.collect())
}

fn unlettered(row: &[Lettered]) -> PyResult<Vec<(u64, u8)>> {
    row.iter()
        .map(|&(n, letter)| match u8::try_from(letter) {
            Ok(byte) if byte.is_ascii_alphabetic() => Ok((n, byte)),
            _ => Err(PyValueError::new_err(format!(
                "{letter:?} is not a letter of lru_gen_full"
            ))),
        })
        .collect()
}

fn generation(row: Row) -> PyResult<histogram::Generation> {
    let (seq, age_ms, anon, file, anon_retired, file_retired, full) = row;
    let full = full.map(|(tiers, walk)| {
        let tiers = tiers.iter().map(|tier| {
            let tier = unlettered(tier)?;
            <[_; 6]>::try_from(tier)
                .map_err(|tier| PyValueError::new_err(format!("a tier of {} numbers", tier.len())))
        });
        Ok::<_, PyErr>(histogram::Full {
            tiers: tiers.collect::<PyResult<_>>()?,
            walk: unlettered(&walk)?,
        })
    });
    Ok(histogram::Generation {
        seq,
        age_ms,
        pages: [anon, file],
        retired: [anon_retired, file_retired],
        full: full.transpose()?,
    })
}

/// Histograms as the kernel prints them.
#[pyfunction]
pub fn format_lru_gen(histograms: Vec<Histogram>) -> PyResult<String> {
    let memcgs = histograms.into_iter().map(|(id, path, nodes)| {
        let nodes = nodes.into_iter().map(|(node, rows)| {
            let generations = rows.into_iter().map(generation);
            Ok(histogram::NodeHistogram {
                node,
                generations: generations.collect::<PyResult<_>>()?,
            })
        });
        Ok(histogram::MemcgHistogram {
            id,
            path,
            nodes: nodes.collect::<PyResult<_>>()?,
        })
    });
    Ok(histogram::print(&memcgs.collect::<PyResult<Vec<_>>>()?))
}

/// The accesses of a stream over a guest of its own, as numbers: pages, and
/// whether each is a write.
#[pyfunction]
#[allow(clippy::type_complexity)]
pub fn stream_accesses<'py>(
    py: Python<'py>,
    stream: &Bound<'py, PyAny>,
    nr_pages: u64,
) -> PyResult<(Bound<'py, PyArray1<u32>>, Bound<'py, PyArray1<bool>>)> {
    const BATCH: usize = 1 << 14;
    if nr_pages > oracle::MAX_PAGE {
        let what = format!("{nr_pages} pages: expected at most 2**32");
        return Err(PyValueError::new_err(what));
    }
    let description = Description::new(stream)?;
    let (pages, writes) = detached(py, |signals| {
        let mut made = streams(&[description], nr_pages, nr_pages, true).map_err(to_python)?;
        let mut stream = made.remove(0);
        let (mut pages, mut writes) = (Vec::new(), Vec::new());
        let mut buffer = Vec::new();
        loop {
            stream.fill(&mut buffer, BATCH);
            if buffer.is_empty() {
                return Ok((pages, writes));
            }
            pages.extend(buffer.iter().map(|access| access.page() as u32));
            writes.extend(buffer.iter().map(|access| access.is_write()));
            signals.check()?;
        }
    })?;
    Ok((
        PyArray1::from_vec(py, pages),
        PyArray1::from_vec(py, writes),
    ))
}

/// What reclaim that knows the future, or the whole past, would do: per tick
/// pages evicted, of them those used soon after and just before, and refaults.
#[pyfunction]
#[allow(clippy::too_many_arguments)]
pub fn run_oracle(
    py: Python<'_>,
    pages: PyReadonlyArray1<'_, u32>,
    capacity: u64,
    first: u64,
    every: u64,
    window: u64,
    limit: Option<u64>,
    least_recent: bool,
) -> PyResult<Vec<(u64, u64, u64, u64)>> {
    let pages = pages.as_slice()?;
    let when = match limit {
        None => When::OnDemand,
        Some(limit) => When::EachTick { limit },
    };
    let choice = if least_recent {
        Choice::LeastRecent
    } else {
        Choice::UsedLast
    };
    let ticks = Ticks { first, every };
    let ticks = py.detach(|| oracle::replay(pages, capacity, ticks, window, when, choice));
    let rows = ticks
        .iter()
        .map(|t| (t.evicted, t.hot, t.recent, t.refaults));
    Ok(rows.collect())
}

/// For each access how many different other pages were used since its page's
/// last use; -1 for a first use.
#[pyfunction]
pub fn reuse_distances<'py>(
    py: Python<'py>,
    pages: PyReadonlyArray1<'py, u32>,
) -> PyResult<Bound<'py, PyArray1<i64>>> {
    let pages = pages.as_slice()?;
    let found = py.detach(|| reuse::distances(pages));
    Ok(found.into_pyarray(py))
}

/// Slots of the swap device, and how many of them are free.
#[pyfunction]
pub fn swap(host: &Host) -> (u64, u64) {
    (host.core.swap.nr_slots(), host.core.swap.nr_free())
}

/// Let the next writes to swap fail.
#[pyfunction]
pub fn fail_swap_writes(host: &Host, writes: u32) {
    host.core.swap.fail_writes(writes);
}

/// Let the next writes to files fail.
#[pyfunction]
pub fn fail_file_writes(host: &Host, writes: u32) {
    host.core.spaces.fail_writes(writes);
}

/// Check that nothing of a quiet host is lost or twice there.
#[pyfunction]
pub fn check(py: Python<'_>, host: &Host) -> PyResult<()> {
    let checked = py.detach(|| {
        lru_gen::check::check(&host.core)?;
        conserve::check(&host.core)
    });
    checked.map_err(PyAssertionError::new_err)
}
