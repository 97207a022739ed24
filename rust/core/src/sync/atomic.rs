//! Atomic words, and large zeroed arrays of them.

#[cfg(not(any(loom, youngbit_tsan, all(target_arch = "x86_64", not(miri)))))]
pub use core::sync::atomic::fence;
#[cfg(not(loom))]
pub use core::sync::atomic::{
    AtomicBool, AtomicU8, AtomicU16, AtomicU32, AtomicU64, AtomicUsize, Ordering,
};

#[cfg(loom)]
pub use loom::sync::atomic::{Ordering, fence};
#[cfg(loom)]
pub use observed::{AtomicBool, AtomicU8, AtomicU16, AtomicU32, AtomicU64, AtomicUsize};

/// A fence. A sequentially consistent one is a locked operation that changes
/// nothing, as the kernel's `smp_mb()` on x86 is: `mfence`, which `core` makes
/// of it, also waits for what no thread sees, and takes twice as long.
#[cfg(all(target_arch = "x86_64", not(any(loom, youngbit_tsan, miri))))]
#[inline(always)]
pub fn fence(order: Ordering) {
    if order != Ordering::SeqCst {
        return core::sync::atomic::fence(order);
    }
    // SAFETY: ORs 0 into the eight bytes below the top of this thread's own
    // stack, which are mapped (a call would write there) and keep their value
    // whether or not they are in use. Without `nomem`, the compiler moves no
    // access of memory across it; with the lock prefix, neither does the
    // processor.
    unsafe {
        core::arch::asm!("lock or qword ptr [rsp - 8], 0", options(nostack));
    }
}

/// A fence, as ThreadSanitizer can follow it, for it does not know fences: an
/// exchange on one word that all fences share. It orders at least what the
/// fence does, and more (every fence after every earlier one, with what came
/// before that), so a race that only this hides is not reported: such orders
/// are loom's, which knows fences exactly.
#[cfg(youngbit_tsan)]
pub fn fence(order: Ordering) {
    static ALL: AtomicU32 = AtomicU32::new(0);
    ALL.fetch_add(1, order);
}

/// A sum that no thread decides anything by. A model checker does not see it:
/// it is a statistic of the model, not a part of the protocol.
pub type Tally = core::sync::atomic::AtomicU64;

#[cfg(loom)]
mod observed {
    //! loom's words, each operation of which is kept as a
    //! [step](crate::sync::step).
    //!
    //! loom 0.7 remembers only the last access of a word. When a thread reads a
    //! word and then writes it, its own read hides the other threads' reads
    //! before, and orders that put the write ahead of them are not explored
    //! (loom's issues 166 and 392). Nearly all of what is checked here reads
    //! and then exchanges. So every read also changes a second, unordered word
    //! beside the first: reads of one word are then in conflict too, and all
    //! orders of all accesses are explored.

    use super::super::step::{self, Op};
    use super::Ordering;
    use std::panic::Location;

    macro_rules! observed {
        ($($name:ident($int:ty) { $($fetch:ident)* })*) => {$(
            /// As in `core`, observed.
            #[derive(Debug, Default)]
            pub struct $name(loom::sync::atomic::$name, loom::sync::atomic::AtomicU8);

            #[allow(trivial_numeric_casts, clippy::unnecessary_cast)]
            impl $name {
                /// A word.
                #[track_caller]
                pub fn new(value: $int) -> Self {
                    Self(
                        loom::sync::atomic::$name::new(value),
                        loom::sync::atomic::AtomicU8::new(0),
                    )
                }
                /// Read.
                #[track_caller]
                pub fn load(&self, order: Ordering) -> $int {
                    self.1.fetch_or(0, Ordering::Relaxed);
                    let seen = self.0.load(order);
                    step::word(self, Op::Load, seen as u64, seen as u64, Location::caller());
                    seen
                }
                /// Write.
                #[track_caller]
                pub fn store(&self, value: $int, order: Ordering) {
                    self.0.store(value, order);
                    step::word(self, Op::Store, 0, value as u64, Location::caller());
                }
                /// Exchange.
                #[track_caller]
                pub fn swap(&self, value: $int, order: Ordering) -> $int {
                    let old = self.0.swap(value, order);
                    step::word(self, Op::Update, old as u64, value as u64, Location::caller());
                    old
                }
                /// Compare and exchange.
                ///
                /// # Errors
                /// The value that was found.
                #[track_caller]
                pub fn compare_exchange(
                    &self,
                    old: $int,
                    new: $int,
                    success: Ordering,
                    failure: Ordering,
                ) -> Result<$int, $int> {
                    let result = self.0.compare_exchange(old, new, success, failure);
                    let at = Location::caller();
                    match result {
                        Ok(_) => step::word(self, Op::Exchanged, old as u64, new as u64, at),
                        Err(now) => {
                            step::word(self, Op::ExchangeFailed, now as u64, now as u64, at);
                        }
                    }
                    result
                }
                /// Compare and exchange.
                ///
                /// # Errors
                /// The value that was found.
                #[track_caller]
                pub fn compare_exchange_weak(
                    &self,
                    old: $int,
                    new: $int,
                    success: Ordering,
                    failure: Ordering,
                ) -> Result<$int, $int> {
                    self.compare_exchange(old, new, success, failure)
                }
                /// Change by a function, until no one else does meanwhile.
                ///
                /// # Errors
                /// The value for which the function has none.
                #[track_caller]
                pub fn fetch_update(
                    &self,
                    success: Ordering,
                    failure: Ordering,
                    mut f: impl FnMut($int) -> Option<$int>,
                ) -> Result<$int, $int> {
                    let mut old = self.load(failure);
                    while let Some(new) = f(old) {
                        match self.compare_exchange(old, new, success, failure) {
                            Ok(_) => return Ok(old),
                            Err(now) => old = now,
                        }
                    }
                    Err(old)
                }
                $(
                    /// Change in one step.
                    #[track_caller]
                    pub fn $fetch(&self, value: $int, order: Ordering) -> $int {
                        let old = self.0.$fetch(value, order);
                        let new = update::$fetch(old, value);
                        step::word(self, Op::Update, old as u64, new as u64, Location::caller());
                        old
                    }
                )*
            }
        )*};
    }

