//! A comparison as SVG: load, workers and waiting over time, and what it came to. On a ground of its own, so that it reads
//! alike on light and dark pages; coordinates have one decimal, so that the same run gives the same bytes.

use std::fmt::Write as _;
use std::time::Duration;

use super::scenario::{Comparison, shown, thousands};
use super::{Outcome, Point};

const WIDTH: f64 = 960.0;
const LEFT: f64 = 76.0;
const RIGHT: f64 = 936.0;
const INK: &str = "#1f2328";
const MUTED: &str = "#57606a";
const GRID: &str = "#e4e8ec";
const ORANGE: &str = "#cf4a0a";
const STAFFING: &str = "#0b66c3";
const FONT: &str = "system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif";
/// Waits are drawn on a logarithmic scale from here, six decades up.
const WAIT_LEAST_S: f64 = 0.001;
const WAIT_DECADES: i32 = 6;

/// Where a panel lies, and what its axes show.
struct Panel {
    top: f64,
    bottom: f64,
    seconds: f64,
    most: f64,
}

impl Panel {
    fn x(&self, at_s: f64) -> f64 {
        LEFT + (RIGHT - LEFT) * at_s / self.seconds
    }

    /// `part` of the height.
    fn y(&self, part: f64) -> f64 {
        self.bottom - (self.bottom - self.top) * part.clamp(0.0, 1.0)
    }

    fn linear(&self, value: f64) -> f64 {
        self.y(value / self.most)
    }
}

/// The whole drawing.
pub fn draw(comparison: &Comparison) -> String {
    let mut svg = String::new();
    let seconds = comparison.length.as_secs_f64();
    head(&mut svg, comparison);
    let thresholds = &comparison.thresholds.series;
    let staffing = &comparison.staffing.series;

    let load = Panel {
        top: 112.0,
        bottom: 212.0,
        seconds,
        most: nice_most(thresholds.iter().fold(0.0, |most, p| p.rate.max(most))),
    };
    frame(&mut svg, &load, "Load: jobs per second");
    linear_axis(&mut svg, &load);
    line(&mut svg, &load, thresholds, MUTED, "1.4", |p| {
        load.linear(p.rate)
    });

    let most = |series: &[Point]| series.iter().fold(0, |most, p| p.workers.max(most));
    let workers = Panel {
        top: 258.0,
        bottom: 438.0,
        seconds,
        most: nice_most(f64::from(most(thresholds).max(most(staffing)))),
    };
    frame(&mut svg, &workers, "Workers (grey: busy on average)");
    linear_axis(&mut svg, &workers);
    let busy = smooth(thresholds);
    line(&mut svg, &workers, &busy, MUTED, "1.2", |p| {
        workers.linear(p.load)
    });
    let size = |p: &Point| workers.linear(f64::from(p.workers));
    steps(&mut svg, &workers, thresholds, ORANGE, size);
    steps(&mut svg, &workers, staffing, STAFFING, size);

    let wait = Panel {
        top: 484.0,
        bottom: 664.0,
        seconds,
        most: 1.0,
    };
    frame(&mut svg, &wait, "Longest wait for a worker (logarithmic)");
    wait_axis(&mut svg, &wait);
    let height = |p: &Point| wait.y(wait_part(p.wait_s));
    steps(&mut svg, &wait, thresholds, ORANGE, height);
    steps(&mut svg, &wait, staffing, STAFFING, height);

    time_axis(&mut svg, &[&load, &workers, &wait]);
    table(&mut svg, comparison);
    svg.push_str("</svg>\n");
    svg
}

