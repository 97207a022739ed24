//! The scenario language: one operation a line, `#` begins a comment.

use crate::error::Result;
use crate::text::{self, Cursor};

/// What a region is made of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MapKind {
    /// Private anonymous memory.
    Anon,
    /// A shared file mapping.
    File,
    /// The same, with `MADV_RANDOM`.
    FileRandom,
    /// Shared memory.
    Shmem,
}

impl MapKind {
    /// The word in scenarios and recordings.
    pub const fn name(self) -> &'static str {
        match self {
            MapKind::Anon => "anon",
            MapKind::File => "file",
            MapKind::FileRandom => "filernd",
            MapKind::Shmem => "shmem",
        }
    }

    /// Whether its pages are a file's.
    pub const fn is_file(self) -> bool {
        matches!(self, MapKind::File | MapKind::FileRandom)
    }
}

/// Some pages of a region: `count` from `start`, every `stride`-th.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pages {
    /// The region's name.
    pub region: String,
    /// The first.
    pub start: u64,
    /// How many.
    pub count: u64,
    /// Distance of one to the next.
    pub stride: u64,
}

impl Pages {
    /// Their numbers in the region.
    pub fn iter(&self) -> impl Iterator<Item = u64> + use<> {
        let (start, stride) = (self.start, self.stride);
        (0..self.count).map(move |n| start + n * stride)
    }

    /// One past the last.
    pub fn end(&self) -> u64 {
        match self.count {
            0 => self.start,
            n => self.start + (n - 1) * self.stride + 1,
        }
    }
}

/// A generation that `evict` names.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Which {
    /// The oldest.
    Min,
    /// Relative to the youngest.
    Relative(i64),
}

/// One operation.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Op {
    /// The worker maps a region.
    Map {
        /// Its name.
        region: String,
        /// What it is.
        kind: MapKind,
        /// Its size.
        pages: u64,
        /// Which file or shmem; otherwise one of its own.
        path: Option<String>,
        /// How large that is: as the largest region of it in the scenario.
        file_pages: u64,
    },
    /// The worker touches pages; or a VM's vCPU does.
    Touch {
        /// None for the worker, else the VM's number from 0.
        vm: Option<usize>,
        /// Which pages.
        pages: Pages,
        /// Whether it writes.
        write: bool,
    },
    /// The worker reads pages by file descriptor.
    Read(Pages),
    /// Make a VM.
    Vm(usize),
    /// Give a VM a region as memslot (for the first time or again).
    VmSlot {
        /// Which VM.
        vm: usize,
        /// The region.
        region: String,
    },
    /// Delete a VM's memslot.
    VmDel {
        /// Which VM.
        vm: usize,
        /// The region.
        region: String,
    },
    /// One aging command.
    Age {
        /// Whether anonymous pages can be swapped.
        can_swap: u64,
        /// Whether to scan all.
        force: u64,
    },
    /// One eviction command.
    Evict {
        /// Which generation.
        which: Which,
        /// The swappiness.
        swappiness: u64,
        /// Pages to reclaim.
        nr: u64,
    },
    /// Text written to `lru_gen`.
    Raw(String),
    /// A value written to a file of the memory cgroup.
    Memset {
        /// The file.
        file: String,
        /// The value.
        value: String,
    },
    /// A value written to any file.
    Write {
        /// The file.
        file: String,
        /// The value.
        value: String,
    },
    /// Compare pages' contents.
    Check {
        /// Which pages.
        pages: Pages,
        /// What they should hold.
        byte: u8,
    },
    /// Wait, milliseconds.
    Sleep(u64),
    /// Only record.
    Snap,
}

/// An operation, and where it stands.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Step {
    /// Line in the scenario.
    pub line: usize,
    /// The operation's name.
    pub name: String,
    /// Its arguments as written, single-spaced.
    pub args: String,
    /// What it means.
    pub op: Op,
}

/// The largest number of pages that a scenario may name.
const MAX_PAGES: u64 = 1 << 32;