    /// What the operations leave behind.
    mod update {
        pub fn fetch_and<T: std::ops::BitAnd<Output = T>>(a: T, b: T) -> T {
            a & b
        }
        pub fn fetch_or<T: std::ops::BitOr<Output = T>>(a: T, b: T) -> T {
            a | b
        }
        pub fn fetch_add<T: std::ops::Add<Output = T>>(a: T, b: T) -> T
        where
            std::num::Wrapping<T>: std::ops::Add<Output = std::num::Wrapping<T>>,
        {
            (std::num::Wrapping(a) + std::num::Wrapping(b)).0
        }
        pub fn fetch_sub<T: std::ops::Sub<Output = T>>(a: T, b: T) -> T
        where
            std::num::Wrapping<T>: std::ops::Sub<Output = std::num::Wrapping<T>>,
        {
            (std::num::Wrapping(a) - std::num::Wrapping(b)).0
        }
        pub fn fetch_max<T: Ord>(a: T, b: T) -> T {
            a.max(b)
        }
        pub fn fetch_min<T: Ord>(a: T, b: T) -> T {
            a.min(b)
        }
    }

    observed! {
        AtomicBool(bool) { fetch_and fetch_or }
        AtomicU8(u8) { fetch_and fetch_or fetch_add fetch_sub fetch_max fetch_min }
        AtomicU16(u16) { fetch_and fetch_or fetch_add fetch_sub fetch_max fetch_min }
        AtomicU32(u32) { fetch_and fetch_or fetch_add fetch_sub fetch_max fetch_min }
        AtomicU64(u64) { fetch_and fetch_or fetch_add fetch_sub fetch_max fetch_min }
        AtomicUsize(usize) { fetch_and fetch_or fetch_add fetch_sub fetch_max fetch_min }
    }
}

/// An atomic integer whose all-zero bit pattern is the value 0.
///
/// # Safety
/// An implementor must be valid when every byte of it is zero.
#[cfg(not(loom))]
pub unsafe trait Zeroable {}

/// As without loom, where an atomic has no zero bit pattern and must be made.
#[cfg(loom)]
pub trait Zeroable {
    /// A new word holding 0.
    fn zero() -> Self;
}

macro_rules! zeroable {
    ($($t:ident),*) => {$(
        // SAFETY: `core` guarantees that the atomic has the same in-memory
        // representation as its integer, for which all-zero is 0.
        #[cfg(not(loom))]
        unsafe impl Zeroable for $t {}
        #[cfg(loom)]
        impl Zeroable for $t {
            fn zero() -> Self {
                $t::new(0)
            }
        }
    )*};
}
zeroable!(AtomicU8, AtomicU16, AtomicU32, AtomicU64);

/// `len` words of zero. The memory comes from the allocator's zeroed path, so
/// that pages never written cost nothing.
pub fn zeroed<T: Zeroable>(len: usize) -> Box<[T]> {
    #[cfg(not(loom))]
    {
        let boxed = Box::<[T]>::new_zeroed_slice(len);
        // SAFETY: `T: Zeroable` says that all-zero is a valid `T`.
        unsafe { boxed.assume_init() }
    }
    #[cfg(loom)]
    {
        (0..len).map(|_| T::zero()).collect()
    }
}