fn head(svg: &mut String, comparison: &Comparison) {
    const HEIGHT: f64 = 812.0;
    put(
        svg,
        format_args!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" width=\"{WIDTH}\" height=\"{HEIGHT}\" role=\"img\" font-family=\"{FONT}\" font-size=\"13\">\n"
        ),
    );
    let title = escaped(&comparison.title);
    put(svg, format_args!("<title>{title}</title>\n"));
    put(
        svg,
        format_args!(
            "<rect x=\"0.5\" y=\"0.5\" width=\"{}\" height=\"{}\" rx=\"8\" fill=\"#ffffff\" stroke=\"#d0d7de\"/>\n",
            WIDTH - 1.0,
            HEIGHT - 1.0
        ),
    );
    text(
        svg,
        24.0,
        36.0,
        &format!("fill=\"{INK}\" font-size=\"18\" font-weight=\"600\""),
        &title,
    );
    let legend = [
        (ORANGE, "two thresholds", 24.0),
        (STAFFING, "staffing (the default)", 176.0),
    ];
    for (color, name, x) in legend {
        put(
            svg,
            format_args!(
                "<path d=\"M{x:.1} 62h26\" stroke=\"{color}\" stroke-width=\"3\" fill=\"none\"/>\n"
            ),
        );
        text(svg, x + 34.0, 66.5, &format!("fill=\"{INK}\""), name);
    }
}

fn frame(svg: &mut String, panel: &Panel, title: &str) {
    let attributes = format!("fill=\"{INK}\" font-weight=\"600\"");
    text(svg, LEFT, panel.top - 12.0, &attributes, title);
    put(
        svg,
        format_args!(
            "<path d=\"M{LEFT:.1} {:.1}V{:.1}H{RIGHT:.1}\" stroke=\"{MUTED}\" fill=\"none\"/>\n",
            panel.top, panel.bottom
        ),
    );
}

fn linear_axis(svg: &mut String, panel: &Panel) {
    const PARTS: u32 = 4;
    for part in 0..=PARTS {
        let value = panel.most * f64::from(part) / f64::from(PARTS);
        grid(svg, panel.linear(value), part > 0, &thousands(value as u64));
    }
}

fn wait_axis(svg: &mut String, panel: &Panel) {
    const NAMES: [&str; 7] = ["1 ms", "10 ms", "100 ms", "1 s", "10 s", "100 s", "1,000 s"];
    for (decade, name) in NAMES.iter().enumerate() {
        let part = decade as f64 / f64::from(WAIT_DECADES);
        grid(svg, panel.y(part), decade > 0, name);
    }
}

fn grid(svg: &mut String, y: f64, ruled: bool, name: &str) {
    if ruled {
        put(
            svg,
            format_args!("<path d=\"M{LEFT:.1} {y:.1}H{RIGHT:.1}\" stroke=\"{GRID}\"/>\n"),
        );
    }
    let attributes = format!("fill=\"{MUTED}\" text-anchor=\"end\"");
    text(svg, LEFT - 8.0, y + 4.5, &attributes, name);
}

/// Minutes, below the lowest panel; marks on all.
fn time_axis(svg: &mut String, panels: &[&Panel]) {
    let Some(last) = panels.last() else {
        return;
    };
    let minutes = last.seconds / 60.0;
    let every = [
        0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 360.0, 1440.0,
    ]
    .into_iter()
    .find(|every| minutes / every <= 15.0)
    .unwrap_or(1440.0);
    let mut minute = 0.0;
    while minute <= minutes + 1e-9 {
        let x = last.x(minute * 60.0);
        for panel in panels {
            put(
                svg,
                format_args!(
                    "<path d=\"M{x:.1} {:.1}v4\" stroke=\"{MUTED}\"/>\n",
                    panel.bottom
                ),
            );
        }
        let attributes = format!("fill=\"{MUTED}\" text-anchor=\"middle\"");
        text(svg, x, last.bottom + 19.0, &attributes, &minute.to_string());
        minute += every;
    }
    let attributes = format!("fill=\"{MUTED}\" text-anchor=\"end\"");
    text(
        svg,
        RIGHT,
        last.bottom + 38.0,
        &attributes,
        "time in minutes",
    );
}

fn table(svg: &mut String, comparison: &Comparison) {
    const COLUMNS: [f64; 5] = [330.0, 470.0, 620.0, 770.0, RIGHT];
    const TOP: f64 = 734.0;
    let heads = [
        "P99 wait",
        "longest wait",
        "longest queue",
        "worker-seconds",
        "turns up/down",
    ];
    let number = "text-anchor=\"end\"";
    for (x, head) in COLUMNS.iter().zip(heads) {
        text(svg, *x, TOP, &format!("fill=\"{MUTED}\" {number}"), head);
    }
    let rows = [
        ("two thresholds", ORANGE, &comparison.thresholds),
        ("staffing", STAFFING, &comparison.staffing),
    ];
    for (row, (name, color, outcome)) in rows.into_iter().enumerate() {
        let y = TOP + 26.0 * (row + 1) as f64;
        text(
            svg,
            24.0,
            y,
            &format!("fill=\"{color}\" font-weight=\"600\""),
            name,
        );
        for (x, value) in COLUMNS.iter().zip(figures(outcome, comparison.warm_up)) {
            text(svg, *x, y, &format!("fill=\"{INK}\" {number}"), &value);
        }
    }
}

