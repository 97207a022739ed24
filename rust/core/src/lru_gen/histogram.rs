//! Generation histograms: taken from the model, or read from what a real
//! kernel's `lru_gen` and `lru_gen_full` printed, as the same objects.

use super::lruvec::{
    LruVec, MAX_NR_GENS, MAX_NR_TIERS, MmStat, NR_TYPES, gen_from_seq, hist_from_seq,
};
use crate::error::Result;
use crate::host::Host;
use crate::mm::Memcg;
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::text::{self, Cursor};

/// One generation of a lruvec.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Generation {
    /// Its number.
    pub seq: u64,
    /// Milliseconds since it was made.
    pub age_ms: u64,
    /// Pages, anonymous and file.
    pub pages: [u64; NR_TYPES],
    /// Whether it is below the type's oldest generation (`x` in
    /// `lru_gen_full`).
    pub retired: [bool; NR_TYPES],
    /// What `lru_gen_full` tells besides.
    pub full: Option<Full>,
}

/// The rest of a generation in `lru_gen_full`: numbers, each with the letter
/// that is printed after it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Full {
    /// Per tier, three numbers for anonymous and three for file pages.
    pub tiers: Vec<[(u64, u8); 6]>,
    /// Counts of the aging walk.
    pub walk: Vec<(u64, u8)>,
}

/// The generations of one node, oldest first.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct NodeHistogram {
    /// The node.
    pub node: usize,
    /// Its generations.
    pub generations: Vec<Generation>,
}

/// The histogram of one memory cgroup.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct MemcgHistogram {
    /// The number that commands use.
    pub id: u16,
    /// Path below the cgroup mount point.
    pub path: String,
    /// Its nodes.
    pub nodes: Vec<NodeHistogram>,
}

impl MemcgHistogram {
    /// Pages per generation over all nodes, `(seq, anon, file)`, oldest first.
    pub fn totals(&self) -> Vec<(u64, u64, u64)> {
        let mut sums = std::collections::BTreeMap::<u64, (u64, u64)>::new();
        for generation in self.nodes.iter().flat_map(|node| &node.generations) {
            let sum = sums.entry(generation.seq).or_default();
            sum.0 += generation.pages[0];
            sum.1 += generation.pages[1];
        }
        sums.into_iter()
            .map(|(seq, (anon, file))| (seq, anon, file))
            .collect()
    }
}

/// Which letters end a generation in `lru_gen_full`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Letters {
    /// LOYNFA: before 6.12-rc6, and v7.
    Six,
    /// TYFA: 6.12.
    Four,
}

impl Letters {
    fn stats(self) -> &'static [(MmStat, u8)] {
        match self {
            Letters::Six => &[
                (MmStat::LeafTotal, b'l'),
                (MmStat::LeafOld, b'o'),
                (MmStat::LeafYoung, b'y'),
                (MmStat::NonleafTotal, b'n'),
                (MmStat::NonleafFound, b'f'),
                (MmStat::NonleafAdded, b'a'),
            ],
            Letters::Four => &[
                (MmStat::LeafTotal, b't'),
                (MmStat::LeafYoung, b'y'),
                (MmStat::NonleafFound, b'f'),
                (MmStat::NonleafAdded, b'a'),
            ],
        }
    }
}

impl LruVec {
    /// The generations now, oldest first; from anon's oldest as in `lru_gen`,
    /// or with `letters` the last four with their history, as in
    /// `lru_gen_full`.
    pub fn generations(&self, now_ns: u64, letters: Option<Letters>) -> Vec<Generation> {
        let max_seq = self.max_seq();
        let min_seq = [self.min_seq(0), self.min_seq(1)];
        let first = if letters.is_some() {
            (max_seq + 1).saturating_sub(MAX_NR_GENS as u64)
        } else {
            min_seq[0]
        };
        (first..=max_seq)
            .map(|seq| {
                let generation = gen_from_seq(seq);
                Generation {
                    seq,
                    age_ms: now_ns.saturating_sub(self.timestamp(seq)) / 1_000_000,
                    pages: std::array::from_fn(|ty| self.nr_pages(generation, ty).max(0) as u64),
                    retired: std::array::from_fn(|ty| letters.is_some() && seq < min_seq[ty]),
                    full: letters.map(|letters| self.full(seq, max_seq, letters)),
                }
            })
            .collect()
    }

