//! The page cache: pages of files and shmem, found, read in, read and written
//! by file descriptor, written back, truncated (`mm/filemap.c`, `mm/shmem.c`,
//! `mm/page-writeback.c`).
//!
//! A page-cache entry changes under the cache's lock. Whoever uses a page
//! without mapping it (a read, a write) does so under that lock, and mapping it
//! happens under it, so reclaim, which removes the entry under it if nothing
//! maps the page, never frees a page in use.

use super::address_space::{AddressSpace, Kind, Slot};
use super::folio::{
    ACTIVE, DIRTY, FolioWord, LOCKED, LRU, Pfn, RECLAIM, REFERENCED, SWAPBACKED, UNEVICTABLE,
    WRITEBACK,
};
use super::memcg::Memcg;
use super::release_if_unused;
use super::rmap::{self, Rmap};
use super::swap::{self, FolioLock};
use crate::cpu::Cpu;
use crate::error::{Errno, Error, Result};
use crate::lru_gen::{self, workingset};
use crate::sync::atomic::Ordering;
use crate::sync::spin::Backoff;
use crate::trace::Counter;
use std::sync::Arc;

/// What a new page is wanted for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Want {
    /// A page table: the page is active if the flag is set.
    Fault(bool),
    /// A read by descriptor, for which a hole of shmem stays one (`SGP_READ`).
    Read,
    /// A write by descriptor of the whole page: a file's old content is not
    /// read, and its return is no refault.
    Write,
}

/// The frame of page `index` for a page table, and whether it had to be read
/// in. `active` asks for the youngest generation when it is new.
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
    let found = lookup(cpu, memcg, space, index, Want::Fault(active))?;
    Ok(found.expect("a fault fills holes"))
}

/// Find page `index`, or bring it in; `None` for a hole that is only read.
fn lookup(
    cpu: &Cpu,
    memcg: &Memcg,
    space: &Arc<AddressSpace>,
    index: u64,
    want: Want,
) -> Result<Option<(Pfn, bool)>> {
    let is_shmem = space.kind == Kind::Shmem;
    loop {
        match space.slot(index) {
            Slot::Page(pfn) => return Ok(Some((pfn, false))),
            Slot::Empty if is_shmem && want == Want::Read => return Ok(None),
            Slot::Value(value) if is_shmem => {
                if let Some(found) = swap_in(cpu, memcg, space, index, value as u32, want)? {
                    return Ok(Some(found));
                }
            }
            _ => {
                if let Some(pfn) = read_in(cpu, memcg, space, index, want)? {
                    return Ok(Some((pfn, !is_shmem)));
                }
            }
        }
    }
}

/// A new folio that says what it is, in no cache yet.
fn new_folio(cpu: &Cpu, memcg: &Memcg, space: &AddressSpace, index: u64) -> Result<Pfn> {
    let flags = if space.kind == Kind::Shmem {
        SWAPBACKED
    } else {
        0
    };
    let pfn = cpu.host().alloc_folio(cpu, memcg, 0, flags)?;
    let memory = &cpu.host().memory;
    memory.mapping(pfn).store(space.id, Ordering::Relaxed);
    memory.pgoff(pfn).store(index as u32, Ordering::Relaxed);
    Ok(pfn)
}

/// Give back a folio that was never published.
fn discard(cpu: &Cpu, pfn: Pfn) {
    cpu.host().memory.mapping(pfn).store(0, Ordering::Relaxed);
    cpu.host().free_folio(pfn);
}

/// Read page `index` from its device, or make a page of zeros for shmem
/// (`filemap_add_folio()`); `None` when the entry changed meanwhile.
fn read_in(
    cpu: &Cpu,
    memcg: &Memcg,
    space: &AddressSpace,
    index: u64,
    want: Want,
) -> Result<Option<Pfn>> {
    let pfn = new_folio(cpu, memcg, space, index)?;
    let memory = &cpu.host().memory;
    if space.kind == Kind::File {
        let byte = space.store(index).load(Ordering::Relaxed);
        memory.content(pfn).store(byte, Ordering::Relaxed);
    }
    if want == Want::Fault(true) {
        memory.word(pfn).set(ACTIVE);
    }
    let mut shadow = None;
    let old = space.update_slot(index, |slot| match slot {
        Slot::Empty => Slot::Page(pfn),
        Slot::Value(value) if space.kind == Kind::File => {
            shadow = Some(value);
            Slot::Page(pfn)
        }
        other => other,
    });
    if matches!(old, Slot::Page(_)) || (space.kind == Kind::Shmem && old != Slot::Empty) {
        discard(cpu, pfn);
        return Ok(None);
    }
    if let Some(shadow) = shadow
        && want != Want::Write
    {
        workingset::refault(cpu, pfn, shadow, want == Want::Fault(true));
    }
    lru_gen::add_folio(cpu, pfn);
    // Truncated before it was on a list: then nobody else frees it.
    release_if_unused(cpu, pfn);
    Ok(Some(pfn))
}

