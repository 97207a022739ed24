//! Secondary MMUs written in Python.

use crate::error::callback;
use crate::native::in_callback;
use pyo3::call::PyCallArgs;
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::PyBool;
use youngbit_core::Cpu;
use youngbit_core::mm::{MmuNotifier, Ops};

/// An instance of a subclass of `youngbit.MmuNotifier`.
pub struct PyNotifier {
    object: Py<PyAny>,
    ops: Ops,
    invalidate_range_start: bool,
    invalidate_range_end: bool,
    release: bool,
}

impl PyNotifier {
    /// Look which operations the object has.
    pub fn new(object: &Bound<'_, PyAny>) -> PyResult<Self> {
        let has = |name: &str| -> PyResult<bool> {
            match object.getattr_opt(name)? {
                None => Ok(false),
                Some(method) if method.is_none() => Ok(false),
                Some(method) if method.is_callable() => Ok(true),
                Some(method) => Err(PyTypeError::new_err(format!(
                    "{}.{name}: expected a method, not {}",
                    object.get_type().name()?,
                    method.get_type().name()?
                ))),
            }
        };
        let invalidate_range_start = has("invalidate_range_start")?;
        let invalidate_range_end = has("invalidate_range_end")?;
        Ok(PyNotifier {
            ops: Ops {
                clear_flush_young: has("clear_flush_young")?,
                clear_young: has("clear_young")?,
                test_young: has("test_young")?,
                invalidate: invalidate_range_start || invalidate_range_end,
            },
            invalidate_range_start,
            invalidate_range_end,
            release: has("release")?,
            object: object.clone().unbind(),
        })
    }

    /// Call a method, unless an exception already waits for the caller of the
    /// pass: a notifier that failed is not asked again in this pass.
    fn call(
        &self,
        cpu: &Cpu,
        name: &str,
        args: impl for<'py> PyCallArgs<'py>,
        accept: impl FnOnce(&Bound<'_, PyAny>) -> PyResult<bool>,
    ) -> bool {
        if cpu.has_error() {
            return false;
        }
        let answer = in_callback(|| {
            Python::attach(|py| accept(&self.object.bind(py).call_method1(name, args)?))
        });
        answer.unwrap_or_else(|error| {
            cpu.raise(callback(error));
            false
        })
    }

    fn ask(&self, cpu: &Cpu, name: &str, args: impl for<'py> PyCallArgs<'py>) -> bool {
        self.call(cpu, name, args, |answer| {
            let answer = answer.cast::<PyBool>().map_err(|_| {
                let found = answer.get_type();
                PyTypeError::new_err(format!("{name}() returned {found}, expected a bool"))
            })?;
            Ok(answer.is_true())
        })
    }

    fn tell(&self, cpu: &Cpu, name: &str, args: impl for<'py> PyCallArgs<'py>) {
        self.call(cpu, name, args, |_| Ok(true));
    }
}

impl MmuNotifier for PyNotifier {
    fn ops(&self) -> Ops {
        self.ops
    }

    fn clear_flush_young(&self, cpu: &Cpu, start: u64, end: u64) -> bool {
        self.ask(cpu, "clear_flush_young", (start, end))
    }

    fn clear_young(&self, cpu: &Cpu, start: u64, end: u64, fast_only: bool) -> bool {
        self.ask(cpu, "clear_young", (start, end, fast_only))
    }

    fn test_young(&self, cpu: &Cpu, address: u64, fast_only: bool) -> bool {
        self.ask(cpu, "test_young", (address, fast_only))
    }

    fn invalidate_range_start(&self, cpu: &Cpu, start: u64, end: u64) {
        if self.invalidate_range_start {
            self.tell(cpu, "invalidate_range_start", (start, end));
        }
    }

    fn invalidate_range_end(&self, cpu: &Cpu, start: u64, end: u64) {
        if self.invalidate_range_end {
            self.tell(cpu, "invalidate_range_end", (start, end));
        }
    }

    fn release(&self, cpu: &Cpu) {
        if self.release {
            self.tell(cpu, "release", ());
        }
    }
}
