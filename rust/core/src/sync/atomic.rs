//! Atomic words, and large zeroed arrays of them.

#[cfg(not(loom))]
pub use core::sync::atomic::{
    AtomicBool, AtomicU8, AtomicU16, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence,
};

#[cfg(loom)]
pub use loom::sync::atomic::{
    AtomicBool, AtomicU8, AtomicU16, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence,
};

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
