//! `compare`: what mirrors answered beside the originals.

use clap::Args;
use phalanx_client::api::{Comparison, Comparisons};

use crate::AdminOptions;
use crate::exit::Outcome;
use crate::output::{self, Format, Table};

#[derive(Args)]
pub struct Options {
    /// Only this route: NAME, NAMESPACE/NAME, or with its kind
    route: Option<String>,
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
    #[command(flatten)]
    admin: AdminOptions,
}

pub async fn run(options: Options) -> Outcome {
    let client = options.admin.client();
    let found = client.comparisons(options.route.as_deref()).await?;
    output::show(options.output, &found, || render(&found))
}

fn render(found: &Comparisons) -> String {
    if found.items.is_empty() {
        return "nothing was compared: no route with the annotation phalanx.dev/compare-mirrors: \"true\" had a request copied\n"
            .to_owned();
    }
    let mut table = Table::new(&[
        "ROUTE",
        "RULE",
        "MIRROR",
        "COMPARED",
        "DIFFERENT",
        "STATUS",
        "HEADER",
        "BODY",
        "UNANSWERED",
        "MEAN",
        "OF COPIES",
    ]);
    for item in &found.items {
        table.row(vec![
            item.route.clone(),
            item.rule.clone(),
            item.mirror.clone(),
            item.compared.to_string(),
            item.different.to_string(),
            item.status.to_string(),
            item.header.to_string(),
            item.body.to_string(),
            item.unanswered.to_string(),
            format!("{:.1} ms", item.original_ms),
            format!("{:.1} ms", item.copy_ms),
        ]);
    }
    let mut text = table.render(output::stdout_style());
    found.items.iter().for_each(|item| samples(item, &mut text));
    text
}

/// The last few that differed.
fn samples(item: &Comparison, text: &mut String) {
    let now = output::now_ms();
    for sample in item.samples.iter().rev().take(SAMPLES_SHOWN) {
        let age = output::age(sample.time_ms, now);
        text.push_str(&format!("\n{} {} ({age} ago)\n", item.mirror, sample.path));
        for found in &sample.differences {
            let (original, copy) = (&found.original, &found.copy);
            text.push_str(&format!(
                "  {} {}: {original} | {copy}\n",
                found.kind, found.at
            ));
        }
    }
}

const SAMPLES_SHOWN: usize = 5;
