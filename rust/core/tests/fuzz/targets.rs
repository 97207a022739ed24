//! What is done with an input, whoever found it: the fuzzer, or the replay of
//! what it has found. A function panics when something is wrong.
//!
//! Every reader has to end, without a panic, in a value or in an error of the
//! promised shape: an errno that it documents, and one line that says where.

use std::convert::Infallible;
use std::sync::Arc;
use youngbit_core::access::trace_text::{
    LackeyOptions, PageTrace, ReadError, TextFormat, format_csv, read_all,
};
use youngbit_core::lru_gen::histogram::{self, Letters};
use youngbit_core::lru_gen::{Asking, check, debugfs};
use youngbit_core::mm::damon::{Attrs, Damon};
use youngbit_core::mm::{Kind, Memcg, Mm, PAGE_SIZE, VmFlags, conserve, memcg_files, page_idle};
use youngbit_core::scenario::conditions::{Kvm, Mmu};
use youngbit_core::scenario::{Conditions, Op, Recording, Runner, parse};
use youngbit_core::{Cpu, Errno, Error, Host, HostConfig};

/// A function that takes an input.
pub type Target = fn(&[u8]);

/// Every target by its name, which is also that of its folder of inputs.
pub const TARGETS: &[(&str, Target)] = &[
    ("scenario", scenario),
    ("recording", recording),
    ("lru_gen", lru_gen),
    ("trace_text", trace_text),
    ("memcg_files", memcg_files),
    ("samplers", samplers),
];

/// Numbers for what an input of bytes is to mean; zeros when it ends.
struct Bytes<'a>(&'a [u8]);

impl Bytes<'_> {
    fn next(&mut self) -> u8 {
        self.0.split_off_first().copied().unwrap_or(0)
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Mostly small, sometimes at the edge of what a number can be.
    fn number(&mut self) -> u64 {
        match self.next() {
            n @ 0..=239 => u64::from(n),
            n => {
                let shift = u32::from(n - 240) * 4 + 3;
                (1u64 << shift).wrapping_sub(u64::from(self.next() % 3))
            }
        }
    }
}

/// One line, with one of these numbers.
fn shaped(error: &Error, errnos: &[Errno]) {
    let text = error.to_string();
    assert!(errnos.contains(&error.errno()), "{text}");
    assert!(!text.is_empty() && !text.contains('\n'), "{text:?}");
}

/// A mistake in a text: `EINVAL`, and its line and column lie in the text.
fn placed(error: &Error, text: &[u8]) {
    shaped(error, &[Errno::EINVAL]);
    let message = error.to_string();
    let place = message.split_once("line ").and_then(|(_, rest)| {
        let (line, rest) = rest.split_once(", column ")?;
        let column = rest.split(':').next()?;
        Some((line.parse().ok()?, column.parse().ok()?))
    });
    let (line, column): (usize, usize) = place.unwrap_or_else(|| panic!("no place: {message:?}"));
    let found = text.split(|&b| b == b'\n').nth(line.wrapping_sub(1));
    let found = found.unwrap_or_else(|| panic!("no such line: {message:?}"));
    assert!(
        (1..=found.len() + 1).contains(&column),
        "no such column: {message:?} of {}",
        found.len()
    );
}

/// A consistent machine: LRU lists, frames, swap slots.
fn consistent(host: &Host) {
    check::check(host).expect("consistent lists");
    conserve::check(host).expect("nothing is lost");
}

/// A small machine with a process that has some of everything.
fn machine() -> (Arc<Host>, Arc<Memcg>, Arc<Mm>, u64) {
    let host = Host::new(&HostConfig {
        nodes: vec![512, 64],
        swap_pages: 64,
        virtual_clock: true,
    })
    .expect("a valid host");
    let memcg = host.create_memcg("a").expect("a new name");
    let mm = host.create_mm(memcg.id).expect("the memcg is there");
    let cpu = Cpu::new(&host);
    let at = 1 << 30;
    for (n, kind) in [Kind::Anon, Kind::Shmem, Kind::File]
        .into_iter()
        .enumerate()
    {
        let space = host.create_space(kind, 32);
        let at = at + n as u64 * 64 * PAGE_SIZE;
        mm.mmap(Some(at), 32 * PAGE_SIZE, &space, 0, VmFlags::default())
            .expect("room");
        for page in (0..32).step_by(n + 1) {
            let touched = mm.touch(&cpu, at + page * PAGE_SIZE, page % 2 == 0, None);
            touched.expect("memory is there");
        }
    }
    (host, memcg, mm, at)
}

