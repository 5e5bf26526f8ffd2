//! The result as Markdown.

use std::fmt::Write;

use super::case::{self, Case, Load};
use super::peer;
use super::sample::{CPU, DIRECT, P50, P99, Sample};
use super::{Options, Row, idle, load, manifest, stages};

/// The page: what was measured, and in its place what was not as it stood `before`.
pub fn render(
    rows: &[Row],
    stages: Option<&str>,
    options: &Options,
    versions: &[(&'static str, String)],
    before: &str,
) -> String {
    let mut text = format!(
        "# Measured side by side\n\nWritten by `cargo xtask bench`; do not edit by hand. The proxy runs alone on core 0 with one worker, load generator and\n\
         backend share core 1, everything on loopback. **CPU** is on-CPU time of the proxy per completed request (scheduler's account, all\n\
         threads); median (min\u{2013}max) over the rounds. **User** and **system** are that time, split in the ratio of `utime` to `stime`, which the\n\
         kernel samples with its timer: a few percent of noise where a proxy is busy, a rough word where it mostly sleeps. **Ratios** are within the same round; of raw TCP, 1000 / CPU-\u{b5}s per MB are GB per CPU-second. These\n\
         machines are noisy: ratios and CPU time decide, requests/s are bounded by the generator's core.\n\n\
         Ours runs the product as users do, with routes by xDS from a control plane, and every stage on: {} rules on the way to the\n\
         service (the requests meet the last), headers set and removed on request and answer, trace context and request ids, metrics,\n\
         circuit breaker, outlier detection, retry budget; in the pair an mTLS mode and a rate limit too. The others have one route and no\n\
         filter: what they cost is their least.\n\n",
        manifest::RULES
    );
    for (name, version) in versions {
        let _ = writeln!(text, "- {name}: {version}");
    }
    for case in &case::ALL {
        match rows.iter().any(|r| r.case == case) {
            true => section(&mut text, rows, case, options),
            false => text.push_str(kept(before, case.title)),
        }
    }
    text.push_str(stages.unwrap_or_else(|| kept(before, stages::TITLE)));
    text
}

/// A section with the blank line before it; empty where there is none.
fn kept<'b>(before: &'b str, title: &str) -> &'b str {
    let Some(from) = before.find(&format!("\n## {title}\n")) else {
        return "";
    };
    let Some(rest) = before.get(from + 1..) else {
        return "";
    };
    let ends = ["\n## ", "\n# "].iter().filter_map(|next| rest.find(next));
    let end = ends.min().map_or(before.len(), |end| from + 1 + end);
    before.get(from..end).unwrap_or_default()
}

fn section(text: &mut String, rows: &[Row], case: &Case, options: &Options) {
    let _ = writeln!(text, "\n## {}\n", case.title);
    let rounds = rows.iter().filter(|r| r.case == case).map(|r| r.round);
    let rounds = rounds.max().map_or(0, |last| last + 1);
    let time = match case.is_idle() {
        true => String::new(),
        false => format!(" of {} s after 1 s of warm-up", options.seconds),
    };
    let _ = writeln!(text, "Rounds: {rounds}{time}.\n");
    if let Some(words) = explained(case) {
        let _ = writeln!(text, "{words}\n");
    }
    let mine: Vec<&Row> = rows.iter().filter(|r| r.case == case).collect();
    let columns = columns(case, &mine);
    let heads: Vec<String> = columns.iter().map(|column| column.head(case)).collect();
    let _ = writeln!(text, "| proxy | {} |", heads.join(" | "));
    let _ = writeln!(text, "|---|{}", "---|".repeat(heads.len()));
    for peer in peer::ALL {
        let own: Vec<&Row> = mine
            .iter()
            .copied()
            .filter(|r| r.proxy == peer.name)
            .collect();
        if own.is_empty() {
            continue;
        }
        let cells = columns.iter().map(|column| column.cell(&mine, &own));
        let cells: Vec<String> = cells.collect();
        let _ = writeln!(text, "| {} | {} |", peer.name, cells.join(" | "));
    }
}

