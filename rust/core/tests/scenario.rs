//! Random scenarios: whatever is asked, the machine stays consistent, and the
//! same scenario does the same again.

mod budget;

use proptest::prelude::*;
use std::collections::BTreeSet;
use youngbit_core::error::Errno;
use youngbit_core::lru_gen::{Asking, check};
use youngbit_core::scenario::conditions::{Kvm, Mmu};
use youngbit_core::scenario::{Conditions, Op, Record, Runner, parse};

fn conditions() -> impl Strategy<Value = Conditions> {
    let kernel = prop_oneof![
        Just((Kvm::V7, Asking::FastOnly)),
        Just((Kvm::Baseline, Asking::Accurate)),
        Just((Kvm::Baseline, Asking::None)),
        Just((Kvm::V9, Asking::Accurate)),
    ];
    let swap = prop_oneof![Just(1 << 12), Just(100), Just(0)];
    (kernel, 0..16u32, any::<bool>(), swap, 600..4000u64).prop_map(
        |((kvm, asking), caps, ad_bits, swap_pages, host_pages)| Conditions {
            kvm,
            asking,
            caps: caps | 1,
            mmu: Mmu::Tdp,
            ad_bits,
            swap_pages,
            host_pages,
            worker_pages: 13,
        },
    )
}

fn line() -> impl Strategy<Value = String> {
    let region = prop::sample::select(vec![("A", 700u64), ("S", 300), ("F", 500), ("R", 100)]);
    let pages =
        (region, any::<u64>(), any::<u64>(), 1..9u64).prop_map(|((name, size), s, c, stride)| {
            let start = s % size;
            let count = 1 + c % ((size - start).div_ceil(stride));
            format!("{name} {start} {count} {stride}")
        });
    let rw = prop::sample::select(vec!["r", "w"]);
    prop_oneof![
        6 => (prop::sample::select(vec!["touch", "vtouch", "vtouch2"]), pages.clone(), rw)
            .prop_map(|(who, pages, rw)| format!("{who} {pages} {rw}")),
        2 => pages.clone().prop_map(|pages| format!("read {pages}")),
        5 => (0..2, 0..2).prop_map(|(swap, force)| format!("age {swap} {force}")),
        5 => (prop::sample::select(vec!["min", "-1", "-2", "-3"]), 0..=210u32, 0..800u32)
            .prop_map(|(g, s, n)| format!("evict {g} {s} {n}")),
        1 => prop::sample::select(vec!["A", "S", "F", "R"]).prop_map(|r| format!("vmdel {r}")),
        1 => prop::sample::select(vec!["A", "S", "F", "R"]).prop_map(|r| format!("vmre {r}")),
        1 => (0..16).prop_map(|m| format!("write /sys/kernel/mm/lru_gen/enabled {}", m | 1)),
        1 => (0..3000u32).prop_map(|n| format!("memset memory.reclaim {n}K")),
        1 => (200..1500u32).prop_map(|n| format!("memset memory.max {}", n * 4096)),
        1 => (200..1500u32).prop_map(|n| format!("memset memory.high {}", n * 4096)),
        1 => Just("memset memory.max max".to_owned()),
        1 => Just("sleep 100".to_owned()),
    ]
}

fn run(conditions: &Conditions, text: &str) -> Result<Vec<Record>, TestCaseError> {
    let steps = parse::parse(text.as_bytes()).map_err(|e| TestCaseError::fail(e.to_string()))?;
    let mut runner = Runner::new(conditions).map_err(|e| TestCaseError::fail(e.to_string()))?;
    let mut records = Vec::new();
    for step in &steps {
        let checks = step.name == "check";
        let place = format!("line {}: {} {}", step.line, step.name, step.args);
        let record = match runner.step(step) {
            Ok(record) => record,
            // The worker was killed: the scenario ends, and what it left is checked.
            Err(e) if e.errno() == Errno::ENOMEM => {
                check::check(runner.host())
                    .map_err(|e| TestCaseError::fail(format!("{place}: {e}")))?;
                return Ok(records);
            }
            Err(e) => return Err(TestCaseError::fail(format!("{place}: {e}"))),
        };
        if !checks {
            check::check(runner.host())
                .map_err(|e| TestCaseError::fail(format!("{place}: {e}")))?;
        }
        records.push(record);
    }
    Ok(records)
}

