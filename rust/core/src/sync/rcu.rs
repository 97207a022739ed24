//! Grace periods: RCU and SRCU.
//!
//! A [`Domain`] is one set of readers. A thread registers a [`Reader`] once and
//! enters read-side sections through it; sections nest, and a nested one costs
//! a counter. What a writer unlinks it passes to [`Guard::defer`], or it waits
//! with [`Domain::synchronize`].
//!
//! Built on `crossbeam-epoch`, one collector a domain: entering the outermost
//! section is a store and a full fence, which pairs with the fence that the
//! collector makes before it advances the epoch. So everything a reader does
//! inside a section happens before what is deferred from its view runs.
//!
//! A domain owns what waits in it, so nothing that may ever wait in one owns
//! it: a cell and the memslots only know *which* domain they are of
//! ([`DomainId`]). Everything that waits is counted, and who ends a domain's
//! life runs all of it first ([`Domain::drain`]).

#[cfg(not(loom))]
mod imp {
    use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
    use crate::sync::lock::Mutex;
    use crate::sync::spin::Backoff;
    use crossbeam_epoch::LocalHandle;
    use std::mem::ManuallyDrop;
    use std::sync::{Arc, Weak};

    /// One set of readers and what waits for them (`struct srcu_struct`). A
    /// clone is the same domain.
    #[derive(Clone)]
    pub struct Domain {
        collector: crossbeam_epoch::Collector,
        counts: Arc<Counts>,
        idle: Arc<Mutex<Vec<Idle>>>,
    }

    /// A registration that no thread uses now. Registering anew costs a third
    /// of a microsecond, which every native call would pay.
    struct Idle(LocalHandle);

    // SAFETY: what a handle points to is touched through that handle and its
    // guards alone. It is idle, so it has no guard and no other owner, and the
    // mutex of the list orders its last use before its next.
    unsafe impl Send for Idle {}

    /// One for each domain, so it is also what tells domains apart.
    #[derive(Default)]
    struct Counts {
        deferred: AtomicU64,
        freed: AtomicU64,
    }

    /// Which domain something belongs to. It keeps no domain alive.
    pub struct DomainId(Weak<Counts>);

    impl DomainId {
        /// Whether `guard` is a section of this domain.
        #[inline]
        pub fn owns(&self, guard: &Guard<'_>) -> bool {
            std::ptr::eq(self.0.as_ptr(), Arc::as_ptr(guard.counts))
        }
    }

    impl Default for Domain {
        fn default() -> Self {
            Self::new()
        }
    }

    impl Domain {
        /// A domain with no readers.
        pub fn new() -> Self {
            Domain {
                collector: crossbeam_epoch::Collector::new(),
                counts: Arc::default(),
                idle: Arc::default(),
            }
        }

        /// A reader for the calling thread.
        pub fn register(&self) -> Reader {
            let idle = self.idle.lock().pop();
            let handle = idle.map_or_else(|| self.collector.register(), |idle| idle.0);
            Reader {
                handle: ManuallyDrop::new(handle),
                counts: Arc::clone(&self.counts),
                idle: Arc::clone(&self.idle),
            }
        }

        /// Which domain it is, for what must not own it.
        pub fn id(&self) -> DomainId {
            DomainId(Arc::downgrade(&self.counts))
        }

        /// Wait until every section that was entered before this call is left
        /// (`synchronize_srcu()`). Must not be called inside one.
        pub fn synchronize(&self) {
            let reader = self.register();
            debug_assert!(!reader.handle.is_pinned());
            let done = Arc::new(AtomicBool::new(false));
            let theirs = Arc::clone(&done);
            // The store releases, the load acquires: what readers did before
            // they left is visible to the waiter.
            reader
                .handle
                .pin()
                .defer(move || theirs.store(true, Ordering::Release));
            let backoff = Backoff::new();
            while !done.load(Ordering::Acquire) {
                reader.handle.pin().flush();
                backoff.wait();
            }
        }

        /// Wait for everything deferred before this call to have run
        /// (`rcu_barrier()`). Must not be called inside a section.
        pub fn barrier(&self) {
            let target = self.counts.deferred.load(Ordering::Acquire);
            let reader = self.register();
            let backoff = Backoff::new();
            while self.counts.freed.load(Ordering::Acquire) < target {
                reader.handle.pin().flush();
                backoff.wait();
            }
        }