/// Scenarios: read, and run if they are small.
pub fn scenario(data: &[u8]) {
    let Some((&head, text)) = data.split_first() else {
        return;
    };
    let steps = match parse::parse(text) {
        Ok(steps) => steps,
        Err(error) => return placed(&error, text),
    };
    // What was read is what was written: a step reads as itself again, where
    // it needs no region.
    for step in &steps {
        if matches!(step.op, Op::Age { .. } | Op::Evict { .. } | Op::Sleep(_)) {
            let again = parse::parse(format!("{} {}", step.name, step.args).as_bytes());
            assert_eq!(again.expect("read before")[0].op, step.op);
        }
    }
    let small = |pages: u64| pages <= 600;
    let mut mapped = 0;
    for step in &steps {
        match &step.op {
            Op::Map { pages, .. } => mapped += pages,
            Op::Touch { pages, .. } | Op::Read(pages) | Op::Check { pages, .. }
                if !small(pages.count) =>
            {
                return;
            }
            _ => {}
        }
    }
    if !small(mapped) || steps.len() > 40 {
        return;
    }
    let (kvm, asking) = [
        (Kvm::V7, Asking::FastOnly),
        (Kvm::Baseline, Asking::Accurate),
        (Kvm::Baseline, Asking::None),
        (Kvm::V9, Asking::Accurate),
    ][usize::from(head & 3)];
    let conditions = Conditions {
        kvm,
        asking,
        caps: u32::from(head >> 4),
        mmu: [Mmu::Tdp, Mmu::None, Mmu::DirectRmap, Mmu::Shadow][usize::from(head >> 2 & 3)],
        ad_bits: head & 0x80 == 0,
        swap_pages: [64, 1 << 12][usize::from(head >> 6 & 1)],
        host_pages: 900,
        worker_pages: 13,
    };
    let mut runner = Runner::new(&conditions).expect("these conditions are possible");
    for step in &steps {
        if let Err(error) = runner.step(step) {
            shaped(
                &error,
                &[Errno::EINVAL, Errno::ENOMEM, Errno::ENOENT, Errno::EEXIST],
            );
            break;
        }
        check::check(runner.host()).expect("consistent lists");
    }
    check::check(runner.host()).expect("consistent lists");
}

/// Recordings of real kernels.
pub fn recording(data: &[u8]) {
    match Recording::parse(data) {
        Ok(read) => {
            let printed = read.print();
            let again = Recording::parse(printed.as_bytes()).expect("our own text");
            assert_eq!(again.print(), printed);
            if let Err(error) = Conditions::from_header(&read.header) {
                shaped(&error, &[Errno::EINVAL]);
            }
        }
        Err(error) => placed(&error, data),
    }
}

/// The text interface of the multi-gen LRU, read and written.
pub fn lru_gen(data: &[u8]) {
    let Some((&head, text)) = data.split_first() else {
        return;
    };
    match head % 4 {
        0 => match histogram::parse(text) {
            Ok(read) => {
                let printed = histogram::print(&read);
                let again = histogram::parse(printed.as_bytes()).expect("our own text");
                assert_eq!(histogram::print(&again), printed);
            }
            Err(error) => placed(&error, text),
        },
        1 => {
            let (host, _, _, _) = machine();
            let cpu = Cpu::new(&host);
            if let Err(error) = debugfs::write(&cpu, text) {
                shaped(&error, &[Errno::EINVAL, Errno::ERANGE]);
            }
            drop(cpu);
            consistent(&host);
            let letters = [None, Some(Letters::Four), Some(Letters::Six)];
            let shown = histogram::of_host(&host, letters[usize::from(head / 4 % 3)]);
            let printed = histogram::print(&shown);
            assert_eq!(
                histogram::parse(printed.as_bytes()).expect("our own text"),
                shown
            );
        }
        n => {
            let (host, _, _, _) = machine();
            let written = if n == 2 {
                debugfs::write_enabled(&host, text)
            } else {
                debugfs::write_min_ttl_ms(&host, text)
            };
            match written {
                Ok(()) => {
                    let shown = [debugfs::show_enabled, debugfs::show_min_ttl_ms];
                    assert!(shown[usize::from(n - 2)](&host).ends_with('\n'));
                }
                Err(error) => shaped(&error, &[Errno::EINVAL]),
            }
        }
    }
}

