//! Which generation each page of a range is in.

use super::lruvec::MAX_NR_GENS;
use crate::cpu::Cpu;
use crate::mm::pagetable::level_size;
use crate::mm::{FolioWord, Mm, PAGE_SIZE, Pfn};

/// For each page of `[start, start + pages * PAGE_SIZE)` of an mm: the sequence
/// number of the generation its folio is in, or -1 where nothing is mapped or
/// the folio is on no list.
///
/// Not locked: beside running vCPUs a page may be reported where it just was.
pub fn page_generations(cpu: &Cpu, mm: &Mm, start: u64, pages: u64) -> Vec<i64> {
    let memory = &cpu.host().memory;
    let mut seqs = vec![-1; pages as usize];
    let end = start + pages * PAGE_SIZE;
    let mut address = start;
    while address < end {
        let _section = cpu.rcu.lock();
        let (at, pte) = mm.lookup(address);
        let size = level_size(at.level);
        let next = (address & !(size - 1)) + size;
        if pte.is_leaf(at.level) && !pte.has(crate::mm::pagetable::SPECIAL) {
            let offset = (address & (size - 1)) / PAGE_SIZE;
            let head = memory.head(Pfn(pte.pfn().0 + offset as u32));
            let word = memory.word(head).get();
            let owned = word.memcg() == mm.memcg.id;
            let other = if owned {
                None
            } else {
                cpu.host().memcg(word.memcg())
            };
            let owner = if owned {
                Some(&mm.memcg)
            } else {
                other.as_ref()
            };
            if let (Some(generation), Some(owner)) = (word.generation(), owner) {
                let max_seq = owner.lruvecs[word.node()].max_seq();
                // The youngest sequence number that this generation stands for.
                let behind =
                    (max_seq + MAX_NR_GENS as u64 - generation as u64) % MAX_NR_GENS as u64;
                let first = ((address - start) / PAGE_SIZE) as usize;
                let last = ((next.min(end) - start) / PAGE_SIZE) as usize;
                seqs[first..last].fill(max_seq as i64 - behind as i64);
            }
        }
        address = next;
    }
    seqs
}