/// Bring back a shmem page that the page cache says is in swap `slot`.
fn swap_in(
    cpu: &Cpu,
    memcg: &Memcg,
    space: &AddressSpace,
    index: u64,
    slot: u32,
    want: Want,
) -> Result<Option<(Pfn, bool)>> {
    let named = Slot::Value(u64::from(slot));
    let found = swap::swapin_shmem(
        cpu,
        slot,
        want == Want::Fault(true),
        || space.slot(index) == named,
        || new_folio(cpu, memcg, space, index),
        |pfn| {
            space.update_slot(
                index,
                |now| if now == named { Slot::Page(pfn) } else { now },
            ) == named
        },
    )?;
    if let Some((pfn, _)) = found {
        release_if_unused(cpu, pfn);
    }
    Ok(found)
}

fn check_index(space: &AddressSpace, index: u64) -> Result<()> {
    if space.kind == Kind::Anon || index >= space.nr_pages() {
        return Err(Error::new(
            Errno::EINVAL,
            format!(
                "page {index} of address space {}: it has {} pages that descriptors reach",
                space.id,
                space.nr_pages()
            ),
        ));
    }
    Ok(())
}

/// Use page `index` under the cache's lock, which keeps it there; `None` for a
/// hole that is only read.
fn with_page<R>(
    cpu: &Cpu,
    memcg: &Memcg,
    space: &Arc<AddressSpace>,
    index: u64,
    want: Want,
    act: impl Fn(Pfn) -> R,
) -> Result<Option<R>> {
    check_index(space, index)?;
    loop {
        let Some((pfn, _)) = lookup(cpu, memcg, space, index, want)? else {
            return Ok(None);
        };
        let mut result = None;
        space.update_slot(index, |slot| {
            if slot == Slot::Page(pfn) {
                result = Some(act(pfn));
            }
            slot
        });
        if result.is_some() {
            return Ok(result);
        }
    }
}

/// Read page `index` by file descriptor (`filemap_read()`,
/// `shmem_file_read_iter()`): the page is brought in if need be, and the access
/// counted. Returns its content. A hole of shmem reads as zeros, and nothing is
/// brought in or counted.
///
/// # Errors
/// `EINVAL` beyond the end, `ENOMEM`.
pub fn read(cpu: &Cpu, memcg: &Memcg, space: &Arc<AddressSpace>, index: u64) -> Result<u8> {
    let memory = &cpu.host().memory;
    let byte = with_page(cpu, memcg, space, index, Want::Read, |pfn| {
        lru_gen::mark_accessed(memory, pfn);
        memory.content(pfn).load(Ordering::Relaxed)
    })?;
    Ok(byte.unwrap_or(0))
}

/// Write the whole page `index` by file descriptor
/// (`generic_perform_write()`): the page becomes dirty. The write is counted as
/// an access of shmem (`SGP_WRITE`), not of a file.
///
/// # Errors
/// `EINVAL` beyond the end, `ENOMEM`.
pub fn write(
    cpu: &Cpu,
    memcg: &Memcg,
    space: &Arc<AddressSpace>,
    index: u64,
    byte: u8,
) -> Result<()> {
    let memory = &cpu.host().memory;
    with_page(cpu, memcg, space, index, Want::Write, |pfn| {
        if space.kind == Kind::Shmem {
            lru_gen::mark_accessed(memory, pfn);
        }
        memory.content(pfn).store(byte, Ordering::Relaxed);
        memory.word(pfn).set(DIRTY);
    })
    .map(|_| ())
}

/// Write up to `limit` dirty pages of a file back to its device
/// (`write_cache_pages()`). Each is write-protected first, so that a later
/// write makes it dirty again. Returns how many were written; a page that the
/// device refuses stays dirty, and the file remembers the error for [`fsync`].
pub fn writeback(cpu: &Cpu, space: &AddressSpace, limit: u64) -> u64 {
    if space.kind != Kind::File {
        return 0;
    }
    let memory = &cpu.host().memory;
    let mut written = 0;
    for index in 0..space.nr_pages() {
        if written == limit || cpu.poll() {
            break;
        }
        let Slot::Page(pfn) = space.slot(index) else {
            continue;
        };
        if !memory.word(pfn).get().has(DIRTY) {
            continue;
        }
        // Locked under the cache's lock: the folio is this page, and locked it
        // stays in the cache.
        let mut lock = None;
        space.update_slot(index, |slot| {
            if slot == Slot::Page(pfn) {
                lock = FolioLock::try_new(memory.word(pfn));
            }
            slot
        });
        let Some(_locked) = lock else {
            continue;
        };
        let rmap = Rmap::lock(space);
        // The entries first: taking the page from a secondary MMU makes it
        // dirty. The content last: a write in between is in it, and makes its
        // entry or the folio dirty again.
        rmap::mkclean(cpu, &rmap, pfn);
        memory.word(pfn).clear(DIRTY);
        if cpu.host().spaces.write_fails() {
            // Dirty again, as after a failed write to swap: evicted clean, its
            // content would be nowhere.
            memory.word(pfn).set(DIRTY);
            space.set_error();
            continue;
        }
        let byte = memory.content(pfn).load(Ordering::Relaxed);
        space.store(index).store(byte, Ordering::Relaxed);
        written += 1;
    }
    // The locks are gone: what reclaim waited for goes to the tail.
    if written > 0 {
        rotate_reclaimable(cpu, space);
    }
    cpu.count_n(Counter::FileWritten, written);
    written
}

