//! Objects whose readers keep their age (`rcutorture`).
//!
//! One object is on show. Readers take it inside a read-side section, keep it
//! while they do other work there, and look at its age before they leave. A
//! writer puts another in its place, and marks the old one when a grace period
//! has passed: nobody may find that mark. The object is then used again, so a
//! reader that kept it too long sees another number too.

use crate::sync::CachePadded;
use crate::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use crate::sync::rcu::{Guard, Reader};
use std::sync::Arc;

const OBJECTS: usize = 16;

/// A grace period has passed for it.
const PAST: u64 = 1 << 63;

/// The objects, and which is on show.
pub struct Exhibit {
    what: &'static str,
    shown: CachePadded<AtomicUsize>,
    /// The number under which each was last shown, and [`PAST`].
    objects: Arc<[AtomicU64; OBJECTS]>,
    next: AtomicU64,
}

/// What a reader holds.
#[derive(Clone, Copy)]
pub struct Held {
    object: usize,
    number: u64,
}

impl Exhibit {
    pub fn new(what: &'static str) -> Self {
        Exhibit {
            what,
            shown: CachePadded::new(AtomicUsize::new(0)),
            objects: Arc::new(std::array::from_fn(|n| {
                AtomicU64::new(if n == 0 { 0 } else { PAST })
            })),
            next: AtomicU64::new(1),
        }
    }

    /// Take what is on show, inside a section.
    pub fn take(&self, _section: &Guard<'_>) -> Held {
        // Acquire: pairs with the release in `replace`, so that the object's
        // number is the one it is shown under, or a later one.
        let object = self.shown.load(Ordering::Acquire);
        Held {
            object,
            number: self.objects[object].load(Ordering::Relaxed),
        }
    }

    /// Look at it again before the section is left.
    ///
    /// # Errors
    /// What a grace period that did not wait for this reader has done to it.
    pub fn check(&self, held: Held, _section: &Guard<'_>) -> Result<(), String> {
        let now = self.objects[held.object].load(Ordering::Relaxed);
        if now == held.number && now & PAST == 0 {
            return Ok(());
        }
        Err(format!(
            "a reader inside a section of {} holds object {}, shown as {}, and a grace period has \
             passed for it: {now:#x}",
            self.what, held.object, held.number
        ))
    }

    /// Show another object; the old one's age begins to count. One writer at a
    /// time; false while every other object still waits for its grace period.
    pub fn replace(&self, reader: &Reader) -> bool {
        let old = self.shown.load(Ordering::Relaxed);
        let free = (0..OBJECTS).find(|&n| {
            // Acquire: pairs with the release in the callback.
            n != old && self.objects[n].load(Ordering::Acquire) & PAST != 0
        });
        let Some(new) = free else {
            reader.flush();
            return false;
        };
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.objects[new].store(number, Ordering::Relaxed);
        // Release: publishes the number; pairs with `take`.
        self.shown.store(new, Ordering::Release);
        let objects = Arc::clone(&self.objects);
        let section = reader.lock();
        section.defer(move || {
            // Release: whoever uses the object again does so after this.
            objects[old].fetch_or(PAST, Ordering::Release);
        });
        drop(section);
        reader.flush();
        true
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::sync::rcu::Domain;

    #[test]
    fn a_reader_inside_keeps_what_it_took() {
        let domain = Domain::new();
        let exhibit = Exhibit::new("rcu");
        let (mine, writer) = (domain.register(), domain.register());
        let section = mine.lock();
        let held = exhibit.take(&section);
        for _ in 0..OBJECTS {
            exhibit.replace(&writer);
        }
        exhibit.check(held, &section).expect("protected");
    }

    #[test]
    fn a_reader_that_left_its_section_is_found_out() {
        let domain = Domain::new();
        let exhibit = Exhibit::new("rcu");
        let (mine, writer) = (domain.register(), domain.register());
        let held = exhibit.take(&mine.lock());
        exhibit.replace(&writer);
        domain.barrier();
        let section = mine.lock();
        let error = exhibit.check(held, &section).expect_err("past");
        assert!(error.contains("grace period"), "{error}");
    }
}