fn figures(outcome: &Outcome, warm_up: Duration) -> [String; 5] {
    [
        shown(outcome.wait_p99),
        shown(outcome.wait_max),
        thousands(outcome.queue_max),
        thousands(outcome.worker_s as u64),
        outcome.turns(warm_up, Duration::MAX).to_string(),
    ]
}

fn line(
    svg: &mut String,
    panel: &Panel,
    series: &[Point],
    color: &str,
    width: &str,
    y: impl Fn(&Point) -> f64,
) {
    let mut path = String::new();
    for point in series {
        let letter = if path.is_empty() { 'M' } else { 'L' };
        put(
            &mut path,
            format_args!("{letter}{:.1} {:.1}", panel.x(point.at_s), y(point)),
        );
    }
    put(
        svg,
        format_args!(
            "<path d=\"{path}\" stroke=\"{color}\" stroke-width=\"{width}\" fill=\"none\"/>\n"
        ),
    );
}

/// A line that goes level until the value changes.
fn steps(
    svg: &mut String,
    panel: &Panel,
    series: &[Point],
    color: &str,
    y: impl Fn(&Point) -> f64,
) {
    let mut path = String::new();
    let mut last = String::new();
    for point in series {
        let height = format!("{:.1}", y(point));
        if path.is_empty() {
            put(&mut path, format_args!("M{LEFT:.1} {height}"));
        } else if height != last {
            put(
                &mut path,
                format_args!("H{:.1}V{height}", panel.x(point.at_s)),
            );
        }
        last = height;
    }
    put(&mut path, format_args!("H{RIGHT:.1}"));
    put(
        svg,
        format_args!(
            "<path d=\"{path}\" stroke=\"{color}\" stroke-width=\"1.8\" fill=\"none\"/>\n"
        ),
    );
}

/// The load averaged over a few parts: what service times scatter isn't load.
fn smooth(series: &[Point]) -> Vec<Point> {
    const PARTS: usize = 3;
    let averaged = |(at, point): (usize, &Point)| {
        let from = at.saturating_sub(PARTS - 1);
        let over = &series[from..=at];
        Point {
            load: over.iter().map(|p| p.load).sum::<f64>() / over.len() as f64,
            ..*point
        }
    };
    series.iter().enumerate().map(averaged).collect()
}

/// Where between [`WAIT_LEAST_S`] and the top a wait lies. Linear within an octave: no logarithm of the machine's.
fn wait_part(wait_s: f64) -> f64 {
    let mut octaves = 0.0;
    let mut rest = wait_s / WAIT_LEAST_S;
    while rest >= 2.0 && octaves < 64.0 {
        rest /= 2.0;
        octaves += 1.0;
    }
    let octaves = octaves + (rest - 1.0).max(0.0);
    octaves / std::f64::consts::LOG2_10 / f64::from(WAIT_DECADES)
}

/// A round number of quarters that the values fit under.
fn nice_most(most: f64) -> f64 {
    let mut unit = 4.0;
    while unit < 1e12 {
        for times in [1.0, 2.0, 3.0, 5.0, 6.0] {
            if most <= unit * times {
                return unit * times;
            }
        }
        unit *= 10.0;
    }
    unit
}

fn text(svg: &mut String, x: f64, y: f64, attributes: &str, content: &str) {
    put(
        svg,
        format_args!("<text x=\"{x:.1}\" y=\"{y:.1}\" {attributes}>{content}</text>\n"),
    );
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

fn put(out: &mut String, what: std::fmt::Arguments<'_>) {
    // Writing to a String can't fail.
    let _ = out.write_fmt(what);
}