        /// Run everything that waits, and what that defers in turn, at the end
        /// of the domain's life, when nobody can be inside a section. Were
        /// somebody inside for ever (a section that was forgotten), what waits
        /// for that stays; how many do is returned.
        pub fn drain(&self) -> u64 {
            // The epoch advances in every try that meets no section; three
            // advances make everything ripe, and each try runs some of it.
            const TRIES_WITHOUT_PROGRESS: u32 = 16;
            let reader = self.register();
            let mut tries = 0;
            let (mut deferred, mut run) = self.deferred_and_run();
            while run < deferred && tries < TRIES_WITHOUT_PROGRESS {
                let before = run;
                reader.handle.pin().flush();
                (deferred, run) = self.deferred_and_run();
                tries = if run > before { 0 } else { tries + 1 };
            }
            deferred - run
        }

        /// How many callbacks were deferred, and how many of them have run.
        pub fn deferred_and_run(&self) -> (u64, u64) {
            // Run first: read the other way round, it could exceed deferred.
            let run = self.counts.freed.load(Ordering::Acquire);
            (self.counts.deferred.load(Ordering::Acquire), run)
        }
    }

    /// One thread's entrance to a [`Domain`]. Not `Send`.
    pub struct Reader {
        handle: ManuallyDrop<LocalHandle>,
        counts: Arc<Counts>,
        idle: Arc<Mutex<Vec<Idle>>>,
    }

    impl Drop for Reader {
        fn drop(&mut self) {
            // SAFETY: taken once, here, and not used after.
            let handle = unsafe { ManuallyDrop::take(&mut self.handle) };
            // A section that was forgotten, and so is never left, keeps its
            // registration to itself.
            if !handle.is_pinned() {
                self.idle.lock().push(Idle(handle));
            }
        }
    }

    impl Reader {
        /// Enter a read-side section (`rcu_read_lock()`, `srcu_read_lock()`).
        #[inline]
        pub fn lock(&self) -> Guard<'_> {
            Guard {
                guard: self.handle.pin(),
                counts: &self.counts,
            }
        }

        /// Whether this thread is inside a section.
        pub fn is_inside(&self) -> bool {
            self.handle.is_pinned()
        }

        /// Push what this thread has deferred to the domain, so that others
        /// may run it, and try to advance the grace period.
        pub fn flush(&self) {
            self.handle.pin().flush();
        }
    }

    /// A pointer that readers follow inside a section and writers replace
    /// (`rcu_dereference()`, `rcu_assign_pointer()`).
    pub struct RcuCell<T> {
        domain: DomainId,
        pointer: crossbeam_epoch::Atomic<T>,
    }

    impl<T: Send + Sync + 'static> RcuCell<T> {
        /// A cell read in sections of `domain`.
        pub fn new(domain: &Domain, value: T) -> Self {
            RcuCell {
                domain: domain.id(),
                pointer: crossbeam_epoch::Atomic::new(value),
            }
        }

        /// The value now; it lives as long as the section.
        ///
        /// # Panics
        /// If `guard` is a section of another domain.
        #[inline]
        pub fn load<'g>(&self, guard: &'g Guard<'_>) -> &'g T {
            assert!(
                self.domain.owns(guard),
                "an RcuCell was read in a section of another domain"
            );
            // Acquire: pairs with the release of `replace`.
            let shared = self.pointer.load(Ordering::Acquire, &guard.guard);
            // SAFETY: the pointer is never null, and what it points to is
            // dropped only by a callback deferred in the same domain (checked
            // above), which waits for this section.
            unsafe { shared.deref() }
        }

        /// Publish another value; the old one is dropped after a grace period.
        ///
        /// # Panics
        /// If `guard` is a section of another domain.
        pub fn replace(&self, value: T, guard: &Guard<'_>) {
            assert!(
                self.domain.owns(guard),
                "an RcuCell was written in a section of another domain"
            );
            // Release: publishes the new value's contents; pairs with `load`.
            let old = self.pointer.swap(
                crossbeam_epoch::Owned::new(value),
                Ordering::AcqRel,
                &guard.guard,
            );
            // SAFETY: `old` is unlinked, was made by `Owned::new`, and only
            // the thread that swapped it out gets here with it; `T` may be
            // dropped by another thread, and borrows nothing.
            unsafe { guard.defer_unchecked(move || drop(old.into_owned())) };
        }
    }

    impl<T> Drop for RcuCell<T> {
        fn drop(&mut self) {
            // SAFETY: `&mut self`: no reader can hold the pointer, and it was
            // made by `Owned::new`.
            drop(unsafe { std::mem::take(&mut self.pointer).into_owned() });
        }
    }

    /// A read-side section; dropping it leaves the section.
    pub struct Guard<'r> {
        guard: crossbeam_epoch::Guard,
        counts: &'r Arc<Counts>,
    }

    impl Guard<'_> {
        /// Run `f` once no reader that could hold what was unlinked is left
        /// (`call_rcu()`).
        pub fn defer(&self, f: impl FnOnce() + Send + 'static) {
            // SAFETY: the bounds of `f`.
            unsafe { self.defer_unchecked(f) };
        }

        /// # Safety
        /// `f` may run on another thread, after everything it borrows is gone.
        unsafe fn defer_unchecked(&self, f: impl FnOnce()) {
            self.counts.deferred.fetch_add(1, Ordering::Release);
            let counts = Arc::clone(self.counts);
            // SAFETY: the caller's word for `f`; the counts are shared, and
            // owned by the callback.
            unsafe {
                self.guard.defer_unchecked(move || {
                    f();
                    counts.freed.fetch_add(1, Ordering::Release);
                });
            }
            // Out of this thread's own bag: a thread that is idle from here on
            // must not keep `barrier` waiting.
            self.guard.flush();
        }
    }
}

