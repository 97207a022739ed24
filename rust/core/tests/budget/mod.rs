//! How much a random test does.

/// `n` cases; `make soak` multiplies them, by `YOUNGBIT_SOAK`. (`PROPTEST_CASES`
/// is only for tests that do not say how many they want.)
pub fn cases(n: u32) -> u32 {
    let more = std::env::var("YOUNGBIT_SOAK").ok();
    n * more.map_or(1, |more| more.parse().expect("YOUNGBIT_SOAK is a number"))
}