    fn full(&self, seq: u64, max_seq: u64, letters: Letters) -> Full {
        let hist = hist_from_seq(seq);
        let get = |n: &AtomicU64| n.load(Ordering::Relaxed);
        let youngest = seq == max_seq;
        let tiers = (0..MAX_NR_TIERS).map(|tier| {
            let mut row = [(0, b'x'); 6];
            for ty in 0..NR_TYPES {
                let three = if youngest {
                    [
                        (get(&self.avg_refaulted[ty][tier]), b'R'),
                        (get(&self.avg_total[ty][tier]), b'T'),
                        (0, b'x'),
                    ]
                } else {
                    [
                        (get(&self.refaulted[hist][ty][tier]), b'r'),
                        (get(&self.evicted[hist][ty][tier]), b'e'),
                        (get(&self.protected[hist][ty][tier]), b'p'),
                    ]
                };
                row[3 * ty..3 * ty + 3].copy_from_slice(&three);
            }
            row
        });
        let walk = letters.stats().iter().map(|&(stat, letter)| {
            if youngest {
                (0, b'x')
            } else {
                (get(&self.mm_state.stats[hist][stat as usize]), letter)
            }
        });
        Full {
            tiers: tiers.collect(),
            walk: walk.collect(),
        }
    }
}

/// The histogram of one memory cgroup, all nodes.
pub fn of_memcg(host: &Host, memcg: &Memcg, letters: Option<Letters>) -> MemcgHistogram {
    let now_ns = host.clock.now_ns();
    MemcgHistogram {
        // One that was removed has given up its number (`mem_cgroup_id_put()`).
        id: if memcg.is_online() { memcg.id } else { 0 },
        path: memcg.name.clone(),
        nodes: memcg
            .lruvecs
            .iter()
            .map(|lruvec| NodeHistogram {
                node: lruvec.node,
                generations: lruvec.generations(now_ns, letters),
            })
            .collect(),
    }
}

/// The histograms of every memory cgroup.
pub fn of_host(host: &Host, letters: Option<Letters>) -> Vec<MemcgHistogram> {
    host.memcgs()
        .iter()
        .map(|memcg| of_memcg(host, memcg, letters))
        .collect()
}

/// Histograms as the kernel prints them (`lru_gen_seq_show()`).
pub fn print(histograms: &[MemcgHistogram]) -> String {
    let mut out = String::new();
    for memcg in histograms {
        out.push_str("memcg ");
        number(&mut out, memcg.id.into(), 5);
        out.push(' ');
        out.push_str(&memcg.path);
        out.push('\n');
        for node in &memcg.nodes {
            out.push_str(" node ");
            number(&mut out, node.node as u64, 5);
            out.push('\n');
            for generation in &node.generations {
                for n in [generation.seq, generation.age_ms] {
                    out.push(' ');
                    number(&mut out, n, 10);
                }
                for ty in 0..NR_TYPES {
                    out.push(' ');
                    number(&mut out, generation.pages[ty], 10);
                    out.push(if generation.retired[ty] { 'x' } else { ' ' });
                }
                out.push('\n');
                let Some(full) = &generation.full else {
                    continue;
                };
                for (tier, row) in full.tiers.iter().enumerate() {
                    out.push_str("            ");
                    number(&mut out, tier as u64, 10);
                    lettered(&mut out, row);
                }
                if !full.walk.is_empty() {
                    out.push_str("                      ");
                    lettered(&mut out, &full.walk);
                }
            }
        }
    }
    out
}

fn lettered(out: &mut String, numbers: &[(u64, u8)]) {
    for &(n, letter) in numbers {
        out.push(' ');
        number(out, n, 10);
        out.push(char::from(letter));
    }
    out.push('\n');
}

/// A number, right-aligned (`%10lu`). By hand: there are a few for every
/// generation of every memory cgroup, and formatting machinery takes longer
/// than reading them.
fn number(out: &mut String, mut n: u64, width: usize) {
    let mut digits = [b' '; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (n % 10) as u8;
        n /= 10;
        if n == 0 {
            break;
        }
    }
    let start = at.min(digits.len() - width);
    out.extend(digits[start..].iter().map(|&digit| char::from(digit)));
}