/// `check` operations for all pages that were written.
fn written(records: &[Record]) -> String {
    let mut pages = BTreeSet::new();
    for record in records
        .iter()
        .filter(|r| r.errno == 0 && r.args.ends_with(" w"))
    {
        let step = format!(
            "map A anon 700\nmap S anon 700\nmap F anon 700\nmap R anon 700\n\
            touch {}",
            record.args
        );
        let steps = parse::parse(step.as_bytes()).expect("as it was run");
        if let Some(Op::Touch { pages: touched, .. }) = steps.last().map(|step| &step.op) {
            pages.extend(touched.iter().map(|n| (touched.region.clone(), n)));
        }
    }
    let check = |(region, n)| format!("check {region} {n} 1 1 0x5a\n");
    pages.into_iter().map(check).collect()
}

/// Swap is nearly full, so that reclaim leaves anonymous memory alone, and the
/// limit is below what is there: the kernel would kill the worker.
#[test]
fn a_worker_that_cannot_have_its_pages_ends_the_scenario() {
    let conditions = Conditions {
        kvm: Kvm::V7,
        asking: Asking::FastOnly,
        caps: 1,
        mmu: Mmu::Tdp,
        ad_bits: false,
        swap_pages: 100,
        host_pages: 712,
        worker_pages: 13,
    };
    let text = "map A anon 700\ntouch A 1 276 1 w\nmemset memory.max 819200\n";
    let mut runner = Runner::new(&conditions).expect("a machine");
    let steps = parse::parse(text.as_bytes()).expect("a scenario");
    for step in &steps {
        runner.step(step).expect("the worker lives");
    }
    let e = runner.step(&steps[1]).expect_err("the worker dies");
    assert_eq!(e.errno(), Errno::ENOMEM);
    assert!(e.to_string().contains("the worker is killed"), "{e}");
    check::check(runner.host()).expect("a consistent machine");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(budget::cases(60)))]
    #[test]
    fn any_scenario_leaves_a_consistent_machine(conditions in conditions(),
                                               lines in prop::collection::vec(line(), 1..40)) {
        let head = "vm\nvm2\nmap A anon 700\nmap S shmem 300\nmap F file 500 /f\nmap R filernd 100 /g\n\
            vmslot A\nvmslot S\nvmslot F\nvmslot R\nvmslot2 A\nvmslot2 S\nvmslot2 F\nvmslot2 R\n";
        // Every page that a step wrote, if that step had no error, is asked for
        // at the end: wherever it has been since, it holds what was written.
        let text = head.to_owned() + &lines.join("\n");
        let written = written(&run(&conditions, &text)?);
        let text = text + "\nmemset memory.max max\nmemset memory.high max\n" + &written;
        let records = run(&conditions, &text)?;
        for record in &records {
            if record.op == "check" {
                prop_assert!(matches!(record.errno, 0 | 12), "{} is lost: {record:?}", record.args);
            }
        }
        prop_assert_eq!(&records, &run(&conditions, &text)?, "inline runs repeat");
    }
}

fn plain() -> Conditions {
    Conditions {
        kvm: Kvm::V7,
        asking: Asking::FastOnly,
        caps: 1,
        mmu: Mmu::None,
        ad_bits: true,
        swap_pages: 1 << 12,
        host_pages: 4000,
        worker_pages: 13,
    }
}

/// A path is one file with one page cache, however large each mapping of it is.
#[test]
fn regions_of_one_path_share_its_pages() {
    let text = "map F file 64 /mnt/f\ntouch F 0 64 1 w\nmap G filernd 256 /mnt/f\n\
                check G 0 64 1 0x5a\ntouch G 0 256 1 r\nmap H file 64\ntouch H 0 64 1 r\n\
                map S shmem 64 /dev/shm/s\ntouch S 0 64 1 w\nmap T shmem 128 /dev/shm/s\n\
                check T 0 64 1 0x5a\nmap U shmem 64\ncheck U 0 1 1 0";
    let records = run(&plain(), text).expect("it runs");
    let cached = |step: usize, name: &str| records[step].regions[name].incore;
    assert_eq!(cached(2, "G"), Some(64), "before anything touches it");
    assert_eq!((cached(4, "F"), cached(4, "G")), (Some(64), Some(256)));
    let file_pages = |step: usize| -> u64 {
        let generations = records[step].generations.values();
        generations.map(|[_, file]| file).sum()
    };
    assert_eq!(file_pages(4), 256, "one page cache for one file");
    assert_eq!(
        file_pages(6),
        256 + 64,
        "H has no path, and a file of its own"
    );
    let errors: Vec<_> = records.iter().map(|record| record.errno).collect();
    assert_eq!(errors, [0; 13]);
}

