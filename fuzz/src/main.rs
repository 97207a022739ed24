//! libFuzzer's program for every target; `YOUNGBIT_FUZZ` names the one.
//!
//! What is done with an input is in `rust/core/tests/`, whose tests give it the
//! inputs that were kept.
#![no_main]
// The tests beside the targets use the rest.
#![allow(dead_code, unused_imports, unused_macros)]

use libfuzzer_sys::fuzz_target;
use std::sync::LazyLock;

#[path = "../../rust/core/tests/kvm/machine.rs"]
mod machine;
#[path = "../../rust/core/tests/kvm/oracle.rs"]
mod oracle;
#[path = "../../rust/core/tests/kvm/program.rs"]
mod program;
#[path = "../../rust/core/tests/fuzz/targets.rs"]
mod targets;

static TARGET: LazyLock<targets::Target> = LazyLock::new(|| {
    let name = std::env::var("YOUNGBIT_FUZZ").expect("YOUNGBIT_FUZZ names the target");
    let mut known = targets::TARGETS.iter().chain(&[("program", program::run as _)]);
    let (_, target) = known
        .find(|(known, _)| *known == name)
        .unwrap_or_else(|| panic!("no target is called {name:?}"));
    *target
});

fuzz_target!(|data: &[u8]| TARGET(data));
