//! The summary at the end, and whether the mesh did what the demo promises: every edge carried, nothing failed, the
//! split as configured.

use std::fmt::Write;

use ::arena::bots::BotSummary;
use ::arena::process::{ENGINE, LANE};
use ::arena::{matchmaker, physics};
use phalanx_client::api::{Edge, Edges, Proxies, Status};

use super::board::Board;
use super::screen;
use crate::{observe, output};

/// Share of battle v2 in the manifests.
const SHARE: f64 = 0.1;
/// How far from it chance may carry the count, in standard deviations.
const SIGMAS: f64 = 4.0;

/// Of a process's name, or of a sentence that begins with it: not of its sidecar, which nobody starts again.
pub fn is_matchmaker(text: &str) -> bool {
    let name = text.split(' ').next().unwrap_or_default();
    let service = name.strip_prefix(matchmaker::NAME);
    service.is_some_and(|rest| rest.starts_with('-') && !rest.ends_with("-sidecar"))
}

pub struct Verdict {
    pub text: String,
    pub good: bool,
}

/// What the demo knows at its end.
pub struct Seen<'s> {
    /// What they printed.
    pub bots: &'s str,
    pub edges: &'s Edges,
    pub status: &'s Status,
    pub proxies: &'s Proxies,
    /// Somebody applied something meanwhile, so the split is theirs.
    pub changed: bool,
    /// Processes that somebody ended.
    pub losses: &'s [String],
    /// How surely the sidecar of physics in Go knew the colours of its calls.
    pub in_go: Option<&'s [(String, u64)]>,
    pub board: Option<&'s Board>,
}

pub fn judge(seen: &Seen<'_>) -> Verdict {
    let Seen {
        bots,
        edges,
        status,
        proxies,
        changed,
        losses,
        in_go,
        board,
    } = *seen;
    let style = output::stdout_style();
    let mut report = Report {
        text: String::new(),
        good: true,
    };
    let _ = write!(
        report.text,
        "\n{}",
        observe::edge_table(&edges.edges).render(style)
    );
    match serde_json::from_str::<BotSummary>(bots) {
        Ok(summary) => report.players(&summary),
        Err(_) => report.line(false, "the bots left no summary"),
    }
    report.edges(&edges.totals, losses);
    match board {
        Some(board) => {
            // Whatever becomes of its store.
            let kept = &board.kept;
            let good = kept.refused == 0 && kept.hits + kept.stale > 0;
            report.line(good, &format!("leaderboard {}", board.told()));
        }
        None => report.line(false, "the leaderboard does not say how it was read"),
    }
    if let Some(counts) = in_go {
        report.in_go(&edges.totals, counts);
    }
    report.split(&edges.totals, changed);
    let took = status
        .elapsed_ms
        .map(|ms| format!(", the last change in {ms:.1} ms"))
        .unwrap_or_default();
    let applied = format!(
        "revision {} applied by {} of {} sidecars{took}",
        status.target_revision, status.applied, status.proxies
    );
    report.line(status.complete() && status.refused.is_empty(), &applied);
    let memory: Vec<f64> = proxies
        .items
        .iter()
        .filter(|p| p.memory_bytes > 0)
        .map(|p| p.memory_bytes as f64 / 1e6)
        .collect();
    if !memory.is_empty() {
        let largest = memory.iter().copied().fold(0.0, f64::max);
        report.line(
            true,
            &format!(
                "sidecars use {:.1} MB each, at most {largest:.1}",
                memory.iter().sum::<f64>() / memory.len() as f64
            ),
        );
    }
    for loss in losses {
        let _ = writeln!(
            report.text,
            "note  {loss} meanwhile: requests in flight on it may be among the failed"
        );
    }
    Verdict {
        text: report.text,
        good: report.good,
    }
}

struct Report {
    text: String,
    good: bool,
}

impl Report {
    fn line(&mut self, good: bool, text: &str) {
        let style = output::stdout_style();
        let mark = if good {
            style.good("ok  ")
        } else {
            style.error("FAIL")
        };
        let _ = writeln!(self.text, "{mark}  {text}");
        self.good &= good;
    }

