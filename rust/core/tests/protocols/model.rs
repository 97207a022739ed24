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

pub use youngbit_core::sync::step::{exchanges, name, note};

/// How far to look: preemptions per run, in the reduced set and in the full one.
pub struct Bound {
    pub reduced: usize,
    pub full: usize,
}

/// What most models can afford.
pub const USUAL: Bound = Bound {
    reduced: 2,
    full: 3,
};

static SPAWNED: AtomicBool = AtomicBool::new(false);
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
static RUNS: AtomicU64 = AtomicU64::new(0);
static REPORTED: AtomicBool = AtomicBool::new(false);
static WHAT: Mutex<(String, usize)> = Mutex::new((String::new(), 0));
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
            let message = info
                .payload_as_str()
                .unwrap_or("panicked")
                .replace('\n', " / ");
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
/// `bound` says, fewest first, so that what fails first is short. `claim` is
/// what is printed; the test's own name says which.
pub fn check(claim: &str, bound: Bound, model: impl Fn() + Send + Sync + 'static) {
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    setup();
    let test = std::thread::current().name().unwrap_or("main").to_owned();
    println!("CLAIM {test} | {claim}");
    let full = std::env::var_os("YOUNGBIT_FULL").is_some();
    let most = if full { bound.full } else { bound.reduced };
    let model = Arc::new(model);
    for preemptions in 1..=most {
        *WHAT.lock().unwrap_or_else(PoisonError::into_inner) = (test.clone(), preemptions);
        RUNS.store(0, Ordering::SeqCst);
        tally_lock().clear();
        let start = Instant::now();
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = Some(preemptions);
        builder.max_branches = 100_000;
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
        println!("CHECKED {test} | bound {preemptions} | {runs} interleavings | {time:.2} s");
        for (what, max, sum) in tally_lock().iter() {
            println!("COUNT {test} | bound {preemptions} | {what} | most {max} | sum {sum}");
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
    Host::new(&HostConfig {
        nodes: vec![pages],
        swap_pages: 0,
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
        let kernel = doc.split("(`").nth(1).and_then(|rest| {
            let name = rest.split('`').next()?;
            name.ends_with(')').then(|| name.to_owned())
        });
        kernel.unwrap_or_else(|| format!("{own}()"))
    }
}

fn lines(log: &Log) -> Vec<String> {
    let mut sources = Sources(HashMap::new());
    let mut out: Vec<String> = Vec::new();
    let mut last = (usize::MAX, String::new());
    for step in &log.steps {
        let (thread, text) = match step {
            Step::Note { thread, text } => (*thread, text.clone()),
            Step::Word {
                thread,
                address,
                op,
                before,
                after,
                at,
            } => {
                let Some((word, value)) = log.names.get(address) else {
                    continue;
                };
                let (before, after) = (value(*before), value(*after));
                let what = match op {
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
                (*thread, format!("{}: {what}", sources.function(at)))
            }
        };
        if last == (thread, text.clone()) {
            continue;
        }
        let who = log.threads.get(thread).map_or("?", String::as_str);
        out.push(format!("{who:<10} {text}"));
        last = (thread, text);
    }
    out
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
    format!("{value:#x}")
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