/// Read a scenario.
///
/// # Errors
/// `EINVAL` with line and column of the first mistake.
pub fn parse(text: &[u8]) -> Result<Vec<Step>> {
    let mut steps = Vec::new();
    let mut known = Known::default();
    for mut cursor in text::lines(text) {
        let line = cursor.rest();
        if line.trim_ascii_start().first().is_none_or(|&b| b == b'#') {
            continue;
        }
        if std::str::from_utf8(line).is_err() {
            return Err(cursor.expected("text in UTF-8"));
        }
        // A comment may follow an operation.
        let end = line
            .windows(2)
            .position(|pair| text::is_space(pair[0]) && pair[1] == b'#')
            .unwrap_or(line.len());
        cursor = Cursor::new(&line[..end], cursor.line_number(), 0);
        cursor.skip_spaces();
        let place = cursor.clone();
        let name = string(cursor.word().unwrap_or_default());
        let args = cursor.clone();
        let op = parse_op(&name, &place, &mut cursor, &mut known)?;
        cursor.end()?;
        steps.push(Step {
            line: place.line_number(),
            args: string(args.rest())
                .split_whitespace()
                .collect::<Vec<_>>()
                .join(" "),
            name,
            op,
        });
    }
    for step in &mut steps {
        if let Op::Map {
            path: Some(path),
            file_pages,
            ..
        } = &mut step.op
        {
            *file_pages = known.file(path).map_or(0, |file| file.pages);
        }
    }
    Ok(steps)
}

/// What the lines so far have named.
#[derive(Default)]
struct Known {
    /// Regions, and their sizes.
    regions: Vec<(String, u64)>,
    files: Vec<File>,
}

/// A file or shmem that has a path.
struct File {
    path: String,
    is_shmem: bool,
    /// Of the largest region of it.
    pages: u64,
}

impl Known {
    fn file(&mut self, path: &str) -> Option<&mut File> {
        self.files.iter_mut().find(|file| file.path == path)
    }
}

