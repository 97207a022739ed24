//! The swap device: slots, and faults on swapped pages.

use super::mm::Entry;
use super::{Mm, Pfn, Vma};
use crate::cpu::Cpu;
use crate::error::{Errno, Error, Result};
use std::sync::Arc;

/// The swap device.
pub struct Swap {
    nr_slots: u64,
}

impl Swap {
    /// A device of `nr_slots` pages.
    ///
    /// # Errors
    /// `EINVAL` for more slots than an entry can name.
    pub fn new(nr_slots: u64) -> Result<Self> {
        if nr_slots >= u64::from(u32::MAX) {
            return Err(Error::invalid(format!(
                "{nr_slots} swap slots: expected fewer than {}",
                u32::MAX
            )));
        }
        Ok(Swap { nr_slots })
    }

    /// Slots on the device.
    pub fn nr_slots(&self) -> u64 {
        self.nr_slots
    }

    /// Give a slot back.
    pub fn free(&self, _slot: u32) {}
}

/// A folio is being freed: give back its slot if it has one.
pub(crate) fn forget(_cpu: &Cpu, _pfn: Pfn) {}

/// Bring a swapped page back (`do_swap_page()`).
pub(crate) fn fault(
    _mm: &Arc<Mm>,
    _cpu: &Cpu,
    _vma: &Vma,
    address: u64,
    _at: Entry,
    slot: u32,
    _write: bool,
) -> Result<()> {
    Err(Error::new(
        Errno::EIO,
        format!("{address:#x} names swap slot {slot}, which was never written"),
    ))
}
