//! The live table: redrawn in place on a terminal, a line now and then elsewhere.

use std::io::{IsTerminal, Write};
use std::time::Instant;

use phalanx_client::api::{Edge, Edges, Status};

use super::board::Board;
use crate::{observe, output};

/// Seconds between lines where there is no terminal.
const LINE_EVERY: u64 = 5;

pub struct Screen {
    terminal: bool,
    lines: usize,
    ticks: u64,
}

impl Screen {
    pub fn new() -> Self {
        Self {
            terminal: std::io::stdout().is_terminal(),
            lines: 0,
            ticks: 0,
        }
    }

    pub fn draw(
        &mut self,
        edges: &Edges,
        status: &Status,
        board: Option<&Board>,
        deadline: Option<Instant>,
        fallen: &[String],
    ) {
        self.ticks += 1;
        if self.terminal {
            let text = picture(edges, status, board, deadline, fallen);
            let up = if self.lines > 0 {
                format!("\x1b[{}F\x1b[J", self.lines)
            } else {
                String::new()
            };
            self.lines = text.lines().count();
            // Rows that are too wide are cut and not wrapped, so that the lines can be counted.
            print!("\x1b[?7l{up}{text}\x1b[?7h");
            let _ = std::io::stdout().flush();
        } else if self.ticks.is_multiple_of(LINE_EVERY) {
            println!("{}", line(edges, status));
        }
    }
}

fn picture(
    edges: &Edges,
    status: &Status,
    board: Option<&Board>,
    deadline: Option<Instant>,
    fallen: &[String],
) -> String {
    let style = output::stdout_style();
    let left = deadline
        .map(|d| {
            format!(
                ", {} s left",
                d.saturating_duration_since(Instant::now()).as_secs()
            )
        })
        .unwrap_or_default();
    let took = status
        .elapsed_ms
        .map(|ms| format!(" in {ms:.1} ms"))
        .unwrap_or_default();
    let head = format!(
        "revision {} applied by {} of {} proxies{took}{left}",
        status.target_revision, status.applied, status.proxies
    );
    let fallen: String = fallen
        .iter()
        .map(|f| format!("{}\n", style.warn(f)))
        .collect();
    let board = board
        .map(|board| format!("leaderboard {}\n", board.told()))
        .unwrap_or_default();
    format!(
        "\n{}\n{fallen}\n{}\n{}{board}",
        style.dim(&head),
        observe::edge_table(&edges.edges).render(style),
        split_bar(edges)
    )
}

/// The share of each version among the calls to battle.
fn split_bar(edges: &Edges) -> String {
    const WIDTH: f64 = 40.0;
    let battle = |version: &str| -> f64 { versions(&edges.edges, version).map(|e| e.rps).sum() };
    let (one, two) = (battle("v1"), battle("v2"));
    if one + two <= 0.0 {
        return "battle: no calls yet\n".to_owned();
    }
    let share = two / (one + two);
    let second = (share * WIDTH).round() as usize;
    let bar = format!(
        "{}{}",
        "\u{2588}".repeat(WIDTH as usize - second),
        "\u{2591}".repeat(second)
    );
    format!(
        "battle v1 {:5.1}% {bar} {:5.1}% v2\n",
        (1.0 - share) * 100.0,
        share * 100.0
    )
}

/// Calls that matches make to battle, in one version.
pub fn versions<'a>(edges: &'a [Edge], version: &'a str) -> impl Iterator<Item = &'a Edge> {
    edges
        .iter()
        .filter(move |e| e.destination_app == "battle" && e.destination_version == version)
}

fn line(edges: &Edges, status: &Status) -> String {
    let rps: f64 = edges.edges.iter().map(|e| e.rps).sum();
    let failures: u64 = edges.edges.iter().map(|e| e.failures).sum();
    format!(
        "revision {} applied by {} of {}; {} edges, {rps:.0} requests/s, {failures} failures in the last {} s",
        status.target_revision,
        status.applied,
        status.proxies,
        edges.edges.len(),
        edges.window_s
    )
}