fn explained(case: &Case) -> Option<String> {
    match case.load {
        Load::Paced if case.is_udp() => Some(
            "A datagram has its time from the beginning and is counted from there. CPU is per packet, of which each way has its own; what is\n\
             lost is counted. Envoy: `udp_proxy` with its defaults, as it comes from PyPI."
                .to_owned(),
        ),
        Load::Idle if case.is_udp() => Some(
            "100,000 clients, each with an address of its own, that said hello and had an answer from one of 100 endpoints. Envoy has a socket\n\
             for each session: more than the 20,000 descriptors that there are."
                .to_owned(),
        ),
        Load::Flood(load::Flood::Udp) => Some(
            "One source sends as fast as core 1 lets it (idle priority) from one address; the good clients have another."
                .to_owned(),
        ),
        Load::Paced => Some(format!(
            "{} requests/s have their times from the beginning and are counted from there, also if they had to wait for a connection. What\n\
             a proxy adds is over the figure without one of the same round. A P99 on two shared cores says something as the median of nine\n\
             rounds or more.",
            load::RATE
        )),
        Load::Idle => Some(format!(
            "{} connections that made a request each and now do nothing: the proxy's proportional set size, less what it was before. The\n\
             kernel's memory for sockets is not in it.",
            idle::CONNECTIONS
        )),
        Load::Flood(_) => Some(format!(
            "16 attackers have the whole of core 1 that the others leave (idle priority), as fast as the proxy lets them; the good client\n\
             makes {} requests/s on connections of its own, open loop, before it and during it. Attacks are counted as they are sent.",
            load::GOOD_RATE
        )),
        _ => None,
    }
}

enum Column {
    Figure(&'static str, usize),
    /// CPU time over that of another in the same round.
    Ratio(&'static str),
    /// What is added to the latency without a proxy.
    Added(&'static str),
}

/// As they stand in the samples, with what is made of them beside.
fn columns(case: &Case, rows: &[&Row]) -> Vec<Column> {
    let compared = !case.is_idle() && !matches!(case.load, Load::Flood(_));
    let has_direct = rows.iter().any(|row| row.proxy == DIRECT);
    // What goes nowhere costs nothing: it has fewer figures.
    let longest = rows.iter().max_by_key(|row| row.sample.0.len());
    let mut columns = Vec::new();
    for figure in longest.map_or(&[][..], |row| &row.sample.0) {
        columns.push(Column::Figure(figure.name, figure.digits));
        if has_direct && (figure.name == P50 || figure.name == P99) {
            columns.push(Column::Added(figure.name));
        }
        if compared && figure.name == "system" {
            columns.extend([Column::Ratio("envoy"), Column::Ratio("haproxy")]);
        }
    }
    columns
}

impl Column {
    fn head(&self, case: &Case) -> String {
        let unit = case.unit;
        match self {
            Self::Figure(CPU, _) => format!("{CPU}/{unit}"),
            Self::Figure("units/s", _) => format!("{unit}s/s"),
            Self::Figure(name, _) => (*name).to_owned(),
            Self::Ratio(to) => format!("ratio to {to}"),
            Self::Added(name) => format!("{name} added"),
        }
    }

    fn cell(&self, all: &[&Row], own: &[&Row]) -> String {
        let of_round = |row: &Row, proxy: &str, name: &str| {
            let same = |r: &&&Row| r.round == row.round && r.proxy == proxy;
            all.iter().find(same).and_then(|r| r.sample.get(name))
        };
        let each = |value: &dyn Fn(&Row, &Sample) -> Option<f64>| {
            own.iter()
                .filter_map(|row| value(row, &row.sample))
                .collect()
        };
        match *self {
            Self::Figure(name, digits) => spread(each(&|_, s| s.get(name)), digits),
            Self::Ratio(to) => {
                let ratio = |row: &Row, s: &Sample| Some(s.get(CPU)? / of_round(row, to, CPU)?);
                spread(each(&ratio), 2)
            }
            Self::Added(name) => {
                let added =
                    |row: &Row, s: &Sample| Some(s.get(name)? - of_round(row, DIRECT, name)?);
                spread(each(&added), 0)
            }
        }
    }
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