/// Read what a kernel's `lru_gen` or `lru_gen_full` printed.
///
/// # Errors
/// `EINVAL` with line and column of the first thing that cannot be.
pub fn parse(text: &[u8]) -> Result<Vec<MemcgHistogram>> {
    let mut memcgs: Vec<MemcgHistogram> = Vec::new();
    for line in text::lines(text) {
        let mut cursor = line.clone();
        match cursor.word() {
            None => {}
            Some(b"memcg") => memcgs.push(parse_memcg(cursor)?),
            Some(b"node") => {
                let memcg = memcgs.last_mut();
                let memcg = memcg.ok_or_else(|| line.expected("a memcg line"))?;
                let node = cursor.number("a node number", 1 << 20)? as usize;
                cursor.end()?;
                let generations = Vec::new();
                memcg.nodes.push(NodeHistogram { node, generations });
            }
            Some(_) => {
                let node = memcgs.last_mut().and_then(|memcg| memcg.nodes.last_mut());
                let node = node.ok_or_else(|| line.expected("a memcg or node line"))?;
                parse_numbers(line, &mut node.generations)?;
            }
        }
    }
    Ok(memcgs)
}

fn parse_memcg(mut cursor: Cursor<'_>) -> Result<MemcgHistogram> {
    let id = cursor.number("a memcg number", u64::from(u16::MAX))? as u16;
    // One space, then the path as it is.
    if cursor.peek() == Some(b' ') {
        cursor.bump();
    }
    let path = std::str::from_utf8(cursor.rest());
    let path = path.map_err(|_| cursor.expected("a path in UTF-8"))?;
    Ok(MemcgHistogram {
        id,
        path: path.to_owned(),
        nodes: Vec::new(),
    })
}

/// A line of numbers, each perhaps with a letter: a generation has four
/// without letters but `x`, a tier one without and six with, a walk only such
/// with.
fn parse_numbers(line: Cursor<'_>, generations: &mut Vec<Generation>) -> Result<()> {
    let mut cursor = line.clone();
    let mut found: Vec<(u64, Option<u8>)> = Vec::new();
    loop {
        cursor.skip_spaces();
        if cursor.rest().is_empty() {
            break;
        }
        let before = cursor.clone();
        let word = cursor.word().unwrap_or_default();
        let (digits, letter) = match word.split_last() {
            Some((last, rest)) if last.is_ascii_alphabetic() => (rest, Some(*last)),
            _ => (word, None),
        };
        let number = std::str::from_utf8(digits)
            .ok()
            .filter(|digits| digits.bytes().all(|b| b.is_ascii_digit()))
            .and_then(|digits| digits.parse().ok());
        let number = number.ok_or_else(|| before.expected("a number, perhaps with a letter"))?;
        found.push((number, letter));
    }
    let pair = |(number, letter): &(u64, Option<u8>)| letter.map(|letter| (*number, letter));
    match found.as_slice() {
        [(seq, None), (age_ms, None), anon, file] => {
            let mark = |(_, letter): &(u64, Option<u8>)| match letter {
                None => Ok(false),
                Some(b'x') => Ok(true),
                Some(_) => Err(line.expected("pages, perhaps with an x")),
            };
            if generations.last().is_some_and(|last| last.seq >= *seq) {
                return Err(line.expected("a generation younger than the one before"));
            }
            generations.push(Generation {
                seq: *seq,
                age_ms: *age_ms,
                pages: [anon.0, file.0],
                retired: [mark(anon)?, mark(file)?],
                full: None,
            });
        }
        [(tier, None), numbers @ ..] if numbers.len() == 6 => {
            let last = generations.last_mut();
            let last = last.ok_or_else(|| line.expected("a generation"))?;
            let full = last.full.get_or_insert_default();
            let row: Option<Vec<_>> = numbers.iter().map(pair).collect();
            let row = row.and_then(|row| <[_; 6]>::try_from(row).ok());
            let row = row.filter(|_| *tier == full.tiers.len() as u64 && full.walk.is_empty());
            full.tiers
                .push(row.ok_or_else(|| line.expected("the next tier"))?);
        }
        numbers if matches!(numbers.len(), 4 | 6) && numbers[0].1.is_some() => {
            let full = generations.last_mut().and_then(|last| last.full.as_mut());
            let full = full.filter(|full| full.walk.is_empty());
            let full = full.ok_or_else(|| line.expected("tiers before the walk's counts"))?;
            let walk: Option<Vec<_>> = numbers.iter().map(pair).collect();
            full.walk = walk.ok_or_else(|| line.expected("a letter after each number"))?;
        }
        _ => return Err(line.expected("a generation, a tier or a walk's counts")),
    }
    Ok(())
}
