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

/// Moves in the memory cgroup LRU. The fourth, to the head of its generation, is
/// for a memory cgroup above its soft limit, which cgroup v2 does not have.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Rotation {
    /// To the tail of its generation: one more try in this round.
    Tail,
    /// To the head of a bin of the old generation: among the next.
    Old,
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
                Rotation::Old => self.generation(),
                Rotation::Young => ((self.seq + 1) % MEMCG_NR_GENS as u64) as usize,
            },
            bin: self.random_bin(),
            at_tail: rotation == Rotation::Tail,
        };
        self.fifo[old.generation][old.bin].retain(|&other| other != id);
        let bin = &mut self.fifo[new.generation][new.bin];
        bin.insert(
            if rotation == Rotation::Old {
                0
            } else {
                bin.len()
            },
            id,
        );
        self.places[usize::from(id)] = Some(new);
        self.nr_memcgs[new.generation] += 1;
        self.leave(old.generation);
    }

    /// Take out a memory cgroup that was removed and has nothing left
    /// (`lru_gen_release_memcg()`).
    pub(super) fn release(&mut self, id: u16) {
        if let Some(old) = self.place(id) {
            self.fifo[old.generation][old.bin].retain(|&other| other != id);
            self.places[usize::from(id)] = None;
            self.leave(old.generation);
        }
    }

    /// One less is in a generation.
    fn leave(&mut self, generation: usize) {
        self.nr_memcgs[generation] -= 1;
        if self.nr_memcgs[generation] == 0 && generation == self.generation() {
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

    #[test]
    fn a_removed_memcg_is_next_and_its_release_can_end_the_round() {
        let mut lru = MemcgLru::new();
        for id in 1..=40 {
            lru.online(id);
        }
        for id in 1..=40 {
            lru.rotate(id, Rotation::Young);
        }
        assert_eq!(lru.seq, 1);
        for id in 1..=39 {
            lru.rotate(id, Rotation::Young);
        }
        // From the young generation to the old one, before whoever is there.
        lru.rotate(7, Rotation::Old);
        lru.rotate(40, Rotation::Tail);
        lru.rotate(8, Rotation::Old);
        for id in [7, 8] {
            let place = lru.place(id).expect("listed");
            assert_eq!(place.generation, lru.generation());
            let first = lru.nth(place.generation, place.bin, 0);
            assert!(first.is_some_and(|(id, at_tail)| id != 40 && !at_tail));
        }
        lru.rotate(40, Rotation::Young);
        lru.release(7);
        assert_eq!(lru.seq, 1);
        lru.release(8);
        assert_eq!(lru.seq, 2);
        // It is not there: nothing happens.
        lru.release(8);
        lru.rotate(8, Rotation::Old);
        assert_eq!(lru.nr_memcgs.iter().sum::<usize>(), 38);
        assert_eq!(lru.fifo.iter().flatten().map(Vec::len).sum::<usize>(), 38);
    }
}
