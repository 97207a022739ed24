//! The LRU of memory cgroups of a node, from which reclaim for the whole machine
//! takes one after the other (`mm/vmscan.c`, "memcg LRU").

/// Generations of memory cgroups (`MEMCG_NR_GENS`): old, young, and one that
/// lets latecomers of a round be told from the next.
const MEMCG_NR_GENS: usize = 3;
/// Bins of a generation (`MEMCG_NR_BINS`): a random place for each rotation
/// keeps concurrent reclaimers apart.
pub(super) const MEMCG_NR_BINS: usize = 8;

/// Where a memory cgroup stands.
#[derive(Clone, Copy)]
struct Place {
    generation: usize,
    bin: usize,
    /// It was moved to the tail once already (`MEMCG_LRU_TAIL` in `seg`).
    at_tail: bool,
}

/// Moves in the memory cgroup LRU.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Rotation {
    /// To the tail of its generation: one more try in this round.
    Tail,
    /// To the next generation: done for this round.
    Young,
}

/// The LRU of memory cgroups of a node (`struct lru_gen_memcg`).
pub(super) struct MemcgLru {
    seq: u64,
    fifo: [[Vec<u16>; MEMCG_NR_BINS]; MEMCG_NR_GENS],
    nr_memcgs: [usize; MEMCG_NR_GENS],
    /// By number; that of none is empty.
    places: Vec<Option<Place>>,
    random: u64,
}

impl MemcgLru {
    pub(super) fn new() -> Self {
        MemcgLru {
            seq: 0,
            fifo: Default::default(),
            nr_memcgs: [0; MEMCG_NR_GENS],
            places: Vec::new(),
            random: 0x9e37_79b9_7f4a_7c15,
        }
    }

    pub(super) fn generation(&self) -> usize {
        (self.seq % MEMCG_NR_GENS as u64) as usize
    }

    fn place(&self, id: u16) -> Option<Place> {
        *self.places.get(usize::from(id))?
    }

    /// The memory cgroup at place `n` of a bin, and whether it was moved to the
    /// tail once already.
    pub(super) fn nth(&self, generation: usize, bin: usize, n: usize) -> Option<(u16, bool)> {
        let &id = self.fifo[generation][bin].get(n)?;
        Some((id, self.place(id)?.at_tail))
    }

    /// A bin, by a generator that begins alike on every host (xorshift).
    pub(super) fn random_bin(&mut self) -> usize {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 32) as usize % MEMCG_NR_BINS
    }

    pub(super) fn online(&mut self, id: u16) {
        let place = Place {
            generation: self.generation(),
            bin: self.random_bin(),
            at_tail: false,
        };
        let at = usize::from(id);
        if self.places.len() <= at {
            self.places.resize(at + 1, None);
        }
        debug_assert!(self.places[at].is_none(), "memcg {id} is there already");
        self.places[at] = Some(place);
        self.fifo[place.generation][place.bin].push(id);
        self.nr_memcgs[place.generation] += 1;
    }

    /// Move a memory cgroup (`lru_gen_rotate_memcg()`). The round ends when its
    /// generation is empty.
    pub(super) fn rotate(&mut self, id: u16, rotation: Rotation) {
        let Some(old) = self.place(id) else {
            return;
        };
        let new = Place {
            generation: match rotation {
                Rotation::Tail => old.generation,
                Rotation::Young => ((self.seq + 1) % MEMCG_NR_GENS as u64) as usize,
            },
            bin: self.random_bin(),
            at_tail: rotation == Rotation::Tail,
        };
        self.fifo[old.generation][old.bin].retain(|&other| other != id);
        self.fifo[new.generation][new.bin].push(id);
        self.places[usize::from(id)] = Some(new);
        self.nr_memcgs[old.generation] -= 1;
        self.nr_memcgs[new.generation] += 1;
        if self.nr_memcgs[old.generation] == 0 && old.generation == self.generation() {
            self.seq += 1;
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_round_of_the_memcg_lru_visits_everyone_and_ends() {
        let mut lru = MemcgLru::new();
        for id in 1..=20 {
            lru.online(id);
        }
        let seq = lru.seq;
        for id in 1..20 {
            lru.rotate(id, Rotation::Young);
            assert_eq!(lru.seq, seq);
        }
        lru.rotate(20, Rotation::Tail);
        assert!(lru.place(20).is_some_and(|place| place.at_tail));
        assert_eq!(lru.seq, seq);
        lru.rotate(20, Rotation::Young);
        assert_eq!(lru.seq, seq + 1);
        assert_eq!(lru.nr_memcgs.iter().sum::<usize>(), 20);
        assert_eq!(lru.nr_memcgs[lru.generation()], 20);
        let listed: usize = lru.fifo.iter().flatten().map(Vec::len).sum();
        assert_eq!(listed, 20);
    }
}
