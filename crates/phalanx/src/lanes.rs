//! `lanes`: the colours that have instances of their own, where, and how often the baseline stood in.

use clap::Args;
use phalanx_client::api::LaneViews;

use crate::AdminOptions;
use crate::exit::Outcome;
use crate::output::{self, Format, Table};

#[derive(Args)]
pub struct Options {
    /// Only this colour
    colour: Option<String>,
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
    #[command(flatten)]
    admin: AdminOptions,
}

pub async fn run(options: Options) -> Outcome {
    let found = options
        .admin
        .client()
        .lanes(options.colour.as_deref())
        .await?;
    output::show(options.output, &found, || {
        render(&found, options.colour.as_deref())
    })
}

fn render(found: &LaneViews, colour: Option<&str>) -> String {
    if found.items.is_empty() {
        return match colour {
            Some(colour) => format!("no ColourPolicy in force has a lane {colour}\n"),
            None => "no lanes: no ColourPolicy in force has some\n".to_owned(),
        };
    }
    let mut table = Table::new(&[
        "COLOUR",
        "FOR",
        "FALLBACK",
        "SERVICE",
        "HEALTHY",
        "REQUESTS",
        "FALLBACKS",
        "REFUSED",
        "POLICY",
    ]);
    for lane in &found.items {
        let row = |of_service: [String; 5]| {
            let [service, healthy, requests, fallbacks, refused] = of_service;
            vec![
                lane.colour.clone(),
                lane.namespace.clone(),
                lane.fallback.clone(),
                service,
                healthy,
                requests,
                fallbacks,
                refused,
                lane.policy.clone(),
            ]
        };
        if lane.services.is_empty() {
            table.row(row(["-", "-", "-", "-", "-"].map(str::to_owned)));
        }
        for of in &lane.services {
            table.row(row([
                format!("{}/{}", of.namespace, of.service),
                format!("{}/{}", of.healthy, of.endpoints),
                of.requests.to_string(),
                of.fallbacks.to_string(),
                of.refused.to_string(),
            ]));
        }
    }
    table.render(output::stdout_style())
}
