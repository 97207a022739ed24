//! Saying to a model checker what a lock is supposed to guard.

/// Stands beside data that atomics hold but a lock orders. A model checker
/// treats it as ordinary memory, and reports a read and a write of it that
/// nothing orders; elsewhere it is nothing.
pub struct Witness {
    #[cfg(loom)]
    what: &'static str,
    #[cfg(loom)]
    cell: loom::cell::UnsafeCell<()>,
}

// SAFETY: the cell holds nothing; it is there for the checker alone, which
// itself reports accesses that race.
#[cfg(loom)]
unsafe impl Sync for Witness {}

impl Witness {
    /// A witness of nothing yet, beside `what`.
    #[cfg_attr(not(loom), allow(unused_variables, reason = "only a report names it"))]
    pub fn new(what: &'static str) -> Self {
        Witness {
            #[cfg(loom)]
            what,
            #[cfg(loom)]
            cell: loom::cell::UnsafeCell::new(()),
        }
    }

    /// The guarded data is read.
    #[inline]
    pub fn read(&self) {
        #[cfg(loom)]
        {
            super::step::note(format!("reads {}", self.what));
            self.cell.with(|_| ());
        }
    }

    /// The guarded data is written.
    #[inline]
    pub fn write(&self) {
        #[cfg(loom)]
        {
            super::step::note(format!("writes {}", self.what));
            self.cell.with_mut(|_| ());
        }
    }
}
