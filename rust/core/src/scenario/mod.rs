//! Scenarios: a worker process in a memory cgroup of its own, driven step by
//! step, with the cgroup's histogram read back after every step; and how a run
//! compares with a recording of a real kernel.
//!
//! | file | what |
//! |---|---|
//! | [`parse`] | the scenario language |
//! | [`record`] | recordings: conditions and steps, as JSON lines |
//! | [`conditions`] | a recording's conditions in the model's terms |
//! | [`run`] | the machine that a scenario drives |
//! | [`compare`] | the rules of comparison |

pub mod compare;
pub mod conditions;
pub mod parse;
pub mod record;
pub mod run;

pub use compare::{Comparison, compare};
pub use conditions::Conditions;
pub use parse::{Op, Step};
pub use record::{Header, Record, Recording};
pub use run::Runner;

use crate::error::Result;

/// Run a scenario under a recording's conditions and compare.
///
/// # Errors
/// `EINVAL` for conditions or a scenario that cannot be read, `EOPNOTSUPP` for
/// a machine that does not exist.
pub fn replay(recording: &Recording, scenario: &[u8]) -> Result<Comparison> {
    let steps = parse::parse(scenario)?;
    let conditions = Conditions::from_header(&recording.header)?;
    let records = Runner::new(&conditions)?.run(&steps)?;
    Ok(compare(recording, &records))
}
