//! The suites of `youngbit bench`, without Python: one JSON object a row, on
//! standard output, or with `--table` lines to read.
//!
//! `youngbit-suites [SUITE ...] [--smallest|--quick|--large] [--repetitions N] [--seed N] [--only TEXT] [--table]`

use std::process::ExitCode;
use youngbit_core::bench::{Options, Row, Scale, Suite, run};

fn arguments() -> Result<(Vec<Suite>, Options, bool), String> {
    let mut suites = Vec::new();
    let mut options = Options::default();
    let mut table = false;
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or_else(|| format!("{word} needs a value"));
        let number = |text: String| {
            text.parse::<u64>()
                .map_err(|error| format!("{word} {text}: {error}"))
        };
        match word.as_str() {
            "--smallest" => options.scale = Scale::Smallest,
            "--quick" => options.scale = Scale::Quick,
            "--large" => options.scale = Scale::Large,
            "--repetitions" => options.repetitions = Some(number(value()?)? as usize),
            "--seed" => options.seed = number(value()?)?,
            "--only" => options.only = Some(value()?),
            "--table" => table = true,
            name => suites.push(
                Suite::by_name(name)
                    .ok_or_else(|| format!("{name:?} is neither a suite nor an option"))?,
            ),
        }
    }
    if suites.is_empty() {
        suites = Suite::ALL.to_vec();
    }
    Ok((suites, options, table))
}

fn print(row: &Row) {
    let ratios: String = row
        .ratios
        .iter()
        .map(|r| {
            let bound = r.bound.map_or(String::new(), |b| format!(", promised {b}"));
            format!(
                "  {:.2}x {} ({:.2} to {:.2}{bound})",
                r.median, r.to, r.min, r.max
            )
        })
        .collect();
    println!(
        "{:<52} {:<32} {:<26} {:>12.4e} {} [{:.3e}, {:.3e}]{ratios}",
        row.case, row.contestant, row.metric.name, row.median, row.metric.unit, row.min, row.max
    );
}

fn main() -> ExitCode {
    let (suites, options, table) = match arguments() {
        Ok(arguments) => arguments,
        Err(message) => {
            eprintln!("youngbit-suites: {message}");
            return ExitCode::from(2);
        }
    };
    for suite in suites {
        let rows = match run(suite, &options, &mut |_| Ok(())) {
            Ok(rows) => rows,
            Err(error) => {
                eprintln!("youngbit-suites: {}: {error}", suite.name());
                return ExitCode::FAILURE;
            }
        };
        for row in &rows {
            if table {
                print(row);
            } else {
                println!(
                    "{}",
                    serde_json::to_string(row).expect("a row is plain data")
                );
            }
        }
    }
    ExitCode::SUCCESS
}
