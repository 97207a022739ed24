//! Refaults: what an evicted page leaves behind, and what its return tells
//! (`mm/workingset.c`).
//!
//! An evicted page leaves a shadow entry in its place: memory cgroup, node, the
//! oldest generation at the time, and its references. When the page comes back,
//! the entry tells whether it went only recently, and on which tier that was a
//! mistake.

use super::folio::lru_refs;
use super::lruvec::{FILE, LruVec, hist_from_seq, tier_from_refs, type_of};
use crate::cpu::Cpu;
use crate::mm::folio::{FolioWord, REFS_MASK, WORKINGSET};
use crate::mm::swap::VALUE_BITS;
use crate::mm::{Pfn, Word};
use crate::sync::atomic::Ordering;
use crate::trace::Counter;

const REFS_SHIFT: u32 = 1;
const REFS_WIDTH: u32 = 2;
const NODE_SHIFT: u32 = REFS_SHIFT + REFS_WIDTH;
const NODE_WIDTH: u32 = 6;
const MEMCG_SHIFT: u32 = NODE_SHIFT + NODE_WIDTH;
const MEMCG_WIDTH: u32 = 16;
const SEQ_SHIFT: u32 = MEMCG_SHIFT + MEMCG_WIDTH;
/// The sequence number is cut to what is left, as the kernel's is.
const SEQ_MASK: u64 = (1 << (VALUE_BITS - SEQ_SHIFT)) - 1;

/// A shadow entry, unpacked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Shadow {
    /// The oldest generation of the page's type when it was evicted; its low
    /// bits only.
    pub min_seq: u64,
    /// The memory cgroup.
    pub memcg: u16,
    /// The node.
    pub node: usize,
    /// References beyond the first.
    pub refs: u64,
}

impl Shadow {
    /// As the value that stands in the page's place.
    pub fn pack(self) -> u64 {
        let workingset = u64::from(self.refs > 0);
        (self.min_seq & SEQ_MASK) << SEQ_SHIFT
            | u64::from(self.memcg) << MEMCG_SHIFT
            | (self.node as u64) << NODE_SHIFT
            | (self.refs - workingset) << REFS_SHIFT
            | workingset
    }

    /// From that value.
    pub fn unpack(value: u64) -> Self {
        let field = |shift: u32, width: u32| value >> shift & ((1 << width) - 1);
        Shadow {
            min_seq: value >> SEQ_SHIFT & SEQ_MASK,
            memcg: field(MEMCG_SHIFT, MEMCG_WIDTH) as u16,
            node: field(NODE_SHIFT, NODE_WIDTH) as usize,
            refs: field(REFS_SHIFT, REFS_WIDTH) + (value & 1),
        }
    }
}

/// Note that a folio is evicted; returns its shadow entry
/// (`lru_gen_eviction()`).
pub(crate) fn eviction(lruvec: &LruVec, word: Word) -> u64 {
    let ty = type_of(word);
    let refs = lru_refs(word);
    let min_seq = lruvec.min_seq(ty);
    let evicted = &lruvec.evicted[hist_from_seq(min_seq)][ty][tier_from_refs(refs)];
    // Relaxed: a sum that the controller reads.
    evicted.fetch_add(word.nr_pages(), Ordering::Relaxed);
    Shadow {
        min_seq,
        memcg: lruvec.memcg,
        node: lruvec.node,
        refs,
    }
    .pack()
}

/// Note that an evicted page came back as `pfn`, which is on no list yet
/// (`lru_gen_refault()`); `in_fault` when a page table asked for it.
pub(crate) fn refault(cpu: &Cpu, pfn: Pfn, shadow: u64, in_fault: bool) {
    let host = cpu.host();
    let word = host.memory.word(pfn).get();
    let shadow = Shadow::unpack(shadow);
    if (shadow.memcg, shadow.node) != (word.memcg(), word.node()) {
        return;
    }
    let Some(memcg) = host.memcg_ref(word.memcg()) else {
        return;
    };
    let lruvec = &memcg.lruvecs[word.node()];
    let ty = type_of(word);
    let pages = word.nr_pages();
    let count = |anon, file| memcg.count(cpu, if ty == FILE { file } else { anon }, pages);
    count(Counter::RefaultAnon, Counter::RefaultFile);
    let min_seq = lruvec.min_seq(ty);
    if shadow.min_seq != min_seq & SEQ_MASK {
        return;
    }
    let refaulted = &lruvec.refaulted[hist_from_seq(min_seq)][ty][tier_from_refs(shadow.refs)];
    refaulted.fetch_add(pages, Ordering::Relaxed);
    count(Counter::ActivateAnon, Counter::ActivateFile);
    // Evicted while it was in use through page tables, or so often used through
    // descriptors that its tier would have been protected.
    if in_fault || shadow.refs >= (1 << REFS_WIDTH) - 1 {
        host.memory.word(pfn).set(REFS_MASK | WORKINGSET);
        count(Counter::RestoreAnon, Counter::RestoreFile);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn shadows_come_back_as_they_went() {
        for refs in 0..=4 {
            let shadow = Shadow {
                min_seq: SEQ_MASK - 1,
                memcg: 0xabcd,
                node: 63,
                refs,
            };
            assert!(shadow.pack() < 1 << VALUE_BITS);
            assert_eq!(Shadow::unpack(shadow.pack()), shadow);
        }
        let wrapped = Shadow {
            min_seq: SEQ_MASK + 3,
            memcg: 0,
            node: 0,
            refs: 0,
        };
        assert_eq!(Shadow::unpack(wrapped.pack()).min_seq, 2);
    }
}
