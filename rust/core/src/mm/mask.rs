//! Which pages of one PTE table: a bit each.

use crate::table::TABLE_ENTRIES;

const BITS: usize = u64::BITS as usize;
const WORDS: usize = TABLE_ENTRIES.div_ceil(BITS);

/// A set of up to [`TABLE_ENTRIES`] pages that follow each other; which page is
/// the first is the caller's to say.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PageMask([u64; WORDS]);

impl PageMask {
    /// No page.
    pub const EMPTY: PageMask = PageMask([0; WORDS]);
    /// How many pages a mask has room for.
    pub const LEN: usize = TABLE_ENTRIES;

    /// Put page `n` in.
    #[inline]
    pub fn set(&mut self, n: usize) {
        self.0[n / BITS] |= 1 << (n % BITS);
    }

    /// Whether page `n` is in.
    #[inline]
    pub fn has(&self, n: usize) -> bool {
        n < Self::LEN && self.0[n / BITS] >> (n % BITS) & 1 != 0
    }

    /// Whether no page is in.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|&word| word == 0)
    }

    /// How many pages are in.
    #[inline]
    pub fn count(&self) -> u64 {
        self.0.iter().map(|word| u64::from(word.count_ones())).sum()
    }

    /// The first page that is in, and one past the last.
    #[inline]
    pub fn span(&self) -> Option<(usize, usize)> {
        let first = self.iter().next()?;
        let last = self.0.iter().rposition(|&word| word != 0)?;
        let end = last * BITS + BITS - self.0[last].leading_zeros() as usize;
        Some((first, end))
    }

    /// The pages that are in, in order.
    #[inline]
    pub fn iter(&self) -> impl Iterator<Item = usize> + '_ {
        self.0.iter().enumerate().flat_map(|(n, &word)| {
            let mut rest = word;
            std::iter::from_fn(move || {
                let bit = rest.trailing_zeros() as usize;
                rest &= rest.wrapping_sub(1);
                (bit < BITS).then_some(n * BITS + bit)
            })
        })
    }

    /// Pages `[n, n + 8)`, as bits; those beyond the last are not in.
    #[inline]
    pub fn byte(&self, n: usize) -> u8 {
        let shift = n % BITS;
        let at = |word: usize| self.0.get(word).copied().unwrap_or(0);
        let low = at(n / BITS) >> shift;
        let high = if shift > BITS - 8 {
            at(n / BITS + 1) << (BITS - shift)
        } else {
            0
        };
        (low | high) as u8
    }

    /// Put the pages in that `byte` names, the lowest bit being page `n`.
    #[inline]
    pub fn add_byte(&mut self, n: usize, byte: u8) {
        let shift = n % BITS;
        self.0[n / BITS] |= u64::from(byte) << shift;
        if shift > BITS - 8 {
            let high = u64::from(byte) >> (BITS - shift);
            if high != 0 {
                self.0[n / BITS + 1] |= high;
            }
        }
    }

    /// Words of 64 pages, the lowest bit being the first of them.
    #[inline]
    pub fn words_mut(&mut self) -> &mut [u64] {
        &mut self.0
    }
}

impl std::ops::BitOr for PageMask {
    type Output = PageMask;
    #[inline]
    fn bitor(mut self, other: PageMask) -> PageMask {
        self |= other;
        self
    }
}

impl std::ops::BitOrAssign for PageMask {
    #[inline]
    fn bitor_assign(&mut self, other: PageMask) {
        for (mine, theirs) in self.0.iter_mut().zip(other.0) {
            *mine |= theirs;
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn a_mask_is_a_set_of_pages() {
        let pages = BTreeSet::from([0, 1, 7, 63, 64, 65, 120, 128, 255, 511]);
        let mut mask = PageMask::EMPTY;
        assert!(mask.is_empty() && mask.span().is_none());
        pages.iter().for_each(|&n| mask.set(n));
        assert!(!mask.is_empty());
        assert_eq!(mask.iter().collect::<BTreeSet<_>>(), pages);
        assert_eq!(mask.count(), pages.len() as u64);
        assert_eq!(mask.span(), Some((0, 512)));
        assert!((0..600).all(|n| mask.has(n) == pages.contains(&n)));
        let mut rebuilt = PageMask::EMPTY;
        for n in 0..512 {
            let expected = (0..8).filter(|bit| pages.contains(&(n + bit)));
            let expected = expected.fold(0u8, |byte, bit| byte | 1 << bit);
            assert_eq!(mask.byte(n), expected, "{n}");
            let mut one = PageMask::EMPTY;
            one.add_byte(n, expected);
            let within = pages.range(n..n + 8).copied().collect::<Vec<_>>();
            assert_eq!(one.iter().collect::<Vec<_>>(), within, "{n}");
            rebuilt |= one;
        }
        assert_eq!(rebuilt, mask);
        assert_eq!(mask | PageMask::EMPTY, mask);
        let mut one = PageMask::EMPTY;
        one.set(70);
        assert_eq!(one.span(), Some((70, 71)));
    }
}
