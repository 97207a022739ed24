//! Programs of the oracle from bytes, as a fuzzer makes them.

use crate::machine::configs;
use crate::oracle::{self, Op, PLACES, UNITS};
use youngbit_core::access::AccessKind;
use youngbit_core::kvm::mmu::shadow::ShadowConfig;
use youngbit_core::kvm::{MmuKind, VmConfig};

/// More operations than this say nothing new, and take long.
const MOST: usize = 200;

/// Run the program that `data` stands for on the machine that it stands for,
/// and on a map of pages.
pub fn run(data: &[u8]) {
    let Some((head, mut rest)) = data.split_first_chunk::<2>() else {
        return;
    };
    let (config, huge) = config(head);
    let mut ops = Vec::new();
    while let Some((op, left)) = rest.split_first_chunk::<4>() {
        if ops.len() == MOST {
            break;
        }
        ops.push(decode(op));
        rest = left;
    }
    oracle::run(&ops, config, huge).unwrap_or_else(|e| panic!("{e}\n{ops:?}"));
}

fn config(&[kind, flags]: &[u8; 2]) -> (VmConfig, bool) {
    let configs = configs();
    let config = configs[usize::from(kind >> 3) % configs.len()].clone();
    let (mmu, direct, l1_ad) = [
        (MmuKind::Tdp, false, true),
        (MmuKind::Tdp, false, true),
        (MmuKind::Shadow, true, true),
        (MmuKind::Shadow, false, true),
        (MmuKind::Nested, false, true),
        (MmuKind::Nested, false, false),
    ][usize::from(kind & 7) % 6];
    let config = VmConfig {
        mmu,
        levels: 4 + u32::from(flags & 1),
        slot_zap_all: flags & 2 != 0,
        shadow: ShadowConfig {
            direct,
            l1_ad: l1_ad || config.format.name == "npt",
            ..ShadowConfig::default()
        },
        ..config
    };
    // The shadow MMU's guests do not show the oracle huge pages.
    let huge = flags & 4 != 0 && mmu == MmuKind::Tdp;
    (config, huge)
}

fn decode(&[what, a, b, c]: &[u8; 4]) -> Op {
    let [at, n, m] = [a, b, c].map(u64::from);
    let flag = what & 0x80 != 0;
    match (what & 0x7f) % 27 {
        0..8 => Op::Access {
            unit: at % PLACES,
            offset: n << 1 & 511,
            kind: match (flag, c & 1) {
                (true, _) => AccessKind::Write,
                (false, 0) => AccessKind::Read,
                (false, _) => AccessKind::Fetch,
            },
        },
        8..12 => Op::Age {
            first: at % UNITS,
            units: 1 + n % (UNITS - 1),
            flush: flag,
        },
        12..14 if flag => Op::Executable {
            unit: at % PLACES,
            on: n & 1 != 0,
        },
        12..14 => Op::Test { unit: at % UNITS },
        14..16 => Op::Invalidate {
            first: at % UNITS,
            units: 1 + n % 3,
        },
        16..18 => Op::HostTouch {
            unit: at % UNITS,
            write: flag,
        },
        18..21 => Op::Set {
            id: 1 + u32::from(what) % 3,
            place: at % PLACES,
            first: n % UNITS,
            units: 1 + m % 11,
            readonly: flag,
        },
        21..23 => Op::Delete {
            id: u32::from(a) % 4,
        },
        23..25 => Op::Log {
            id: u32::from(a) % 4,
            on: flag,
        },
        _ => Op::Harvest {
            id: u32::from(a) % 4,
        },
    }
}

#[test]
fn programs_that_were_found_agree_with_a_map_of_pages() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/inputs/program");
    let mut run_of_them = 0;
    for entry in std::fs::read_dir(&folder).expect("inputs are kept") {
        let path = entry.expect("listed").path();
        println!("{}", path.display());
        run(&std::fs::read(&path).expect("readable"));
        run_of_them += 1;
    }
    assert!(run_of_them > 0, "no program is kept");
}