/// Write every dirty page of a file back, and tell what failed since the last
/// call (`vfs_fsync()`, `file_check_and_advance_wb_err()`). Returns how many
/// were written.
///
/// # Errors
/// `EIO`, once, after the writeback of some page failed, by whoever it was.
pub fn fsync(cpu: &Cpu, space: &AddressSpace) -> Result<u64> {
    let written = writeback(cpu, space, u64::MAX);
    match space.take_errors() {
        0 => Ok(written),
        failed => Err(Error::new(
            Errno::EIO,
            format!(
                "file {}: writing back failed {failed} times; those pages are dirty still",
                space.id
            ),
        )),
    }
}

/// Move clean pages that reclaim has met dirty to the end where it takes them
/// first (`folio_rotate_reclaimable()`, at the end of writeback).
fn rotate_reclaimable(cpu: &Cpu, space: &AddressSpace) {
    let host = cpu.host();
    let memory = &host.memory;
    for index in 0..space.nr_pages() {
        let Slot::Page(pfn) = space.slot(index) else {
            continue;
        };
        let word = memory.word(pfn);
        let seen = word.get();
        if !seen.has(RECLAIM) || seen.any(DIRTY | WRITEBACK) {
            continue;
        }
        word.clear(RECLAIM);
        if seen.any(LOCKED | UNEVICTABLE) || !word.clear(LRU).has(LRU) {
            continue;
        }
        let Some(memcg) = host.memcg_ref(seen.memcg()) else {
            continue;
        };
        let lruvec = &memcg.lruvecs[seen.node()];
        {
            let mut lists = lruvec.lru_lock.lock();
            lruvec.del_folio(&mut lists, memory, pfn, false);
            word.clear(ACTIVE);
            word.set(LRU);
            lruvec.add_folio(&mut lists, memory, pfn, true);
        }
        release_if_unused(cpu, pfn);
    }
}

/// Drop every page of a file or shmem (`truncate_inode_pages()`): unmapped,
/// secondary MMUs first; content, dirty or not, is lost.
pub fn truncate(cpu: &Cpu, space: &AddressSpace) {
    let host = cpu.host();
    let memory = &host.memory;
    let backoff = Backoff::new();
    for index in 0..space.nr_pages() {
        loop {
            match space.slot(index) {
                Slot::Empty => break,
                Slot::Value(value) => {
                    let gone = Slot::Value(value);
                    let was =
                        space.update_slot(index, |now| if now == gone { Slot::Empty } else { now });
                    if was == gone && space.kind == Kind::Shmem {
                        host.swap.free(cpu, value as u32);
                    }
                }
                Slot::Page(pfn) => {
                    let mut lock = None;
                    space.update_slot(index, |slot| {
                        if slot == Slot::Page(pfn) {
                            lock = FolioLock::try_new(memory.word(pfn));
                        }
                        slot
                    });
                    let Some(locked) = lock else {
                        backoff.wait();
                        continue;
                    };
                    let rmap = Rmap::lock(space);
                    rmap::try_to_unmap(cpu, &rmap, pfn, None);
                    let mut gone = false;
                    space.update_slot(index, |slot| {
                        // Mapped again: once more.
                        if memory.mapcount(pfn) != 0 {
                            return slot;
                        }
                        gone = true;
                        Slot::Empty
                    });
                    if gone {
                        memory.word(pfn).clear(DIRTY | REFERENCED);
                        // Release: pairs with the acquire of who looks whether
                        // the folio is unused, and then finds it unmapped too.
                        memory.mapping(pfn).store(0, Ordering::Release);
                    }
                    drop(locked);
                    if gone {
                        release_if_unused(cpu, pfn);
                    }
                }
            }
        }
    }
}

/// Write back up to `limit` dirty pages of any file
/// (`wakeup_flusher_threads()`, here in the thread that asks). Returns how many
/// were written.
pub(crate) fn flush_some(cpu: &Cpu, limit: u64) -> u64 {
    let mut left = limit;
    for space in cpu.host().spaces.all() {
        if left == 0 {
            break;
        }
        left -= writeback(cpu, &space, left);
    }
    limit - left
}
