//! The inputs that fuzzing has found worth keeping, each given to the target
//! that it was found for: those that once failed, and a small set that reaches
//! much of the code. And every input to every other target too, for a reader
//! of one text must not fall over another.
//!
//! `make fuzz` looks for more (`fuzz/`).
#![cfg(not(loom))]

mod targets;

use std::fs;
use std::path::Path;

/// The inputs kept for a target, by name.
fn inputs(target: &str) -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fuzz/inputs")
        .join(target);
    let entries = fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut inputs: Vec<_> = entries
        .map(|entry| {
            let path = entry.expect("listed").path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            (name.into_owned(), fs::read(&path).expect("readable"))
        })
        .collect();
    inputs.sort();
    inputs
}

#[test]
fn what_was_found_stays_found() {
    for &(from, _) in targets::TARGETS {
        let inputs = inputs(from);
        assert!(!inputs.is_empty(), "no input is kept for {from}");
        for (name, data) in &inputs {
            for &(to, target) in targets::TARGETS {
                println!("{from}/{name} given to {to}");
                target(data);
            }
        }
    }
}
