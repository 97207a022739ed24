//! The page cache: finding and reading in pages of files and shmem.

use super::address_space::{AddressSpace, Kind, Slot};
use super::folio::{ACTIVE, FolioWord, Pfn, SWAPBACKED};
use super::memcg::Memcg;
use crate::cpu::Cpu;
use crate::error::Result;
use crate::lru_gen;
use crate::sync::atomic::Ordering;
use std::sync::Arc;

/// The frame of page `index`, and whether it had to be read in. `active` asks
/// for the youngest generation when it is new.
///
/// # Errors
/// `ENOMEM`.
pub(crate) fn get(
    cpu: &Cpu,
    memcg: &Memcg,
    space: &Arc<AddressSpace>,
    index: u64,
    active: bool,
) -> Result<(Pfn, bool)> {
    if let Slot::Page(pfn) = space.slot(index) {
        return Ok((pfn, false));
    }
    let host = cpu.host();
    let flags = if space.kind == Kind::Shmem {
        SWAPBACKED
    } else {
        0
    };
    let pfn = host.alloc_folio(cpu, memcg, 0, flags)?;
    let memory = &host.memory;
    memory.mapping(pfn).store(space.id, Ordering::Relaxed);
    memory.pgoff(pfn).store(index as u32, Ordering::Relaxed);
    if space.kind == Kind::File {
        let byte = space.store(index).load(Ordering::Relaxed);
        memory.content(pfn).store(byte, Ordering::Relaxed);
    }
    if active {
        memory.word(pfn).set(ACTIVE);
    }
    let mut winner = pfn;
    space.update_slot(index, |slot| match slot {
        Slot::Page(other) => {
            winner = other;
            slot
        }
        _ => Slot::Page(pfn),
    });
    if winner != pfn {
        host.free_folio(pfn);
        return Ok((winner, false));
    }
    lru_gen::add_folio(cpu, pfn);
    Ok((pfn, space.kind == Kind::File))
}