/// Page traces as text.
pub fn trace_text(data: &[u8]) {
    let Some((&head, text)) = data.split_first() else {
        return;
    };
    let format = match head % 4 {
        0 => TextFormat::Csv,
        1 => TextFormat::Perf,
        n => TextFormat::Lackey(LackeyOptions {
            window: [0, 7, 1 << 20, u64::MAX][usize::from(head / 4 % 4)],
            max_instructions: u64::from(n - 2) * 5,
        }),
    };
    let read = read_all(text, format, &mut || Ok::<(), Infallible>(()));
    match read {
        Ok(trace) => sound(&trace),
        Err(ReadError::Text { line, found, .. }) => {
            let lines = text.split(|&b| b == b'\n').count() as u64;
            assert!((1..=lines).contains(&line), "line {line} of {lines}");
            assert!(!found.chars().any(char::is_control), "{found:?}");
        }
        Err(ReadError::Io(error)) => panic!("memory cannot fail to be read: {error}"),
        Err(ReadError::Stopped(never)) => match never {},
    }
}

/// A trace is in order of time, its columns of one length, and its rows as CSV
/// read as itself.
fn sound(trace: &PageTrace) {
    assert_eq!(trace.time.len(), trace.page.len());
    assert_eq!(trace.time.len(), trace.write.len());
    assert!(trace.time.is_sorted());
    assert!(trace.time.last().is_none_or(|&t| t <= trace.duration));
    let mut text = b"time,page,write\n".to_vec();
    text.extend(format_csv(&trace.time, &trace.page, &trace.write));
    let again = read_all(&*text, TextFormat::Csv, &mut || Ok::<(), Infallible>(()));
    let again = again.expect("our own text");
    assert_eq!(
        (again.time, again.page, again.write),
        (trace.time.clone(), trace.page.clone(), trace.write.clone())
    );
}

/// Writes to the files of a memory cgroup, a line each: `file value`.
pub fn memcg_files(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let (host, memcg, _, _) = machine();
    let cpu = Cpu::new(&host);
    for line in text.split('\n').take(8) {
        let (file, value) = line.split_once(' ').unwrap_or((line, ""));
        if let Err(error) = memcg_files::write(&cpu, &memcg, file, value) {
            shaped(&error, &[Errno::EINVAL, Errno::ENOENT, Errno::EAGAIN]);
        }
        match memcg_files::read(&memcg, file) {
            Ok(text) => assert!(text.ends_with('\n'), "{text:?}"),
            Err(error) => shaped(&error, &[Errno::EINVAL, Errno::ENOENT]),
        }
    }
    assert!(memcg_files::vmstat(&host).starts_with("nr_free_pages "));
    drop(cpu);
    consistent(&host);
}

/// The region sampler and idle page tracking, with attributes and ranges that
/// need not make sense.
pub fn samplers(data: &[u8]) {
    let mut bytes = Bytes(data);
    let (host, _, mm, at) = machine();
    let cpu = Cpu::new(&host);
    let attrs = Attrs {
        samples: bytes.number() as u32,
        min_regions: bytes.number() as u32,
        max_regions: bytes.number() as u32,
    };
    let start = place(at, &mut bytes);
    let pages = bytes.number();
    if let Ok(ranges) = Damon::new(start, pages, attrs, u64::from(bytes.next())) {
        // Only where regions are few enough to be looked at one by one.
        if pages <= 1 << 12 {
            sample(ranges, &cpu, &mm, pages, &mut bytes);
        }
    }
    while !bytes.is_empty() {
        let start = place(at, &mut bytes);
        let end = start.wrapping_add(bytes.number().wrapping_mul(PAGE_SIZE));
        let asked = if bytes.next() % 2 == 0 {
            page_idle::mark_range(&cpu, &mm, start, end)
        } else {
            page_idle::test_range(&cpu, &mm, start, end)
        };
        match asked {
            Ok(found) => assert!(found.idle <= found.present && found.present <= 96),
            Err(error) => shaped(&error, &[Errno::EINVAL]),
        }
    }
    drop(cpu);
    consistent(&host);
}

/// Some address, mostly of a page that is mapped.
fn place(at: u64, bytes: &mut Bytes<'_>) -> u64 {
    let page = at.wrapping_add(bytes.number().wrapping_mul(PAGE_SIZE));
    page.wrapping_add(bytes.number() / 200)
}

fn sample(mut damon: Damon, cpu: &Cpu, mm: &Mm, pages: u64, bytes: &mut Bytes<'_>) {
    for _ in 0..bytes.next() % 16 {
        for _ in 0..bytes.next() % 4 {
            damon.prepare(cpu, mm);
            damon.check(cpu, mm);
        }
        let regions = damon.aggregate();
        // They cover all there is, in order.
        let mut at = 0;
        for region in &regions {
            assert!(region.start == at && region.end > at, "{regions:?}");
            at = region.end;
        }
        assert_eq!(at, pages);
    }
}
