//! Whether the multi-gen LRU of a quiet host is consistent
//! (`seq_is_valid()`, `state_is_valid()`, and what the kernel only hopes).

use super::lruvec::{
    ANON, FILE, LruVec, MAX_NR_GENS, MIN_NR_GENS, NR_TYPES, gen_from_seq, type_of,
};
use crate::host::Host;
use crate::mm::folio::{FolioWord, LRU, TAIL, UNEVICTABLE};
use crate::mm::{Pfn, PhysMem};

/// Check every lruvec of a host on which nothing else is running:
///
/// * at least two and at most four generations of each type, and never more of
///   file than of anon;
/// * every folio on a list belongs to it, has a generation, and is on one list
///   only; lists of generations that do not exist are empty;
/// * sizes are what the folios' words add up to, and so are vmstat's;
/// * every page that is on the LRU is on a list.
///
/// # Errors
/// A sentence that names the first thing that is wrong.
pub fn check(host: &Host) -> Result<(), String> {
    let memory = &host.memory;
    let mut listed = vec![false; memory.nr_pages() as usize];
    for memcg in host.memcgs() {
        for lruvec in &memcg.lruvecs {
            let name = format!("memcg {:?} node {}", memcg.name, lruvec.node);
            check_lruvec(memory, lruvec, &mut listed).map_err(|e| format!("{name}: {e}"))?;
        }
    }
    for (n, &listed) in listed.iter().enumerate() {
        let pfn = Pfn(n as u32);
        let word = memory.word(pfn).get();
        if !listed && !word.has(TAIL) && word.has(LRU) && !word.has(UNEVICTABLE) {
            return Err(format!("{pfn:?} is on the LRU and on no list: {word:?}"));
        }
        if !listed && word.generation().is_some() {
            return Err(format!(
                "{pfn:?} has a generation and is on no list: {word:?}"
            ));
        }
    }
    Ok(())
}

fn check_lruvec(memory: &PhysMem, lruvec: &LruVec, listed: &mut [bool]) -> Result<(), String> {
    let lists = lruvec.lru_lock.lock();
    let max_seq = lruvec.max_seq();
    let gens = [lruvec.nr_gens(ANON), lruvec.nr_gens(FILE)];
    if gens[FILE] < MIN_NR_GENS || gens[FILE] > gens[ANON] || gens[ANON] > MAX_NR_GENS {
        return Err(format!(
            "{} generations of anon and {} of file, the youngest {max_seq}",
            gens[ANON], gens[FILE]
        ));
    }
    let mut sums = [[0i64; MAX_NR_GENS]; NR_TYPES];
    for generation in 0..MAX_NR_GENS {
        for (ty, sums) in sums.iter_mut().enumerate() {
            let exists = (lruvec.min_seq(ty)..=max_seq).any(|s| gen_from_seq(s) == generation);
            for pfn in lists.from_tail(memory, generation, ty) {
                let word = memory.word(pfn).get();
                if !exists {
                    return Err(format!("{pfn:?} is on the list of no generation: {word:?}"));
                }
                if std::mem::replace(&mut listed[pfn.0 as usize], true) {
                    return Err(format!(
                        "{pfn:?} is on two lists, or on one twice: {word:?}"
                    ));
                }
                let ours = word.memcg() == lruvec.memcg && word.node() == lruvec.node;
                if !ours || type_of(word) != ty || !word.has(LRU) {
                    return Err(format!("{pfn:?} is on a list of type {ty}: {word:?}"));
                }
                let Some(generation) = word.generation() else {
                    return Err(format!("{pfn:?} is listed and isolated: {word:?}"));
                };
                sums[generation] += word.nr_pages() as i64;
            }
        }
    }
    for (ty, generations) in sums.iter().enumerate() {
        for (generation, &sum) in generations.iter().enumerate() {
            let size = lruvec.nr_pages(generation, ty);
            if size != sum {
                return Err(format!(
                    "slot {generation} of type {ty} counts {size} pages and has {sum}"
                ));
            }
        }
    }
    for (ty, generations) in sums.iter().enumerate() {
        for active in [false, true] {
            let sum: i64 = (generations.iter().enumerate())
                .filter(|&(generation, _)| lruvec.is_active(generation) == active)
                .map(|(_, &sum)| sum)
                .sum();
            let size = lruvec.lru_size(ty, active);
            if size as i64 != sum {
                return Err(format!(
                    "vmstat counts {size} pages of type {ty}, active {active}, and there are {sum}"
                ));
            }
        }
    }
    Ok(())
}
