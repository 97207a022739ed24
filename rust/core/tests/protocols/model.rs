//! Running a model: every interleaving up to a bound, and a readable report of
//! the first that fails.

use std::collections::HashMap;
use std::panic::Location;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Once, PoisonError};
use std::time::Instant;
use youngbit_core::cpu::Cpu;
use youngbit_core::host::{Host, HostConfig};
use youngbit_core::mutant::{self, Mutant};
use youngbit_core::sync::step::{self, Log, Op, Step};

pub use youngbit_core::sync::step::{exchanges, name, note, thread as i_am};

/// How far a check looks. Everything is counted and nothing timed, so that a
/// set does the same wherever it runs.
struct Set {
    /// Bounds of preemptions a run, tried in this order; `None` is no bound.
    bounds: &'static [Option<usize>],
    /// Interleavings of one bound after which the check stops.
    budget: usize,
}

const QUICK: Set = Set {
    bounds: &[Some(0), Some(1), Some(2)],
    budget: 5_000,
};
const USUAL: Set = Set {
    bounds: &[Some(0), Some(1), Some(2), Some(3)],
    budget: 10_000,
};
const FULL: Set = Set {
    bounds: &[
        Some(0),
        Some(1),
        Some(2),
        Some(3),
        Some(4),
        Some(5),
        Some(6),
        None,
    ],
    budget: 20_000,
};

fn set() -> &'static Set {
    match std::env::var("YOUNGBIT_SET").as_deref() {
        Err(_) | Ok("quick") => &QUICK,
        Ok("usual") => &USUAL,
        Ok("full") => &FULL,
        Ok(other) => panic!("YOUNGBIT_SET is {other:?}: expected quick, usual or full"),
    }
}

fn bound_text(bound: Option<usize>) -> String {
    bound.map_or_else(|| "any".into(), |bound| bound.to_string())
}

/// One test for each protocol, as `name::baseline`, `name::v7` and `name::v9`.
macro_rules! by_protocol {
    ($(
        $(#[$doc:meta])*
        fn $name:ident($protocol:ident) $body:block
    )*) => {$(
        $(#[$doc])*
        mod $name {
            use super::*;
            fn $name($protocol: youngbit_core::kvm::Protocol) $body
            #[test]
            fn baseline() {
                $name(youngbit_core::kvm::Protocol::BASELINE);
            }
            #[test]
            fn v7() {
                $name(youngbit_core::kvm::Protocol::V7);
            }
            #[test]
            fn v9() {
                $name(youngbit_core::kvm::Protocol::V9);
            }
        }
    )*};
}
pub(crate) use by_protocol;

static SPAWNED: AtomicBool = AtomicBool::new(false);
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
static RUNS: AtomicU64 = AtomicU64::new(0);
static REPORTED: AtomicBool = AtomicBool::new(false);
static WHAT: Mutex<(String, String)> = Mutex::new((String::new(), String::new()));
static SETUP: Once = Once::new();

/// Values that a model counts over all its runs: largest of one run, and sum.
static TALLY: Mutex<Vec<(&'static str, u64, u64)>> = Mutex::new(Vec::new());

fn tally_lock() -> std::sync::MutexGuard<'static, Vec<(&'static str, u64, u64)>> {
    TALLY.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Add a value of this run to what is printed at the end: costs are shown by
/// counts, not by failures.
pub fn tally(what: &'static str, value: u64) {
    let mut tally = tally_lock();
    match tally.iter_mut().find(|(name, _, _)| *name == what) {
        Some((_, max, sum)) => {
            *max = (*max).max(value);
            *sum += value;
        }
        None => tally.push((what, value, value)),
    }
}

fn setup() {
    SETUP.call_once(|| {
        let wanted = std::env::var("YOUNGBIT_MUTANT").unwrap_or_default();
        let mutant = (!wanted.is_empty()).then(|| {
            *Mutant::ALL
                .iter()
                .find(|m| m.name() == wanted)
                .unwrap_or_else(|| panic!("no mutant is called {wanted:?}"))
        });
        mutant::select(mutant);
        let quiet = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if REPORTED.swap(true, Ordering::SeqCst) {
                return;
            }
            let (claim, bound) = WHAT.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let runs = RUNS.load(Ordering::SeqCst);
            let message = info.payload_as_str().unwrap_or("panicked");
            let message = if message.starts_with("Causality violation") {
                "nothing orders the last step with what another thread did to the same memory"
                    .to_owned()
            } else {
                message.replace('\n', " / ")
            };
            let mut text =
                format!("FAILED {claim} | bound {bound} | interleaving {runs} | {message}\n");
            if let Some(log) = step::end() {
                for line in lines(&log) {
                    text.push_str(&format!("STEP {line}\n"));
                }
            }
            // In one piece, and before anything that may abort.
            use std::io::Write;
            let _ = std::io::stdout().lock().write_all(text.as_bytes());
            quiet(info);
        }));
    });
}

/// Check `model` under every interleaving with at most as many preemptions as
/// the set says, fewest first, so that what fails first is short. `claim` is
/// what is printed; the test's own name says which.
pub fn check(claim: &str, model: impl Fn() + Send + Sync + 'static) {
    check_up_to(claim, usize::MAX, model);
}