    fn players(&mut self, summary: &BotSummary) {
        let line = format!(
            "players: {} actions in {:.0} s, {} failed, {} skipped; P50 {:.1} ms, P99 {:.1} ms",
            summary.actions,
            summary.elapsed_s,
            summary.failed,
            summary.skipped,
            summary.p50_ms,
            summary.p99_ms
        );
        self.line(summary.failed == 0 && summary.actions > 0, &line);
        let lane = format!(
            "lane {LANE}: {} plays in it, {} fought by the wrong battle",
            summary.lane_plays, summary.lane_astray
        );
        self.line(summary.lane_plays > 0 && summary.lane_astray == 0, &lane);
        if summary.resumes > 0 {
            let line = format!(
                "sessions: {} players whose connection broke came back by their token",
                summary.resumes
            );
            self.line(true, &line);
        }
        let rooms = &summary.rooms;
        let line = format!(
            "rooms: {} frames over UDP, {} lost, {} changes of address, {} went astray; slowest {:.1} ms",
            rooms.frames, rooms.lost, rooms.roamed, rooms.astray, rooms.worst_ms
        );
        let few_lost = rooms.lost * 100 <= rooms.frames; // datagrams may be lost
        self.line(rooms.frames > 0 && few_lost && rooms.astray == 0, &line);
        for (kind, failure) in &summary.failures {
            let _ = writeln!(
                self.text,
                "      {} \u{d7} {kind}: {}",
                failure.count, failure.sample
            );
        }
    }

    /// Every call of the game must have happened. Those that a matchmaker was at when somebody ended it may fail, and one
    /// in a hundred plays for other reasons (its queue refuses): they are asked again, and what players saw is judged.
    fn edges(&mut self, totals: &[Edge], losses: &[String]) {
        let interrupted = losses.iter().any(|loss| is_matchmaker(loss));
        for (from, to) in ::arena::EDGES {
            let excused = interrupted && (*from == matchmaker::NAME || *to == matchmaker::NAME);
            let carried: u64 = between(totals, from, to).map(|e| e.requests).sum();
            let failed: u64 = between(totals, from, to).map(|e| e.failures).sum();
            let retried: u64 = between(totals, from, to).map(|e| e.retries).sum();
            let asked_again = *to == matchmaker::NAME && failed <= carried / 100;
            self.line(
                carried > 0 && (failed == 0 || excused || asked_again),
                &format!(
                    "{from} \u{2192} {to}: {carried} requests, {failed} failed, {retried} retried"
                ),
            );
        }
    }

    /// Physics in Go copies no header: its sidecar knows what a call belongs to, or says that it does not.
    fn in_go(&mut self, totals: &[Edge], counts: &[(String, u64)]) {
        let called: u64 = between(totals, physics::NAME, ENGINE)
            .map(|e| e.requests)
            .sum();
        let told: Vec<String> = counts
            .iter()
            .filter(|(_, count)| *count > 0)
            .map(|(how, count)| format!("{count} {how}"))
            .collect();
        self.line(
            called > 0 && !told.is_empty(),
            &format!(
                "physics in Go \u{2192} {ENGINE}: {called} calls without a header of their own; their colour: {}",
                told.join(", ")
            ),
        );
    }

    fn split(&mut self, totals: &[Edge], changed: bool) {
        let count =
            |version| -> u64 { screen::versions(totals, version).map(|e| e.requests).sum() };
        let (one, two) = (count("v1"), count("v2"));
        let all = (one + two) as f64;
        if all == 0.0 {
            return self.line(false, "battle: no calls");
        }
        let measured = format!(
            "battle v1/v2: {one}/{two}, {:.1} % to v2",
            two as f64 * 100.0 / all
        );
        if changed {
            return self.line(
                true,
                &format!("{measured} (the configuration was changed meanwhile)"),
            );
        }
        let sigma = (all * SHARE * (1.0 - SHARE)).sqrt();
        let off = (two as f64 - all * SHARE).abs() / sigma;
        self.line(
            off <= SIGMAS,
            &format!(
                "{measured}; {off:.1} standard deviations from {:.0} %",
                SHARE * 100.0
            ),
        );
    }
}

fn between<'a>(totals: &'a [Edge], from: &'a str, to: &'a str) -> impl Iterator<Item = &'a Edge> {
    totals
        .iter()
        .filter(move |e| e.source == from && e.destination == to)
}