#[test]
fn a_path_is_a_files_or_a_shmems_and_never_anonymous_memorys() {
    for (text, what) in [
        ("map A anon 4 /mnt/f", "line 1, column 14: expected the end"),
        (
            "map S shmem 4 x\nmap F file 4 x",
            "line 2, column 14: expected a path that is no shmem's",
        ),
        (
            "map F filernd 4 x\nmap S shmem 4 x",
            "line 2, column 15: expected a path that is no file's",
        ),
    ] {
        let error = parse::parse(text.as_bytes()).expect_err(text).to_string();
        assert!(error.contains(what), "{text:?}: {error}");
    }
}

#[test]
fn a_recording_s_first_line_says_which_machine_and_no_other() {
    let read = |kernel: &str, mmu: &str, rest: &str| {
        let line = format!(
            r#"{{"scenario": "s", "kernel": "{kernel}", "lru_gen_enabled": "0x000f", "mmu": "{mmu}",
            "swap_pages": 8{rest}}}"#
        );
        Conditions::from_header(&serde_json::from_str(&line).expect("a header"))
    };
    for (kernel, mmu, rest, expected) in [
        ("v7", "tdp", "", (Kvm::V7, Asking::FastOnly, Mmu::Tdp, true)),
        (
            "v7 no-ad",
            "tdp",
            "",
            (Kvm::V7, Asking::FastOnly, Mmu::Tdp, false),
        ),
        (
            "v9",
            "shadow",
            "",
            (Kvm::V9, Asking::Accurate, Mmu::Shadow, true),
        ),
        (
            "6.12",
            "none",
            "",
            (Kvm::Baseline, Asking::None, Mmu::None, true),
        ),
        (
            "6.12 no-ad",
            "direct-rmap",
            r#", "secondary_mmu_walk": true"#,
            (Kvm::Baseline, Asking::Accurate, Mmu::DirectRmap, false),
        ),
    ] {
        let c = read(kernel, mmu, rest).expect(kernel);
        assert_eq!(
            (c.kvm, c.asking, c.mmu, c.ad_bits),
            expected,
            "{kernel} {mmu}"
        );
    }
    for (kernel, mmu, rest, errno, what) in [
        (
            "v7 no-ad",
            "shadow",
            "",
            Errno::EOPNOTSUPP,
            "shadow paging always has them",
        ),
        (
            "v7",
            "tdp2",
            "",
            Errno::EINVAL,
            "expected none, tdp, direct-rmap or shadow",
        ),
        (
            "v7",
            "tdp",
            r#", "page_size": 16384"#,
            Errno::EINVAL,
            "page_size 16384: expected 4096",
        ),
    ] {
        let error = read(kernel, mmu, rest).expect_err(what);
        assert_eq!(error.errno(), errno, "{error}");
        assert!(error.to_string().contains(what), "{error}");
    }
}

#[test]
fn a_memory_cgroup_has_the_files_that_the_documentation_names() {
    let files = [
        ("high", "max", None),
        ("max", "max", None),
        ("reclaim", "0", None),
        ("current", "0", Some(Errno::EINVAL)),
        ("stat", "0", Some(Errno::EINVAL)),
        ("min", "0", Some(Errno::ENOENT)),
        ("low", "0", Some(Errno::ENOENT)),
        ("swap.max", "max", Some(Errno::ENOENT)),
    ];
    let text: String = files
        .iter()
        .map(|(file, value, _)| format!("memset memory.{file} {value}\n"))
        .collect();
    let records = run(&plain(), &text).expect("it runs");
    for (record, (file, _, expected)) in records.iter().zip(files) {
        assert_eq!(record.errno, expected.map_or(0, |e| e as i32), "{file}");
    }
}
