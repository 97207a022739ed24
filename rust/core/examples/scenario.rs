//! Run the scenario of a recording under its conditions and print what
//! happened, in the recording's format.
//!
//! `cargo run --example scenario -- FOLDER/NAME.enM.jsonl`, where the folder
//! stands beside `scenarios/`.

use std::path::Path;
use youngbit_core::scenario::{Conditions, Recording, Runner, compare, parse};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args().nth(1).ok_or("expected a recording")?;
    let path = Path::new(&path);
    let recording = Recording::parse(&std::fs::read(path)?)?;
    let folder = path
        .parent()
        .and_then(Path::parent)
        .unwrap_or(Path::new(""));
    let scenario = format!("scenarios/{}.scn", recording.header.scenario);
    let steps = parse::parse(&std::fs::read(folder.join(scenario))?)?;
    let conditions = Conditions::from_header(&recording.header)?;
    let records = Runner::new(&conditions)?.run(&steps)?;
    let comparison = compare(&recording, &records);
    let header = recording.header.clone();
    print!("{}", Recording { header, records }.print());
    eprintln!(
        "{} of {} steps equal",
        comparison.equal_steps, comparison.steps
    );
    if let Some(difference) = comparison.first_difference {
        eprintln!("{difference}");
    }
    Ok(())
}