#[cfg(loom)]
mod imp {
    //! RCU as loom sees it. Bookkeeping is in a `std` mutex, which loom does
    //! not see: it orders nothing in the model, so that a missing barrier in
    //! the checked code stays missing. The two words that loom does see give
    //! exactly what a grace period promises. `left`: what a reader did inside
    //! its section happens before what was deferred from it. `begun`: a section
    //! that a grace period does not wait for sees what came before it.

    use crate::sync::step;
    use loom::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};
    use std::cell::Cell;
    use std::collections::BTreeSet;
    use std::sync::{Arc, Mutex, Weak};

    type Callback = Box<dyn FnOnce() + Send>;

    #[derive(Default)]
    struct State {
        next: u64,
        inside: BTreeSet<u64>,
        waiting: Vec<(BTreeSet<u64>, Callback)>,
        deferred: u64,
        run: u64,
    }

    struct Shared {
        state: Mutex<State>,
        left: AtomicUsize,
        begun: AtomicUsize,
    }

    impl Shared {
        fn with<R>(&self, f: impl FnOnce(&mut State) -> R) -> R {
            f(&mut self.state.lock().expect("no thread panics inside"))
        }

        fn enter(&self) -> u64 {
            let token = self.with(|state| {
                state.next += 1;
                state.inside.insert(state.next);
                state.next
            });
            // Acquire: pairs with the release in `begin`. Either this comes
            // after it, and sees what the writer unlinked; or before, and the
            // writer finds the token.
            self.begun.fetch_add(0, Ordering::Acquire);
            step::note("rcu_read_lock()");
            token
        }

        /// A grace period begins: the readers it has to wait for.
        fn begin(&self) -> BTreeSet<u64> {
            // Release: pairs with the acquire in `enter`.
            self.begun.fetch_add(1, Ordering::Release);
            self.with(|state| state.inside.clone())
        }

        fn leave(&self, token: u64) {
            step::note("rcu_read_unlock()");
            // Release: pairs with the acquire in `run_ready`.
            self.left.fetch_add(1, Ordering::Release);
            self.with(|state| {
                state.inside.remove(&token);
                for (readers, _) in &mut state.waiting {
                    readers.remove(&token);
                }
            });
            self.run_ready();
        }

        fn run_ready(&self) {
            let ready: Vec<Callback> = self.with(|state| {
                let (ready, waiting) = std::mem::take(&mut state.waiting)
                    .into_iter()
                    .partition(|(readers, _)| readers.is_empty());
                state.waiting = waiting;
                let ready: Vec<(BTreeSet<u64>, Callback)> = ready;
                ready.into_iter().map(|(_, callback)| callback).collect()
            });
            if ready.is_empty() {
                return;
            }
            // Acquire: pairs with the release of every reader that left.
            // A read-modify-write, for a load could find an older value.
            self.left.fetch_add(0, Ordering::Acquire);
            for callback in ready {
                step::note("the grace period is over: what was deferred runs");
                callback();
                self.with(|state| state.run += 1);
            }
        }
    }

    /// One set of readers and what waits for them. A clone is the same domain.
    #[derive(Clone)]
    pub struct Domain(Arc<Shared>);

    /// Which domain something belongs to. It keeps no domain alive.
    pub struct DomainId(Weak<Shared>);

    impl DomainId {
        /// Whether `guard` is a section of this domain.
        pub fn owns(&self, guard: &Guard<'_>) -> bool {
            std::ptr::eq(self.0.as_ptr(), Arc::as_ptr(&guard.0.shared))
        }
    }

    impl Default for Domain {
        fn default() -> Self {
            Self::new()
        }
    }

    impl Domain {
        /// A domain with no readers.
        pub fn new() -> Self {
            Domain(Arc::new(Shared {
                state: Mutex::default(),
                left: AtomicUsize::new(0),
                begun: AtomicUsize::new(0),
            }))
        }

        /// A reader for the calling thread.
        pub fn register(&self) -> Reader {
            Reader {
                shared: Arc::clone(&self.0),
                depth: Cell::new(0),
                token: Cell::new(0),
            }
        }

        /// Which domain it is, for what must not own it.
        pub fn id(&self) -> DomainId {
            DomainId(Arc::downgrade(&self.0))
        }

        /// Run everything that waits: nobody is inside a section.
        pub fn drain(&self) -> u64 {
            self.0.run_ready();
            let (deferred, run) = self.deferred_and_run();
            deferred - run
        }

        /// Wait until every section entered before this call is left.
        pub fn synchronize(&self) {
            let before = self.0.begin();
            step::note("synchronize_rcu() begins to wait");
            while self.0.with(|state| !state.inside.is_disjoint(&before)) {
                loom::thread::yield_now();
            }
            step::note("synchronize_rcu() returns");
            // Acquire: as in `run_ready`.
            self.0.left.fetch_add(0, Ordering::Acquire);
        }

        /// Wait for everything deferred before this call to have run.
        pub fn barrier(&self) {
            let target = self.0.with(|state| state.deferred);
            while self.0.with(|state| state.run < target) {
                loom::thread::yield_now();
            }
        }

        /// How many callbacks were deferred, and how many of them have run.
        pub fn deferred_and_run(&self) -> (u64, u64) {
            self.0.with(|state| (state.deferred, state.run))
        }
    }

    /// One thread's entrance to a [`Domain`].
    pub struct Reader {
        shared: Arc<Shared>,
        depth: Cell<u32>,
        token: Cell<u64>,
    }

    impl Reader {
        /// Enter a read-side section.
        pub fn lock(&self) -> Guard<'_> {
            if self.depth.get() == 0 {
                self.token.set(self.shared.enter());
            }
            self.depth.set(self.depth.get() + 1);
            Guard(self)
        }

        /// Whether this thread is inside a section.
        pub fn is_inside(&self) -> bool {
            self.depth.get() != 0
        }

        /// Nothing to push: the model runs callbacks as soon as it may.
        pub fn flush(&self) {}
    }

    /// A read-side section; dropping it leaves the section.
    pub struct Guard<'r>(&'r Reader);

    impl Drop for Guard<'_> {
        fn drop(&mut self) {
            self.0.depth.set(self.0.depth.get() - 1);
            if self.0.depth.get() == 0 {
                self.0.shared.leave(self.0.token.get());
            }
        }
    }

    impl Guard<'_> {
        /// Run `f` once no reader that could hold what was unlinked is left.
        pub fn defer(&self, f: impl FnOnce() + Send + 'static) {
            let readers = self.0.shared.begin();
            step::note("call_rcu()");
            self.0.shared.with(|state| {
                state.deferred += 1;
                // Those that have left in the meantime are not waited for.
                let readers = readers.intersection(&state.inside).copied().collect();
                state.waiting.push((readers, Box::new(f)));
            });
        }
    }

    /// A pointer that readers follow inside a section and writers replace.
    pub struct RcuCell<T>(AtomicPtr<T>, DomainId);

    impl<T: Send + Sync + 'static> RcuCell<T> {
        /// A cell read in sections of `domain`.
        pub fn new(domain: &Domain, value: T) -> Self {
            let pointer = AtomicPtr::new(Box::into_raw(Box::new(value)));
            RcuCell(pointer, domain.id())
        }

        /// The value now.
        pub fn load<'g>(&self, guard: &'g Guard<'_>) -> &'g T {
            assert!(self.1.owns(guard));
            // SAFETY: never null, and dropped only after this section.
            unsafe { &*self.0.load(Ordering::Acquire) }
        }

        /// Publish another value; the old one is dropped after a grace period.
        pub fn replace(&self, value: T, guard: &Guard<'_>) {
            assert!(self.1.owns(guard));
            let new = Box::into_raw(Box::new(value));
            let old = self.0.swap(new, Ordering::AcqRel);
            // SAFETY: made by `Box::into_raw`, unlinked just now, and by this
            // thread alone.
            let old = unsafe { Box::from_raw(old) };
            guard.defer(move || drop(old));
        }
    }

    impl<T> Drop for RcuCell<T> {
        fn drop(&mut self) {
            let pointer = self.0.with_mut(|p| *p);
            // SAFETY: made by `Box::into_raw`; `&mut self` excludes readers.
            drop(unsafe { Box::from_raw(pointer) });
        }
    }
}

pub use imp::{Domain, DomainId, Guard, RcuCell, Reader};
