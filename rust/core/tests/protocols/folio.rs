//! The folio's word: walkers promote, others isolate and set flags.

use super::model::{check, name, spawn};
use std::sync::Arc;
use youngbit_core::mm::folio::{FolioWord, LRU, REFERENCED, Word};
use youngbit_core::sync::atomic::AtomicU64;

fn word_text(word: u64) -> String {
    format!("{:?}", Word(word))
}

#[test]
fn folio_flags_survive_promotion_and_isolation() {
    check(
        "a folio's word: one thread isolates, no flag and no generation update is lost",
        || {
            let word = Arc::new(AtomicU64::new(LRU));
            name(&*word, "folio", word_text);
            let isolate = |word: &AtomicU64| word.clear(LRU).has(LRU);
            let other = {
                let word = Arc::clone(&word);
                spawn("evictor", move || isolate(&word))
            };
            let promoted = {
                let word = Arc::clone(&word);
                spawn("walker", move || {
                    word.modify(|w| w.generation().is_none().then(|| w.with_generation(Some(2))))
                        .1
                })
            };
            word.set(REFERENCED);
            let mine = isolate(&word);
            assert!(mine ^ other.join().unwrap(), "exactly one thread owns it");
            assert!(promoted.join().unwrap());
            assert!(word.get().has(REFERENCED));
            assert_eq!(word.get().generation(), Some(2));
        },
    );
}
