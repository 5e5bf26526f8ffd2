//! The figures as Markdown.

use std::fmt::Write;

use crate::{Options, Row};

pub fn page(sections: &[(&'static str, Vec<Row>)], options: &Options) -> String {
    let mut text = format!(
        "# The game kit, measured\n\nWritten by `cargo xtask bench game`; do not edit by hand. {} rounds of {} s; median (min\u{2013}max). Everybody is measured in\n\
         turn in the same run, on all cores of the machine ({}), load included, unless a note says otherwise. The machine is noisy: figures\n\
         beside each other decide.\n",
        options.rounds,
        options.seconds,
        std::thread::available_parallelism().map_or(0, usize::from),
    );
    for (name, rows) in sections {
        let _ = write!(text, "\n{}", section(name, rows));
    }
    text
}

pub fn section(name: &str, rows: &[Row]) -> String {
    let mut text = format!(
        "## {name}\n\n| case | who | figure | unit | bar | note |\n|---|---|---|---|---|---|\n"
    );
    for row in rows {
        let bar = row.bar.as_deref().unwrap_or("");
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} | {bar} | {} |",
            row.case,
            row.who,
            figure(&row.samples),
            row.unit,
            row.note
        );
    }
    text
}

/// Median with the extremes; numbers with three digits that count.
fn figure(samples: &[f64]) -> String {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let (Some(least), Some(most)) = (sorted.first(), sorted.last()) else {
        return "\u{2013}".to_owned();
    };
    let median = match sorted.len() {
        n if n % 2 == 1 => sorted[n / 2],
        n => f64::midpoint(sorted[n / 2 - 1], sorted[n / 2]),
    };
    match sorted.len() {
        1 => number(median),
        _ => format!(
            "{} ({}\u{2013}{})",
            number(median),
            number(*least),
            number(*most)
        ),
    }
}

fn number(value: f64) -> String {
    let digits = match value.abs() {
        v if v >= 100.0 || v == 0.0 || v.fract() == 0.0 => 0,
        v if v >= 10.0 => 1,
        v if v >= 1.0 => 2,
        _ => 3,
    };
    format!("{value:.digits$}")
}
