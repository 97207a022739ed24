//! Descriptions of guest accesses, from Python's dataclasses to the core's.

use numpy::{PyArray1, PyArrayMethods};
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use std::sync::Arc;
use youngbit_core::access::{Pattern, Phase, Stream};

/// The core's description of a `youngbit.access.Stream`.
pub fn stream(object: &Bound<'_, PyAny>) -> PyResult<Stream> {
    let get = |name: &str| object.getattr(name);
    let kind: String = get("kind")?.extract()?;
    if kind == "recorded" {
        let pages = get("pages")?.cast_into::<PyArray1<u32>>()?;
        let writes = get("writes")?.cast_into::<PyArray1<bool>>()?;
        let pages: Arc<[u32]> = Arc::from(pages.readonly().as_slice()?);
        let writes = Arc::from(writes.readonly().as_slice()?);
        let part = 0..pages.len();
        return Ok(Stream {
            pattern: Pattern::Recorded {
                pages,
                writes,
                part,
            },
            write: 0.0,
            seed: 0,
            region: None,
        });
    }
    let pattern = match kind.as_str() {
        "sequential" => Pattern::Sequential {
            passes: get("passes")?.extract()?,
        },
        "strided" => Pattern::Strided {
            stride: get("stride")?.extract()?,
            offset: get("offset")?.extract()?,
            passes: get("passes")?.extract()?,
        },
        "uniform" => Pattern::Uniform {
            accesses: get("accesses")?.extract()?,
        },
        "zipf" => Pattern::Zipf {
            exponent: get("exponent")?.extract()?,
            accesses: get("accesses")?.extract()?,
            shuffle: get("shuffle")?.extract()?,
        },
        "hot_cold" => {
            let mut phases = Vec::new();
            for phase in get("phases")?.try_iter()? {
                let phase = phase?;
                phases.push(Phase {
                    accesses: phase.getattr("accesses")?.extract()?,
                    start: phase.getattr("start")?.extract()?,
                    fraction: phase.getattr("fraction")?.extract()?,
                    probability: phase.getattr("probability")?.extract()?,
                });
            }
            Pattern::HotCold { phases }
        }
        other => return Err(PyTypeError::new_err(format!("no stream is of kind {other:?}"))),
    };
    Ok(Stream {
        pattern,
        write: get("write")?.extract()?,
        seed: get("seed")?.extract()?,
        region: get("region")?.extract()?,
    })
}
