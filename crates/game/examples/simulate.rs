//! Runs a load against the rule of two thresholds and the default policy, prints what each made of it, and draws it.
//! `cargo run -p phalanx-game --example simulate -- --curve step --out docs/game/step.svg`

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use phalanx_game::workers::simulate::scenario::Named;
use phalanx_game::workers::simulate::{Scenario, Service, draw, read_csv};

const USAGE: &str =
    "simulate [--curve step|constant|ramp|daily|spike|ratchet | --arrivals FILE.csv]
  --service fixed|even|exponential|spread   how service times scatter (the curve's own)
  --service-ms MS                           their mean (the curve's own; 50 for a recording)
  --seed N                                  of chance (7)
  --out FILE.svg                            draw it there";

#[derive(Default)]
struct Arguments {
    curve: Option<String>,
    arrivals: Option<PathBuf>,
    service: Option<String>,
    service_ms: Option<u32>,
    seed: Option<u64>,
    out: Option<PathBuf>,
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if words.iter().any(|word| word == "--help" || word == "-h") {
        println!("{USAGE}");
        return ExitCode::SUCCESS;
    }
    match run(words) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run(words: Vec<String>) -> Result<(), Box<dyn std::error::Error>> {
    let arguments = parse(words.into_iter())?;
    let comparison = scenario(&arguments)?.compare();
    println!("{}\n\n{}", comparison.title, comparison.table());
    if let Some(out) = arguments.out {
        std::fs::write(&out, draw(&comparison)).map_err(|error| at(&out, error))?;
        println!("drawn: {}", out.display());
    }
    Ok(())
}

fn at(path: &Path, error: impl std::fmt::Display) -> String {
    format!("{}: {error}", path.display())
}

fn scenario(arguments: &Arguments) -> Result<Scenario, Box<dyn std::error::Error>> {
    let seed = arguments.seed.unwrap_or(7);
    if let Some(path) = &arguments.arrivals {
        let service = service(arguments, Service::Even(Duration::from_millis(50)))?;
        let text = std::fs::read_to_string(path).map_err(|error| at(path, error))?;
        let jobs = read_csv(&text, service, seed).map_err(|error| at(path, error))?;
        let title = format!("{} arrivals of {}", jobs.len(), path.display());
        return Ok(Scenario::recorded(title, jobs)?);
    }
    let name = arguments.curve.as_deref().unwrap_or("step");
    let named = Named::find(name).ok_or_else(|| format!("no curve `{name}`\n{USAGE}"))?;
    Ok(named.with(service(arguments, named.service)?, seed))
}

fn service(arguments: &Arguments, usual: Service) -> Result<Service, String> {
    let ms = arguments.service_ms.map(u64::from);
    let mean = ms.map_or(usual.mean(), Duration::from_millis);
    Ok(match (arguments.service.as_deref(), usual) {
        (Some("fixed"), _) | (None, Service::Fixed(_)) => Service::Fixed(mean),
        (Some("even"), _) | (None, Service::Even(_)) => Service::Even(mean),
        (Some("exponential"), _) | (None, Service::Exponential(_)) => Service::Exponential(mean),
        (Some("spread"), _) | (None, Service::Spread(_)) => Service::Spread(mean),
        (Some(other), _) => return Err(format!("no service times `{other}`\n{USAGE}")),
    })
}

fn parse(mut words: impl Iterator<Item = String>) -> Result<Arguments, String> {
    let mut arguments = Arguments::default();
    while let Some(word) = words.next() {
        let known = "--curve --arrivals --service --service-ms --seed --out";
        if !known.split(' ').any(|known| known == word) {
            return Err(format!("`{word}` is not known here\n{USAGE}"));
        }
        let Some(value) = words.next() else {
            return Err(format!("{word} lacks its value\n{USAGE}"));
        };
        let whole = || format!("{word} {value}: not a whole number");
        match word.as_str() {
            "--curve" => arguments.curve = Some(value),
            "--arrivals" => arguments.arrivals = Some(value.into()),
            "--service" => arguments.service = Some(value),
            "--service-ms" => arguments.service_ms = Some(value.parse().map_err(|_| whole())?),
            "--seed" => arguments.seed = Some(value.parse().map_err(|_| whole())?),
            _ => arguments.out = Some(value.into()),
        }
    }
    Ok(arguments)
}