/// [`check`] with a bound of its own: waiters that yield to each other have no
/// end of interleavings beyond it.
pub fn check_up_to(claim: &str, most: usize, model: impl Fn() + Send + Sync + 'static) {
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    setup();
    let test = std::thread::current().name().unwrap_or("main").to_owned();
    println!("CLAIM {test} | {claim}");
    let set = set();
    let model = Arc::new(model);
    for &bound in set.bounds {
        if bound.is_none_or(|bound| bound > most) && most != usize::MAX {
            break;
        }
        let shown = bound_text(bound);
        *WHAT.lock().unwrap_or_else(PoisonError::into_inner) = (test.clone(), shown.clone());
        RUNS.store(0, Ordering::SeqCst);
        tally_lock().clear();
        let start = Instant::now();
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = bound;
        builder.max_branches = 100_000;
        builder.max_permutations = Some(set.budget);
        builder.checkpoint_interval = set.budget;
        let model = Arc::clone(&model);
        builder.check(move || {
            RUNS.fetch_add(1, Ordering::SeqCst);
            SPAWNED.store(false, Ordering::SeqCst);
            step::begin();
            step::thread("main");
            model();
            if std::env::var_os("YOUNGBIT_STEPS").is_some() {
                let log = step::end().unwrap_or_default();
                println!("RUN {}", RUNS.load(Ordering::SeqCst));
                for line in lines(&log) {
                    println!("STEP {line}");
                }
            }
        });
        step::end();
        let runs = RUNS.load(Ordering::SeqCst);
        let time = start.elapsed().as_secs_f64();
        // The checker stops before the run that the budget ends with.
        let stopped = runs + 1 >= set.budget as u64;
        let how = if stopped { "STOPPED" } else { "CHECKED" };
        println!("{how} {test} | bound {shown} | {runs} interleavings | {time:.2} s");
        for (what, max, sum) in tally_lock().iter() {
            println!("COUNT {test} | bound {shown} | {what} | most {max} | sum {sum}");
        }
        if stopped {
            break;
        }
    }
}

/// A thread of the model, by a name that the report uses.
pub fn spawn<T: 'static>(
    name: &'static str,
    body: impl FnOnce() -> T + 'static,
) -> loom::thread::JoinHandle<T> {
    if !SPAWNED.swap(true, Ordering::SeqCst) {
        // Until now the model was being set up.
        step::clear();
    }
    loom::thread::spawn(move || {
        step::thread(name);
        body()
    })
}

/// A small host whose clock stands still.
pub fn host(pages: u64) -> Arc<Host> {
    host_with_swap(pages, 0)
}

/// The same with somewhere to swap to.
pub fn host_with_swap(pages: u64, swap_pages: u64) -> Arc<Host> {
    Host::new(&HostConfig {
        nodes: vec![pages],
        swap_pages,
        virtual_clock: true,
    })
    .expect("a valid host")
}

/// The per-CPU area of the calling thread of the model.
pub fn cpu(host: &Arc<Host>) -> Cpu {
    Cpu::new(host)
}

// ---- the report ----

struct Sources(HashMap<PathBuf, Vec<String>>);

impl Sources {
    /// The kernel's name of the function around a line, else its own.
    fn function(&mut self, at: &Location<'_>) -> String {
        if at.file().contains("tests/protocols") {
            return "the check".into();
        }
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let path = [root.join("../..").join(at.file()), root.join(at.file())]
            .into_iter()
            .find(|path| path.exists())
            .unwrap_or_default();
        let text = self.0.entry(path).or_insert_with_key(|path| {
            let text = std::fs::read_to_string(path).unwrap_or_default();
            text.lines().map(str::to_owned).collect()
        });
        let mut line = (at.line() as usize).min(text.len());
        let own = loop {
            if line == 0 {
                return format!("{}:{}", at.file(), at.line());
            }
            line -= 1;
            let code = text[line].trim_start();
            let rest = ["pub ", "pub(crate) ", "pub(super) ", "const ", "unsafe "]
                .iter()
                .fold(code, |code, prefix| {
                    code.strip_prefix(prefix).unwrap_or(code)
                });
            if let Some(rest) = rest.strip_prefix("fn ") {
                break rest
                    .split(|c: char| !c.is_alphanumeric() && c != '_')
                    .next()
                    .unwrap_or_default()
                    .to_owned();
            }
        };
        let mut doc = String::new();
        while line > 0 {
            line -= 1;
            let code = text[line].trim_start();
            if code.starts_with("///") {
                doc = format!("{} {doc}", code.trim_start_matches("///").trim());
            } else if !code.starts_with("#[") {
                break;
            }
        }
        // "(`kvm_rmap_lock()`" names the kernel's function.
        // So does "`kvm_mmu_invalidate_end()`" where it begins.
        let first = doc.trim_start().strip_prefix('`');
        let kernel = doc.split("(`").nth(1).or(first).and_then(|rest| {
            let name = rest.split('`').next()?;
            name.ends_with(')').then(|| name.to_owned())
        });
        kernel.unwrap_or_else(|| format!("{own}()"))
    }
}

