//! Whether frames and swap slots of a quiet host are conserved.

use super::address_space::{Kind, Slot};
use super::pagetable::SPECIAL;
use super::{FolioWord, Pfn};
use crate::host::Host;

/// Check a host on which nothing else is running:
///
/// * every frame that is not free is charged to a memory cgroup, and the other
///   way round;
/// * a folio is mapped as often as page tables say;
/// * a swap slot is named as often as page tables and shmem say, a used one is
///   named or holds a cached folio, and used and free ones are all there are.
///
/// # Errors
/// A sentence that names the first thing that is wrong.
pub fn check(host: &Host) -> Result<(), String> {
    let memory = &host.memory;
    let free: u64 = (0..memory.nr_nodes()).map(|n| memory.nr_free(n)).sum();
    let charged: u64 = host.memcgs().iter().map(|memcg| memcg.usage()).sum();
    // The zero page is neither.
    if free + charged + 1 != memory.nr_pages() {
        return Err(format!(
            "{} frames: {free} are free and {charged} charged",
            memory.nr_pages()
        ));
    }

    let mut mapped = vec![0u32; memory.nr_pages() as usize];
    let mut named = vec![0u64; host.swap.nr_slots() as usize];
    for mm in host.mms() {
        let vmas = mm.mmap_lock.read();
        for vma in vmas.iter() {
            let mut address = vma.start;
            while address < vma.end {
                let (at, pte) = mm.lookup(address);
                let size = super::pagetable::level_size(at.level);
                address = (address & !(size - 1)) + size;
                if let Some(slot) = pte.swap_slot() {
                    named[slot as usize] += 1;
                } else if pte.is_leaf(at.level) && !pte.has(SPECIAL) {
                    mapped[memory.head(pte.pfn()).0 as usize] += 1;
                }
            }
        }
    }
    for space in host.spaces.all() {
        if space.kind != Kind::Shmem {
            continue;
        }
        for index in 0..space.nr_pages() {
            if let Slot::Value(slot) = space.slot(index) {
                named[slot as usize] += 1;
            }
        }
    }
    for (n, &mapped) in mapped.iter().enumerate() {
        let pfn = Pfn(n as u32);
        if !memory.word(pfn).get().has(super::folio::TAIL) && memory.mapcount(pfn) != mapped {
            return Err(format!(
                "{pfn:?} counts {} mappings and has {mapped}",
                memory.mapcount(pfn)
            ));
        }
    }
    let mut used = 0;
    let mut wrong = None;
    host.swap.for_each_used(|slot, count, cached| {
        used += 1;
        let found = std::mem::take(&mut named[slot as usize]);
        if found != count || (count == 0 && cached.is_none()) {
            wrong.get_or_insert(format!(
                "swap slot {slot} counts {count} names and has {found}, cached: {cached:?}"
            ));
        }
    });
    if let Some(wrong) = wrong {
        return Err(wrong);
    }
    if let Some(slot) = named.iter().position(|&n| n != 0) {
        return Err(format!("swap slot {slot} is named and free"));
    }
    if used + host.swap.nr_free() != host.swap.nr_slots() {
        return Err(format!(
            "{} swap slots: {used} are used and {} free",
            host.swap.nr_slots(),
            host.swap.nr_free()
        ));
    }
    Ok(())
}
