//! What the threads of a model did, in order (only under a model checker).
//!
//! Every operation on an atomic word is kept with the place in the source that
//! made it, and locks and grace periods leave a note. When a check fails, the
//! steps since [`begin`] are the interleaving that failed. The checked code
//! itself has no hooks for it: the door has.

use std::collections::HashMap;
use std::panic::Location;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// What a step did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Op {
    /// Read the word.
    Load,
    /// Wrote it, whatever it was.
    Store,
    /// Changed it in one step.
    Update,
    /// Compared, and exchanged.
    Exchanged,
    /// Compared, and found another value.
    ExchangeFailed,
}

/// One step.
#[derive(Clone, Debug)]
pub enum Step {
    /// An operation on a word.
    Word {
        /// Thread of the model.
        thread: usize,
        /// Where the word is.
        address: usize,
        /// What was done.
        op: Op,
        /// The value found, except by [`Op::Store`].
        before: u64,
        /// The value left behind.
        after: u64,
        /// The line that did it.
        at: &'static Location<'static>,
    },
    /// A note of a lock, of a grace period, or of the model itself.
    Note {
        /// Thread of the model.
        thread: usize,
        /// In the kernel's terms.
        text: String,
    },
}

/// What a word is, and how its values read.
type Name = (String, fn(u64) -> String);

/// Steps of one run of a model.
#[derive(Default)]
pub struct Log {
    /// In order.
    pub steps: Vec<Step>,
    /// By address: only steps of named words are worth printing.
    pub names: HashMap<usize, Name>,
    /// By number, the main thread first.
    pub threads: Vec<String>,
    current: HashMap<loom::thread::ThreadId, usize>,
}

static LOG: Mutex<Option<Log>> = Mutex::new(None);

fn log() -> MutexGuard<'static, Option<Log>> {
    LOG.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Log {
    fn thread(&mut self) -> usize {
        let id = loom::thread::current().id();
        let next = self.threads.len();
        let number = *self.current.entry(id).or_insert(next);
        if number == next {
            self.threads.push(format!("thread {next}"));
        }
        number
    }
}

/// A run of the model begins: forget the one before.
pub fn begin() {
    *log() = Some(Log::default());
}

/// Forget the steps so far: the model was being set up.
pub fn clear() {
    if let Some(log) = &mut *log() {
        log.steps.clear();
    }
}

/// Stop recording and hand out what was recorded.
pub fn end() -> Option<Log> {
    log().take()
}

/// The calling thread of the model is called `name`.
pub fn thread(name: &str) {
    if let Some(log) = &mut *log() {
        let number = log.thread();
        log.threads[number] = name.to_owned();
    }
}

/// Call a word `name` and print its values by `value`.
pub fn name<T>(word: &T, name: &str, value: fn(u64) -> String) {
    if let Some(log) = &mut *log() {
        let address = std::ptr::from_ref(word).addr();
        log.names.insert(address, (name.to_owned(), value));
    }
}

/// How often the calling thread has tried to exchange `word` so far.
pub fn exchanges<T>(word: &T) -> u64 {
    let wanted = std::ptr::from_ref(word).addr();
    log().as_mut().map_or(0, |log| {
        let me = log.thread();
        let mine = |step: &&Step| {
            matches!(step, Step::Word { thread, address, op: Op::Exchanged | Op::ExchangeFailed, .. }
                if *thread == me && *address == wanted)
        };
        log.steps.iter().filter(mine).count() as u64
    })
}

/// Note something that is no operation on a word.
pub fn note(text: impl Into<String>) {
    if let Some(log) = &mut *log() {
        let thread = log.thread();
        let text = text.into();
        log.steps.push(Step::Note { thread, text });
    }
}

pub(super) fn word<T>(word: &T, op: Op, before: u64, after: u64, at: &'static Location<'static>) {
    if let Some(log) = &mut *log() {
        let thread = log.thread();
        log.steps.push(Step::Word {
            thread,
            address: std::ptr::from_ref(word).addr(),
            op,
            before,
            after,
            at,
        });
    }
}
