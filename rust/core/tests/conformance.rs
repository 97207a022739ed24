//! Every recording of a real kernel, run again by the model and compared.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use youngbit_core::scenario::{Recording, compare, replay};

fn data() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/conformance")
}

/// Recordings and equal ones, and what differs.
#[derive(Default)]
struct Tally {
    recordings: usize,
    equal: usize,
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
        println!("{folder}: {} of {} equal", tally.equal, tally.recordings);
        differences.extend(tally.differences.iter().cloned());
    }
    assert!(!tallies.is_empty(), "no recordings were found");
    assert!(differences.is_empty(), "{}\n", differences.join("\n"));
}

/// A recording against itself with one thing changed.
fn changed(name: &str, change: impl FnOnce(&mut Recording)) -> Option<String> {
    let text = fs::read(data().join(name)).expect("readable");
    let recording = Recording::parse(&text).expect("a recording");
    let mut ours = Recording::parse(&text).expect("a recording");
    change(&mut ours);
    compare(&recording, &ours.records).first_difference
}

#[test]
fn the_comparison_sees_what_the_rules_forbid_and_nothing_else() {
    let name = "linux-v7/kv_d_evict_hot.enf.jsonl";
    assert_eq!(changed(name, |_| ()), None);
    let anon = |step: usize, by: u64| {
        changed(name, move |r| {
            let bins = &mut r.records[step].generations;
            bins.values_mut().last().expect("a bin")[0] += by;
        })
    };
    assert_eq!(anon(5, 16), None);
    assert!(anon(5, 17).is_some_and(|d| d.starts_with("step 5 (age 1 1): anon pages")));
    let errno = changed(name, |r| r.records[9].errno = 22);
    assert!(errno.is_some_and(|d| d.contains("errno: recorded 0, here 22")));
    let gone = changed(name, |r| {
        r.records[5].generations.pop_first();
    });
    assert!(gone.is_some_and(|d| d.contains("generations: recorded")));
    let present = |step: usize, by: u64| {
        changed(name, move |r| {
            let region = r.records[step].regions.get_mut("A").expect("mapped");
            region.present += by;
        })
    };
    assert_eq!((present(5, 2), present(9, 4)), (None, None));
    assert!(present(5, 3).is_some() && present(9, 5).is_some());
    let calls = |step: usize, by: u64| {
        changed(name, move |r| {
            r.records[step].trace.as_mut().expect("a trace").kvm_age_hva += by;
        })
    };
    assert_eq!((calls(5, 16), calls(0, 226_222)), (None, None));
    assert!(calls(5, 17).is_some() && calls(1, 17).is_some());
    let fast = |by: u64| {
        changed(name, move |r| {
            let trace = r.records[9].trace.as_mut().expect("a trace");
            *trace.region_age_hva_fast.as_mut().expect("told apart") += by;
        })
    };
    assert_eq!(fast(8), None);
    assert!(fast(9).is_some());
    let short = changed(name, |r| {
        r.records.pop();
    });
    assert!(short.is_some_and(|d| d.contains("no such step")));
}
