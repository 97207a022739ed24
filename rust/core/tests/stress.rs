//! Torture, short: every MMU with every protocol. With the feature `mutants`,
//! `YOUNGBIT_MUTANT` selects the variant that is tortured, `YOUNGBIT_ROUNDS`
//! how many rounds it gets.
#![cfg(not(loom))]

use youngbit_core::kvm::{MmuKind, Protocol};
use youngbit_core::stress::{self, Options, Round};

/// With the `mutants` feature: the variant that these tests run on.
fn select_mutant() {
    #[cfg(feature = "mutants")]
    {
        use youngbit_core::mutant::{Mutant, select};
        let wanted = std::env::var("YOUNGBIT_MUTANT").unwrap_or_default();
        select(Mutant::ALL.iter().copied().find(|m| m.name() == wanted));
    }
}

fn asked(variable: &str, default: u64) -> u64 {
    let asked = std::env::var(variable).ok();
    asked.map_or(default, |n| n.parse().expect("a number"))
}

fn torture(mmu: MmuKind) {
    select_mutant();
    let accesses = asked("YOUNGBIT_ACCESSES", 30_000);
    let mut seed = 1;
    for _ in 0..asked("YOUNGBIT_ROUNDS", 2) {
        for &protocol in &[Protocol::BASELINE, Protocol::V7, Protocol::V9] {
            seed = stress::next_seed(seed);
            let options = Options {
                mmu,
                protocol,
                accesses,
                seed,
                ..Options::default()
            };
            let round = stress::round(&options, &mut |_| true).expect("a valid round");
            assert_eq!(
                round.failure, None,
                "seed {seed}, {}: {:?}",
                round.machine, round.deeds
            );
            assert!(round.accesses >= accesses && !round.interrupted);
        }
    }
}

#[test]
fn tdp() {
    torture(MmuKind::Tdp);
}

#[test]
fn shadow() {
    torture(MmuKind::Shadow);
}

#[test]
fn nested() {
    torture(MmuKind::Nested);
}

#[test]
fn a_round_can_be_ended() {
    let options = Options {
        accesses: u64::MAX,
        ..Options::default()
    };
    let mut polls = 0;
    let round: Round = stress::round(&options, &mut |_| {
        polls += 1;
        polls < 5
    })
    .expect("a valid round");
    assert_eq!(round.failure, None);
    assert!(round.interrupted && round.wall_ns > 0);
}

#[test]
fn impossible_rounds_are_refused() {
    for options in [
        Options {
            vcpus: 0,
            ..Options::default()
        },
        Options {
            vcpus: stress::MAX_THREADS + 1,
            ..Options::default()
        },
        Options {
            agers: stress::MAX_AGERS + 1,
            ..Options::default()
        },
        Options {
            accesses: 0,
            ..Options::default()
        },
    ] {
        assert!(
            stress::round(&options, &mut |_| true).is_err(),
            "{options:?}"
        );
    }
}

/// The torture catches what is broken on purpose: this test, run again on each
/// variant in a process of its own, must fail, and say what it found.
#[cfg(feature = "mutants")]
#[test]
fn mutants_are_caught() {
    if std::env::var("YOUNGBIT_MUTANT").is_ok_and(|name| !name.is_empty()) {
        return;
    }
    for (mutant, machine, said) in [
        ("no-unregister-wait", "tdp", "callbacks after unregistering"),
        ("promote-isolated", "tdp", "node 0"),
        ("double-increment", "tdp", "node 0"),
        ("no-srcu-wait", "nested", ""),
        ("no-seq-check", "nested", ""),
    ] {
        let me = std::env::current_exe().expect("this test");
        let done = std::process::Command::new(me)
            .args(["--exact", machine, "--nocapture"])
            .env("YOUNGBIT_MUTANT", mutant)
            .env("YOUNGBIT_ROUNDS", "200")
            .env("YOUNGBIT_ACCESSES", "200000")
            .env("RUST_BACKTRACE", "0")
            .output()
            .expect("it runs");
        let text = String::from_utf8_lossy(&done.stderr).into_owned();
        let line = text.lines().find(|line| line.contains("left: Some("));
        let found = line.unwrap_or_else(|| panic!("{mutant} was not caught: {text}"));
        assert!(
            !done.status.success() && found.contains(said),
            "{mutant}: {text}"
        );
        println!("CAUGHT | {mutant} | {machine} | {}", found.trim());
    }
}
