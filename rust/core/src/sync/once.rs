//! A cell that is written once (`smp_store_release()` of a pointer that was
//! null, `smp_load_acquire()` by who follows it).

#[cfg(not(youngbit_tsan))]
pub use std::sync::OnceLock;

#[cfg(youngbit_tsan)]
pub use told::OnceLock;

#[cfg(youngbit_tsan)]
mod told {
    use crate::sync::atomic::{AtomicBool, Ordering};
    use crate::sync::thread::yield_now;

    /// As the standard library's, whose stores and loads ThreadSanitizer does
    /// not see: the library is not instrumented. The flag beside it orders the
    /// same, where it is seen.
    #[derive(Debug)]
    pub struct OnceLock<T> {
        cell: std::sync::OnceLock<T>,
        there: AtomicBool,
    }

    impl<T> Default for OnceLock<T> {
        fn default() -> Self {
            Self::new()
        }
    }

    impl<T> OnceLock<T> {
        /// An empty cell.
        pub const fn new() -> Self {
            OnceLock {
                cell: std::sync::OnceLock::new(),
                there: AtomicBool::new(false),
            }
        }

        /// The value, if it is there.
        pub fn get(&self) -> Option<&T> {
            // Acquire: pairs with the release of who wrote it.
            self.there
                .load(Ordering::Acquire)
                .then(|| self.cell.get())
                .flatten()
        }

        /// The value, made now if it is not there.
        pub fn get_or_init(&self, make: impl FnOnce() -> T) -> &T {
            let mut made = false;
            let value = self.cell.get_or_init(|| {
                made = true;
                make()
            });
            if made {
                self.there.store(true, Ordering::Release);
            }
            while !self.there.load(Ordering::Acquire) {
                yield_now();
            }
            value
        }

        /// Put a value in.
        ///
        /// # Errors
        /// The value, if there is one.
        pub fn set(&self, value: T) -> Result<(), T> {
            let mut value = Some(value);
            self.get_or_init(|| value.take().expect("called once"));
            value.map_or(Ok(()), Err)
        }
    }
}
