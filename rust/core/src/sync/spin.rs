//! Waiting without a lock.

/// `cpu_relax()`: one pause between two looks at a word.
#[inline]
pub fn relax() {
    #[cfg(not(loom))]
    core::hint::spin_loop();
    #[cfg(loom)]
    loom::thread::yield_now();
}

/// A bounded exponential spin that ends by giving the processor away, so that
/// a waiter never holds a core that the one it waits for needs.
pub struct Backoff {
    #[cfg(not(loom))]
    inner: crossbeam_utils::Backoff,
}

impl Default for Backoff {
    fn default() -> Self {
        Self::new()
    }
}

impl Backoff {
    /// A fresh wait.
    pub fn new() -> Self {
        Backoff {
            #[cfg(not(loom))]
            inner: crossbeam_utils::Backoff::new(),
        }
    }

    /// `cpu_relax()` after losing a race: the other side has already advanced.
    pub fn relax(&self) {
        #[cfg(not(loom))]
        self.inner.spin();
        #[cfg(loom)]
        loom::thread::yield_now();
    }

    /// Wait for another thread to act; yields the processor after a few rounds.
    pub fn wait(&self) {
        #[cfg(not(loom))]
        self.inner.snooze();
        #[cfg(loom)]
        loom::thread::yield_now();
    }
}

/// `cpu_relax()` between two looks at a lock word, as a waiter of the kernel's
/// makes them: one pause each, so that the turn is seen when it comes. After
/// some rounds the processor is given away instead.
#[derive(Default)]
pub struct LockWait {
    #[cfg(not(loom))]
    rounds: std::cell::Cell<u32>,
}

impl LockWait {
    /// Rounds that keep the processor: some microseconds, longer than nearly
    /// all holds of [`QrwLock`](super::lock::QrwLock).
    #[cfg(not(loom))]
    pub const SPINS: u32 = 256;

    /// A fresh wait.
    pub fn new() -> Self {
        Self::default()
    }

    /// One round.
    #[inline]
    pub fn round(&self) {
        #[cfg(not(loom))]
        {
            let rounds = self.rounds.get();
            if rounds < Self::SPINS {
                self.rounds.set(rounds + 1);
                core::hint::spin_loop();
            } else {
                std::thread::yield_now();
            }
        }
        #[cfg(loom)]
        loom::thread::yield_now();
    }
}
