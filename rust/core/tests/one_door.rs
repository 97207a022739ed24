//! Nothing outside `sync` may reach for atomics, locks, threads or epochs.

use std::fs;
use std::path::Path;

const FORBIDDEN: &[&str] = &[
    "core::sync::atomic",
    "std::sync::atomic",
    "std::sync::Mutex",
    "std::sync::RwLock",
    "std::sync::Condvar",
    "std::sync::Barrier",
    "std::sync::mpsc",
    "std::sync::OnceLock",
    "std::sync::Once",
    "std::thread",
    "parking_lot",
    "crossbeam",
    "spin::",
    "spin_loop",
    "loom::",
];

fn offences(dir: &Path, found: &mut Vec<String>) {
    for entry in fs::read_dir(dir).expect("source folder").flatten() {
        let path = entry.path();
        if path.is_dir() {
            if !path.ends_with("sync") {
                offences(&path, found);
            }
            continue;
        }
        let text = fs::read_to_string(&path).expect("source file");
        for (number, line) in text.lines().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            let code = code.replace("crate::sync::spin::", "");
            if let Some(word) = FORBIDDEN.iter().find(|word| code.contains(**word)) {
                found.push(format!("{}:{}: {word}", path.display(), number + 1));
            }
        }
    }
}

#[test]
fn sync_is_the_only_door() {
    let mut found = Vec::new();
    offences(
        &Path::new(env!("CARGO_MANIFEST_DIR")).join("src"),
        &mut found,
    );
    assert!(
        found.is_empty(),
        "take these from crate::sync instead:\n{}",
        found.join("\n")
    );
}

#[test]
fn the_check_sees_what_it_must() {
    let code = "use std::sync::atomic::AtomicU64;";
    assert!(FORBIDDEN.iter().any(|word| code.contains(word)));
}
