//! `compare`: what mirrors answered beside the originals.

use clap::Args;
use phalanx_client::api::{ComparedDifference, Comparison, Comparisons};

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
    output::show(options.output, &found, || {
        render(&found, options.route.as_deref())
    })
}

fn render(found: &Comparisons, route: Option<&str>) -> String {
    if let Some(route) = route.filter(|_| found.items.is_empty()) {
        return format!("nothing was compared of a route {route}: without a name all are listed\n");
    }
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

/// The last few that differed; those that did so in the same way are one.
fn samples(item: &Comparison, text: &mut String) {
    let now = output::now_ms();
    let mut told: Vec<(&str, &[ComparedDifference], u64, usize)> = Vec::new();
    for sample in item.samples.iter().rev() {
        let same = told.iter_mut().find(|(path, differences, ..)| {
            *path == sample.path && *differences == sample.differences.as_slice()
        });
        match same {
            Some((.., count)) => *count += 1,
            None => told.push((&sample.path, &sample.differences, sample.time_ms, 1)),
        }
    }
    for (path, differences, time_ms, count) in told.into_iter().take(SAMPLES_SHOWN) {
        let age = output::age(time_ms, now);
        let times = match count {
            1 => String::new(),
            count => format!(", {count} times of the last {}", item.samples.len()),
        };
        text.push_str(&format!("\n{} {path} ({age} ago{times})\n", item.mirror));
        for found in differences {
            let (original, copy) = (&found.original, &found.copy);
            text.push_str(&format!(
                "  {} {}: original {original}, copy {copy}\n",
                found.kind, found.at
            ));
        }
    }
    if item.compared == 0 && item.unanswered > 0 {
        text.push_str(&format!(
            "\n{}: no copy was answered. Does it have an instance? One in a lane takes no copies of other requests\n",
            item.mirror
        ));
    }
}

const SAMPLES_SHOWN: usize = 5;