fn string(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn word(cursor: &mut Cursor<'_>, what: &str) -> Result<String> {
    match cursor.word() {
        Some(word) => Ok(string(word)),
        None => Err(cursor.expected(what)),
    }
}

fn rest(cursor: &mut Cursor<'_>, what: &str) -> Result<String> {
    cursor.skip_spaces();
    let text = string(cursor.rest().trim_ascii());
    if text.is_empty() {
        return Err(cursor.expected(what));
    }
    while cursor.bump().is_some() {}
    Ok(text)
}

fn region(cursor: &mut Cursor<'_>, regions: &[(String, u64)]) -> Result<(String, u64)> {
    cursor.skip_spaces();
    let place = cursor.clone();
    let name = word(cursor, "a region's name")?;
    let found = regions.iter().find(|(known, _)| *known == name);
    found
        .cloned()
        .ok_or_else(|| place.expected("a region mapped before"))
}

fn pages(cursor: &mut Cursor<'_>, regions: &[(String, u64)]) -> Result<Pages> {
    let (region, size) = region(cursor, regions)?;
    let place = cursor.clone();
    let pages = Pages {
        region,
        start: cursor.number("the first page", MAX_PAGES)?,
        count: cursor.number("a number of pages", MAX_PAGES)?,
        stride: cursor.number("a stride", MAX_PAGES)?,
    };
    let end = u128::from(pages.start)
        + u128::from(pages.count.saturating_sub(1)) * u128::from(pages.stride);
    if pages.count > 0 && end >= u128::from(size) {
        let mut place = place;
        place.skip_spaces();
        return Err(place.expected(&format!("pages within the region's {size}")));
    }
    Ok(pages)
}

fn write_or_read(cursor: &mut Cursor<'_>) -> Result<bool> {
    cursor.skip_spaces();
    let place = cursor.clone();
    match cursor.word() {
        Some(b"w") => Ok(true),
        Some(b"r") => Ok(false),
        _ => Err(place.expected("r or w")),
    }
}

fn parse_map(cursor: &mut Cursor<'_>, known: &mut Known) -> Result<Op> {
    cursor.skip_spaces();
    let place = cursor.clone();
    let region = word(cursor, "a region's name")?;
    if known.regions.iter().any(|(name, _)| *name == region) {
        return Err(place.expected("the name of a new region"));
    }
    cursor.skip_spaces();
    let place = cursor.clone();
    let kind = match cursor.word() {
        Some(b"anon") => MapKind::Anon,
        Some(b"file") => MapKind::File,
        Some(b"filernd") => MapKind::FileRandom,
        Some(b"shmem") => MapKind::Shmem,
        _ => return Err(place.expected("anon, file, filernd or shmem")),
    };
    cursor.skip_spaces();
    let place = cursor.clone();
    let pages = cursor.number("a number of pages", MAX_PAGES)?;
    if pages == 0 {
        return Err(place.expected("at least 1 page"));
    }
    cursor.skip_spaces();
    let place = cursor.clone();
    let path = match kind {
        // Nothing else can map it: a path is what the line must not have.
        MapKind::Anon => None,
        _ => cursor.word().map(string),
    };
    if let Some(path) = &path {
        let is_shmem = kind == MapKind::Shmem;
        match known.file(path) {
            Some(file) if file.is_shmem != is_shmem => {
                return Err(place.expected(if is_shmem {
                    "a path that is no file's"
                } else {
                    "a path that is no shmem's"
                }));
            }
            Some(file) => file.pages = file.pages.max(pages),
            None => known.files.push(File {
                path: path.clone(),
                is_shmem,
                pages,
            }),
        }
    }
    known.regions.push((region.clone(), pages));
    Ok(Op::Map {
        region,
        kind,
        pages,
        path,
        file_pages: pages,
    })
}

fn parse_op(
    name: &str,
    place: &Cursor<'_>,
    cursor: &mut Cursor<'_>,
    known: &mut Known,
) -> Result<Op> {
    let regions = &known.regions;
    Ok(match name {
        "map" => parse_map(cursor, known)?,
        "touch" | "vtouch" | "vtouch2" => Op::Touch {
            vm: match name {
                "touch" => None,
                "vtouch" => Some(0),
                _ => Some(1),
            },
            pages: pages(cursor, regions)?,
            write: write_or_read(cursor)?,
        },
        "read" => Op::Read(pages(cursor, regions)?),
        "vm" => Op::Vm(0),
        "vm2" => Op::Vm(1),
        "vmslot" | "vmre" => Op::VmSlot {
            vm: 0,
            region: region(cursor, regions)?.0,
        },
        "vmslot2" => Op::VmSlot {
            vm: 1,
            region: region(cursor, regions)?.0,
        },
        "vmdel" => Op::VmDel {
            vm: 0,
            region: region(cursor, regions)?.0,
        },
        "age" => Op::Age {
            can_swap: cursor.number("can_swap", 200)?,
            force: cursor.number("force_scan", 1)?,
        },
        "evict" => {
            cursor.skip_spaces();
            let place = cursor.clone();
            let which = match cursor.word() {
                Some(b"min") => Which::Min,
                Some(other) => std::str::from_utf8(other)
                    .ok()
                    .and_then(|text| text.parse().ok())
                    .filter(|n: &i64| n.unsigned_abs() < 1 << 32)
                    .map(Which::Relative)
                    .ok_or_else(|| place.expected("min, or a number relative to the youngest"))?,
                None => return Err(place.expected("a generation")),
            };
            Op::Evict {
                which,
                swappiness: cursor.number("a swappiness", u64::from(u32::MAX))?,
                nr: cursor.number("a number of pages", u64::MAX)?,
            }
        }
        "raw" => Op::Raw(rest(cursor, "text to write")?),
        "memset" => Op::Memset {
            file: word(cursor, "a file")?,
            value: rest(cursor, "a value")?,
        },
        "write" => Op::Write {
            file: word(cursor, "a file")?,
            value: rest(cursor, "a value")?,
        },
        "check" => Op::Check {
            pages: pages(cursor, regions)?,
            byte: cursor.number("a byte", 255)? as u8,
        },
        "sleep" => Op::Sleep(cursor.number("milliseconds", 1 << 40)?),
        "snap" => Op::Snap,
        _ => return Err(place.expected("an operation")),
    })
}
