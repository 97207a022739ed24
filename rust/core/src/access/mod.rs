//! What guests do: streams of accesses, and readers of recorded ones.

pub mod stream;
pub mod trace_text;

pub use stream::{Access, Accesses, Pattern, Phase, Stream};
