//! The result as Markdown.

use std::fmt::Write;

use super::case::Case;
use super::peer;
use super::{Options, Row};

pub fn render(rows: &[Row], options: &Options, versions: &[(&'static str, String)]) -> String {
    let mut text = String::from(
        "# Measured side by side\n\nWritten by `cargo xtask bench`; do not edit by hand. The proxy runs alone on core 0 with one worker, load generator and\nbackend share core 1, everything on loopback. **CPU** is on-CPU time of the proxy per completed request (scheduler's account, all\nthreads); median (min\u{2013}max) over the rounds. **Ratios** are within the same round;\nof raw TCP, 1000 / CPU-\u{b5}s per MB are GB per CPU-second. These machines are noisy: ratios and CPU time\ndecide, requests/s are bounded by the generator's core. Ours runs the product as users do: routes by xDS from a control plane,\nmetrics and trace context on.\n\n",
    );
    let _ = writeln!(
        text,
        "Rounds: {}, {} s each after 1 s of warm-up.\n",
        options.rounds, options.seconds
    );
    for (name, version) in versions {
        let _ = writeln!(text, "- {name}: {version}");
    }
    for case in Case::ALL {
        if rows.iter().any(|r| r.case == case) {
            section(&mut text, rows, case);
        }
    }
    text
}

fn section(text: &mut String, rows: &[Row], case: Case) {
    let _ = writeln!(text, "\n## {}\n", case.title());
    let unit = case.unit();
    let _ = writeln!(
        text,
        "| proxy | CPU-\u{b5}s/{unit} | ratio to Envoy | to haproxy | {unit}s/s | p50 / p99 \u{b5}s | resident, idle MB |\n|---|---|---|---|---|---|---|"
    );
    for peer in peer::ALL {
        let mine: Vec<&Row> = rows
            .iter()
            .filter(|r| r.case == case && r.proxy == peer.name)
            .collect();
        if mine.is_empty() {
            continue;
        }
        let ratios = |to: &str| -> Vec<f64> {
            mine.iter()
                .filter_map(|r| Some(r.sample.cpu_us / cpu_of(rows, case, r.round, to)?))
                .collect()
        };
        let latency = |pick: fn((f64, f64)) -> f64| {
            spread(
                mine.iter()
                    .filter_map(|r| r.sample.latency_us.map(pick))
                    .collect(),
                0,
            )
        };
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} | {} | {} / {} | {} |",
            peer.name,
            spread(mine.iter().map(|r| r.sample.cpu_us).collect(), 1),
            spread(ratios("envoy"), 2),
            spread(ratios("haproxy"), 2),
            spread(mine.iter().map(|r| r.sample.per_second).collect(), 0),
            latency(|l| l.0),
            latency(|l| l.1),
            spread(mine.iter().map(|r| r.sample.idle_mb).collect(), 1),
        );
    }
}

fn cpu_of(rows: &[Row], case: Case, round: usize, proxy: &str) -> Option<f64> {
    rows.iter()
        .find(|r| r.case == case && r.round == round && r.proxy == proxy)
        .map(|r| r.sample.cpu_us)
}

/// `median (min–max)`, or a dash.
pub fn spread(mut values: Vec<f64>, digits: usize) -> String {
    values.sort_by(f64::total_cmp);
    let (Some(low), Some(high)) = (values.first(), values.last()) else {
        return "\u{2013}".to_owned();
    };
    let middle = (values[(values.len() - 1) / 2] + values[values.len() / 2]) / 2.0;
    format!("{middle:.digits$} ({low:.digits$}\u{2013}{high:.digits$})")
}
