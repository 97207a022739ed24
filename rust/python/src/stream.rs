//! Descriptions of guest accesses, from Python's dataclasses to the core's.

use numpy::{PyArray1, PyArrayMethods};
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use std::sync::Arc;
use youngbit_core::access::{Partition, Pattern, Phase, Stream, StreamConfig, partition};
use youngbit_core::{Error, Result};

/// A share of the footprint, as Python gives it.
struct PyPhase {
    accesses: u64,
    start: f64,
    fraction: f64,
    probability: f64,
}

enum Kind {
    Sequential {
        passes: u64,
    },
    Strided {
        stride: u64,
        offset: u64,
        passes: u64,
    },
    Uniform {
        accesses: u64,
    },
    Zipf {
        exponent: f64,
        accesses: u64,
        shuffle: bool,
    },
    HotCold {
        phases: Vec<PyPhase>,
    },
    Recorded {
        pages: Arc<[u64]>,
        writes: Arc<[bool]>,
    },
}

/// A `youngbit.access.Stream`.
pub struct Description {
    kind: Kind,
    write: f64,
    seed: u64,
    region: Option<(u64, u64)>,
}

impl Description {
    /// Read the dataclass.
    pub fn new(object: &Bound<'_, PyAny>) -> PyResult<Self> {
        let get = |name: &str| object.getattr(name);
        let kind: String = get("kind")?.extract()?;
        let kind = match kind.as_str() {
            "sequential" => Kind::Sequential {
                passes: get("passes")?.extract()?,
            },
            "strided" => Kind::Strided {
                stride: get("stride")?.extract()?,
                offset: get("offset")?.extract()?,
                passes: get("passes")?.extract()?,
            },
            "uniform" => Kind::Uniform {
                accesses: get("accesses")?.extract()?,
            },
            "zipf" => Kind::Zipf {
                exponent: get("exponent")?.extract()?,
                accesses: get("accesses")?.extract()?,
                shuffle: get("shuffle")?.extract()?,
            },
            "hot_cold" => {
                let mut phases = Vec::new();
                for phase in get("phases")?.try_iter()? {
                    let phase = phase?;
                    phases.push(PyPhase {
                        accesses: phase.getattr("accesses")?.extract()?,
                        start: phase.getattr("start")?.extract()?,
                        fraction: phase.getattr("fraction")?.extract()?,
                        probability: phase.getattr("probability")?.extract()?,
                    });
                }
                Kind::HotCold { phases }
            }
            "recorded" => {
                let pages = get("pages")?.cast_into::<PyArray1<u32>>()?.readonly();
                let writes = get("writes")?.cast_into::<PyArray1<bool>>()?.readonly();
                return Ok(Description {
                    kind: Kind::Recorded {
                        pages: pages.as_slice()?.iter().copied().map(u64::from).collect(),
                        writes: Arc::from(writes.as_slice()?),
                    },
                    write: 0.0,
                    seed: 0,
                    region: None,
                });
            }
            other => {
                let error = format!("no stream is of kind {other:?}");
                return Err(PyTypeError::new_err(error));
            }
        };
        Ok(Description {
            kind,
            write: get("write")?.extract()?,
            seed: get("seed")?.extract()?,
            region: get("region")?.extract()?,
        })
    }

    /// What a vCPU does whose share of the guest's pages is `[start, end)`.
    fn stream(&self, vcpu: u64, share: (u64, u64), guest_pages: u64) -> Result<Stream> {
        let (mut start, end) = match self.region {
            None => share,
            Some((first, len)) => (first, first.saturating_add(len)),
        };
        if end > guest_pages {
            return Err(Error::invalid(format!(
                "the stream's region [{start}, {end}) is not within the guest's {guest_pages} pages"
            )));
        }
        let pages = end.saturating_sub(start);
        let times = |passes: u64| {
            passes.checked_mul(pages).ok_or_else(|| {
                Error::invalid(format!("{passes} passes over {pages} pages are too many"))
            })
        };
        let (pattern, accesses) = match &self.kind {
            Kind::Sequential { passes } => (Pattern::Sequential, times(*passes)?),
            Kind::Strided {
                stride,
                offset,
                passes,
            } => {
                if *offset >= pages {
                    return Err(Error::invalid(format!(
                        "offset {offset}: expected a page of the region's {pages}"
                    )));
                }
                start += offset;
                times(*passes)?;
                let pages = pages - offset;
                // Each pass starts one page after the one before it.
                let starts = (*stride).min(pages);
                let round = |first: u64| (pages - first).div_ceil(*stride);
                let rest: u64 = (0..*passes % starts).map(round).sum();
                let accesses = *passes / starts * pages + rest;
                (Pattern::Strided { stride: *stride }, accesses)
            }
            Kind::Uniform { accesses } => (Pattern::Uniform, *accesses),
            Kind::Zipf {
                exponent,
                accesses,
                shuffle,
            } => {
                let pattern = Pattern::Zipf {
                    exponent: *exponent,
                    scatter: *shuffle,
                };
                (pattern, *accesses)
            }
            Kind::HotCold { phases } => {
                let hot = |phase: &PyPhase| {
                    let hot_start = ((phase.start * pages as f64) as u64).min(pages - 1);
                    let hot_pages = (phase.fraction * pages as f64).round() as u64;
                    Phase {
                        accesses: phase.accesses,
                        hot_start,
                        hot_pages: hot_pages.clamp(1, pages - hot_start),
                        hot_share: phase.probability,
                    }
                };
                let accesses = phases.iter().map(|phase| phase.accesses).sum();
                let phases = phases.iter().map(hot).collect();
                (Pattern::HotCold { phases }, accesses)
            }
            Kind::Recorded { pages, writes } => {
                let pattern = Pattern::Explicit {
                    pages: Arc::clone(pages),
                    writes: Some(Arc::clone(writes)),
                };
                return Stream::new(&StreamConfig {
                    pattern,
                    start: 0,
                    end: guest_pages,
                    accesses: pages.len() as u64,
                    write_ratio: 0.0,
                    seed: 0,
                });
            }
        };
        Stream::new(&StreamConfig {
            pattern,
            start,
            end,
            accesses,
            write_ratio: self.write,
            // Distinct for each vCPU; the seed's mixing does the rest.
            seed: self.seed.wrapping_add(vcpu << 32),
        })
    }
}

/// What each vCPU of a run does: those without a region share `guest_pages`, and
/// none goes beyond `reach`.
///
/// # Errors
/// `EINVAL` for what does not fit the guest.
pub fn streams(
    descriptions: &[Description],
    guest_pages: u64,
    reach: u64,
    overlap: bool,
) -> Result<Vec<Stream>> {
    let vcpus = descriptions.len() as u64;
    let how = if overlap {
        Partition::Overlap
    } else {
        Partition::Own
    };
    let shares = partition(0, guest_pages, vcpus, how)?;
    (0..vcpus)
        .zip(descriptions)
        .zip(shares)
        .map(|((vcpu, description), share)| description.stream(vcpu, share, reach))
        .collect()
}