/// One line of the report.
#[derive(PartialEq)]
struct Line {
    thread: usize,
    text: String,
    /// A read of an entry above a leaf, on the way down: function and word.
    way_down: Option<(String, String)>,
}

fn lines(log: &Log) -> Vec<String> {
    let mut sources = Sources(HashMap::new());
    let mut out: Vec<Line> = Vec::new();
    // The value that each word has by now: a load may return an older one.
    let mut newest: HashMap<usize, u64> = HashMap::new();
    for step in &log.steps {
        let line = match step {
            Step::Note { thread, text } => {
                let ends = text == "rcu_read_unlock()";
                let begun = |last: &Line| last.thread == *thread && last.text == "rcu_read_lock()";
                if ends && out.last().is_some_and(begun) {
                    // A section in which nothing was done that has a name.
                    out.pop();
                    continue;
                }
                Line {
                    thread: *thread,
                    text: text.clone(),
                    way_down: None,
                }
            }
            Step::Word {
                thread,
                address,
                op,
                before,
                after,
                at,
            } => {
                let stale = newest.get(address).is_some_and(|now| now != after);
                if *op != Op::Load && *op != Op::ExchangeFailed {
                    newest.insert(*address, *after);
                }
                let Some((word, value)) = log.names.get(address) else {
                    continue;
                };
                let now = newest.get(address).map(|&now| value(now));
                let (before, after) = (value(*before), value(*after));
                let function = sources.function(at);
                let what = match op {
                    Op::Load if stale => format!(
                        "reads {word} = {after}, an older value: it is {} by now",
                        now.unwrap_or_default()
                    ),
                    Op::Load => format!("reads {word} = {after}"),
                    Op::Store => format!("stores {word} := {after}"),
                    Op::Update | Op::Exchanged if before == after => {
                        format!("changes nothing in {word} = {after}, atomically")
                    }
                    Op::Update => format!("changes {word}: {before} -> {after}, atomically"),
                    Op::Exchanged => format!("exchanges {word}: {before} -> {after}"),
                    Op::ExchangeFailed => {
                        format!("fails to exchange {word}: it is {after}")
                    }
                };
                let above = *op == Op::Load && !stale && word.contains("level-");
                Line {
                    thread: *thread,
                    text: format!("{function}: {what}"),
                    way_down: above.then(|| (function, word.clone())),
                }
            }
        };
        if out.last() != Some(&line) {
            out.push(line);
        }
    }
    let mut text = Vec::new();
    let mut rest = &out[..];
    while let Some(line) = rest.first() {
        let who = log.threads.get(line.thread).map_or("?", String::as_str);
        let same_way = |other: &&Line| {
            other.thread == line.thread
                && matches!((&other.way_down, &line.way_down), (Some(a), Some(b)) if a.0 == b.0)
        };
        let together = rest.iter().take_while(same_way).count();
        match &line.way_down {
            Some((function, word)) if together > 1 => {
                let last = rest[together - 1].way_down.as_ref();
                let last = last.map_or("", |(_, word)| word.split(' ').next().unwrap_or(""));
                text.push(format!("{who:<10} {function}: walks from {word} to {last}"));
                rest = &rest[together..];
            }
            _ => {
                text.push(format!("{who:<10} {}", line.text));
                rest = &rest[1..];
            }
        }
    }
    text
}

/// What an SPTE of EPT reads as.
pub fn spte_text(spte: u64) -> String {
    use youngbit_core::kvm::mmu::spte as s;
    let f = s::SpteFormat::EPT;
    if spte == 0 {
        return "none".into();
    }
    if spte == s::FROZEN || spte == s::FROZEN_THAWABLE {
        return "FROZEN".into();
    }
    if spte == youngbit_core::table::POISON {
        return "POISON".into();
    }
    if !s::is_present(spte) {
        return format!("non-present {spte:#x}");
    }
    let mut text = format!("present {:#x}", (spte & s::FRAME_MASK) >> 12);
    for (bit, what) in [
        (1, " R"),
        (2, "W"),
        (4, "X"),
        (f.accessed, " accessed"),
        (f.dirty, " dirty"),
        (f.mmu_writable, " mmu-writable"),
    ] {
        if spte & bit != 0 {
            text.push_str(what);
        }
    }
    if !s::ad_enabled(spte) {
        text.push_str(" no-A/D");
        if s::is_access_tracked(spte) {
            text.push_str(" access-tracked");
        }
    }
    text
}

/// A number.
pub fn number(value: u64) -> String {
    value.to_string()
}

/// What an rmap head reads as.
pub fn head_text(head: u64) -> String {
    use youngbit_core::kvm::mmu::rmap::{RMAP_LOCKED, RMAP_MANY};
    let lock = if head & RMAP_LOCKED != 0 {
        ", held"
    } else {
        ""
    };
    match head & !RMAP_LOCKED {
        0 => format!("empty{lock}"),
        one if one & RMAP_MANY == 0 => format!("SPTE {:#x}{lock}", one >> 2),
        many => format!("descriptor {}{lock}", (many >> 2) - 1),
    }
}
