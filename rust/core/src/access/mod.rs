//! What guests do: recorded programs and their readers.

pub mod trace_text;
