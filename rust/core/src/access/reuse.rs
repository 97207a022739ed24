//! How far apart the uses of a page are, which says what a cache of any size
//! would miss.

/// A distance of a page's first use, which has none before it.
pub const FIRST: i64 = -1;

/// Sums of prefixes of an array of 0 and 1 whose elements change (a Fenwick tree).
struct Marks {
    tree: Vec<u32>,
}

impl Marks {
    fn new(length: usize) -> Marks {
        Marks {
            tree: vec![0; length + 1],
        }
    }

    fn change(&mut self, at: usize, by: i32) {
        let mut i = at + 1;
        while i < self.tree.len() {
            self.tree[i] = self.tree[i].wrapping_add_signed(by);
            i += i & i.wrapping_neg();
        }
    }

    /// How many marks are before `end`.
    fn before(&self, end: usize) -> u32 {
        let (mut i, mut sum) = (end, 0);
        while i > 0 {
            sum += self.tree[i];
            i &= i - 1;
        }
        sum
    }
}

/// For each access how many different other pages were used since the page's
/// last use (its LRU stack distance), or [`FIRST`].
///
/// An LRU list of `n` pages misses exactly the accesses whose distance is `n` or
/// more, and first uses (Mattson et al., 1970). Time grows as `n log n`.
pub fn distances(pages: &[u32]) -> Vec<i64> {
    let nr_pages = pages.iter().max().map_or(0, |&page| page as usize + 1);
    let mut last = vec![usize::MAX; nr_pages];
    // A mark at each page's latest use: between two uses of a page there are as
    // many marks as there were other pages.
    let mut marks = Marks::new(pages.len());
    let mut nr_marks = 0;
    let mut found = Vec::with_capacity(pages.len());
    for (at, &page) in pages.iter().enumerate() {
        let before = std::mem::replace(&mut last[page as usize], at);
        if before == usize::MAX {
            nr_marks += 1;
            found.push(FIRST);
        } else {
            found.push(i64::from(nr_marks - marks.before(before + 1)));
            marks.change(before, -1);
        }
        marks.change(at, 1);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{RngCore, SeedableRng};
    use rand_xoshiro::Xoshiro256PlusPlus;
    use std::collections::HashSet;

    fn plainly(pages: &[u32]) -> Vec<i64> {
        let since = |at: usize| {
            let before = pages[..at].iter().rposition(|&page| page == pages[at])?;
            let others: HashSet<_> = pages[before + 1..at].iter().collect();
            Some(others.len() as i64)
        };
        (0..pages.len())
            .map(|at| since(at).unwrap_or(FIRST))
            .collect()
    }

    #[test]
    fn distances_are_the_numbers_of_other_pages() {
        assert!(distances(&[]).is_empty());
        assert_eq!(distances(&[5, 5, 1, 1, 5]), [FIRST, 0, FIRST, 0, 1]);
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(11);
        for length in 1..100 {
            let pages: Vec<u32> = (0..length).map(|_| (rng.next_u64() % 9) as u32).collect();
            assert_eq!(distances(&pages), plainly(&pages), "{pages:?}");
        }
    }
}
