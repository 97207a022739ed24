//! Every recording of a real kernel, run again by the model and compared.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use youngbit_core::Errno;
use youngbit_core::scenario::{Recording, replay};

fn data() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/conformance")
}

/// Recordings and equal ones, and what differs.
#[derive(Default)]
struct Tally {
    recordings: usize,
    equal: usize,
    without_machine: usize,
    differences: Vec<String>,
}

fn run(only: Option<&str>) -> BTreeMap<String, Tally> {
    let mut tallies: BTreeMap<String, Tally> = BTreeMap::new();
    let mut files: Vec<PathBuf> = Vec::new();
    for folder in fs::read_dir(data()).expect("recordings").flatten() {
        if folder.path().is_dir() && folder.file_name() != "scenarios" {
            files.extend(
                fs::read_dir(folder.path())
                    .expect("folder")
                    .flatten()
                    .map(|f| f.path()),
            );
        }
    }
    files.sort();
    for file in files {
        let folder = file.parent().and_then(Path::file_name).expect("folder");
        let name = format!(
            "{}/{}",
            folder.to_string_lossy(),
            file.file_name().expect("name").to_string_lossy()
        );
        if only.is_some_and(|only| !name.contains(only)) {
            continue;
        }
        let tally = tallies
            .entry(folder.to_string_lossy().into_owned())
            .or_default();
        tally.recordings += 1;
        let recording = fs::read(&file).map(|text| Recording::parse(&text));
        let recording = recording.expect("readable").expect("a recording");
        let scenario = format!("scenarios/{}.scn", recording.header.scenario);
        let scenario = fs::read(data().join(scenario)).expect("its scenario");
        match replay(&recording, &scenario) {
            Ok(comparison) => match comparison.first_difference {
                None => tally.equal += 1,
                Some(difference) => tally.differences.push(format!("{name}: {difference}")),
            },
            Err(e) if e.errno() == Errno::EOPNOTSUPP => tally.without_machine += 1,
            Err(e) => tally.differences.push(format!("{name}: {e}")),
        }
    }
    tallies
}

#[test]
fn recordings_are_reproduced() {
    let only = std::env::var("YOUNGBIT_RECORDING").ok();
    let tallies = run(only.as_deref());
    let mut differences = Vec::new();
    for (folder, tally) in &tallies {
        println!(
            "{folder}: {} of {} equal, {} without a machine",
            tally.equal, tally.recordings, tally.without_machine
        );
        differences.extend(tally.differences.iter().cloned());
    }
    assert!(differences.is_empty(), "{}\n", differences.join("\n"));
}
