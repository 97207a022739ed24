//! Policies of reclaim written in Python.

use crate::error::callback;
use crate::host::Host;
use crate::native::in_callback;
use pyo3::call::PyCallArgs;
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyBool;
use std::sync::Arc;
use youngbit_core::lru_gen::lruvec::{ANON, FILE, MAX_NR_TIERS};
use youngbit_core::lru_gen::policy::{Choice, Native, Policy, View};

const TYPES: [&str; 2] = ["anon", "file"];

fn type_name(ty: usize) -> &'static str {
    TYPES[ty.min(FILE)]
}

/// What a policy is shown of a lruvec: a snapshot.
#[pyclass(frozen, module = "youngbit._core")]
pub struct LruView {
    memcg: u16,
    node: usize,
    max_seq: u64,
    min_seq: [u64; 2],
    pages: Vec<(u64, u64, u64)>,
    positions: [[(u64, u64); MAX_NR_TIERS]; 2],
}

impl LruView {
    fn new(view: &View<'_>) -> Self {
        let (max_seq, min_seq) = (view.max_seq(), [view.min_seq(ANON), view.min_seq(FILE)]);
        let first = min_seq[ANON].min(min_seq[FILE]);
        let pages = |seq| (seq, view.nr_pages(seq, ANON), view.nr_pages(seq, FILE));
        LruView {
            memcg: view.memcg(),
            node: view.node(),
            max_seq,
            min_seq,
            pages: (first..=max_seq).map(pages).collect(),
            positions: [ANON, FILE].map(|ty| std::array::from_fn(|tier| view.position(ty, tier))),
        }
    }
}

#[pymethods]
impl LruView {
    /// Number of the memory cgroup.
    #[getter]
    fn memcg(&self) -> u16 {
        self.memcg
    }

    /// Number of the node.
    #[getter]
    fn node(&self) -> usize {
        self.node
    }

    /// The youngest generation.
    #[getter]
    fn max_seq(&self) -> u64 {
        self.max_seq
    }

    /// The oldest generation of anonymous pages, and of file pages.
    #[getter]
    fn min_seq(&self) -> (u64, u64) {
        (self.min_seq[ANON], self.min_seq[FILE])
    }

    /// Number, anonymous and file pages of each generation, oldest first.
    #[getter]
    fn pages(&self) -> Vec<(u64, u64, u64)> {
        self.pages.clone()
    }

    /// Of each tier of a type: pages refaulted, and pages evicted or protected.
    fn positions(&self, kind: &str) -> PyResult<Vec<(u64, u64)>> {
        let ty = TYPES.iter().position(|&name| name == kind);
        let ty = ty.ok_or_else(|| {
            PyValueError::new_err(format!("kind: {kind:?} is none of 'anon', 'file'"))
        })?;
        Ok(self.positions[ty].to_vec())
    }
}

/// An object with some of the methods of `youngbit.lru_gen.Policy`.
struct PyPolicy {
    object: Py<PyAny>,
    choose: bool,
    tier: bool,
    should_age: bool,
}

impl PyPolicy {
    /// Ask a method; what it raises ends the call that is reclaiming, and until
    /// then the kernel's decision stands.
    fn ask<T>(
        &self,
        view: &View<'_>,
        name: &str,
        args: impl for<'py> PyCallArgs<'py>,
        accept: impl FnOnce(&Bound<'_, PyAny>) -> PyResult<T>,
    ) -> Option<T> {
        if view.has_error() {
            return None;
        }
        let answer = in_callback(|| {
            Python::attach(|py| accept(&self.object.bind(py).call_method1(name, args)?))
        });
        answer.map_err(|error| view.raise(callback(error))).ok()
    }
}

fn wrong(what: &str, expected: &str, answer: &Bound<'_, PyAny>) -> PyErr {
    let found = answer
        .repr()
        .map_or_else(|_| "?".to_owned(), |r| r.to_string());
    PyTypeError::new_err(format!("{what}() returned {found}, expected {expected}"))
}

fn as_tier(what: &str, answer: &Bound<'_, PyAny>) -> PyResult<usize> {
    let expected = "a tier, 0 to 3";
    if answer.is_instance_of::<PyBool>() {
        return Err(wrong(what, expected, answer));
    }
    let tier = answer
        .extract()
        .ok()
        .filter(|&tier: &usize| tier < MAX_NR_TIERS);
    tier.ok_or_else(|| wrong(what, expected, answer))
}

fn as_choice(answer: &Bound<'_, PyAny>) -> PyResult<Choice> {
    let expected = "('anon' or 'file', a tier or None)";
    let (name, tier): (String, Bound<'_, PyAny>) = answer
        .extract()
        .map_err(|_| wrong("choose", expected, answer))?;
    let ty = TYPES.iter().position(|&known| known == name);
    Ok(Choice {
        ty: ty.ok_or_else(|| wrong("choose", expected, answer))?,
        tier: if tier.is_none() {
            None
        } else {
            Some(as_tier("choose", &tier)?)
        },
    })
}

impl Policy for PyPolicy {
    fn choose(&self, view: &View<'_>, swappiness: u32, may_io: bool) -> Choice {
        let native = Native.choose(view, swappiness, may_io);
        if !self.choose {
            return native;
        }
        let kernel = (type_name(native.ty), native.tier);
        let args = (LruView::new(view), swappiness, may_io, kernel);
        self.ask(view, "choose", args, as_choice).unwrap_or(native)
    }

    fn tier(&self, view: &View<'_>, ty: usize) -> usize {
        let native = Native.tier(view, ty);
        if !self.tier {
            return native;
        }
        let args = (LruView::new(view), type_name(ty), native);
        self.ask(view, "tier", args, |answer| as_tier("tier", answer))
            .unwrap_or(native)
    }

    fn should_age(&self, view: &View<'_>, can_swap: bool) -> bool {
        let native = Native.should_age(view, can_swap);
        if !self.should_age {
            return native;
        }
        let args = (LruView::new(view), can_swap, native);
        let accept = |answer: &Bound<'_, PyAny>| match answer.cast::<PyBool>() {
            Ok(answer) => Ok(answer.is_true()),
            Err(_) => Err(wrong("should_age", "a bool", answer)),
        };
        self.ask(view, "should_age", args, accept).unwrap_or(native)
    }
}

/// Replace the policy of a host, methods by name, or bring the kernel's back.
#[pyfunction]
pub fn set_policy(
    py: Python<'_>,
    host: &Host,
    policy: Option<Py<PyAny>>,
    methods: Vec<String>,
) -> PyResult<()> {
    let has = |name: &str| methods.iter().any(|method| method == name);
    let policy = policy.map(|object| {
        Arc::new(PyPolicy {
            object,
            choose: has("choose"),
            tier: has("tier"),
            should_age: has("should_age"),
        }) as Arc<dyn Policy>
    });
    // The GIL is released: a pass may be asking the old policy.
    py.detach(|| host.core.lru_gen.policy.set(policy));
    Ok(())
}
