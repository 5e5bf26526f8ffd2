//! Bodies. Written by hand around `serde_json`'s strings and numbers: a page is most of what a board does.

use crate::board::own::{Friends, Place};
use crate::board::{Board, Neighbours, Page, Rank};
use serde_json::json;
use std::io::Write as _;

/// Bytes to begin with, per row.
const ROW: usize = 64;

/// `{"board","version","as_of","total","final","entries":[{"place","player","score"[,"pending"]}],"next"}`
pub fn page(board: &Board, page: &Page) -> Vec<u8> {
    let rows = page.rows();
    let mut out = Vec::with_capacity(256 + rows.len() * ROW);
    head(&mut out, board, page.snapshot(), page.total());
    out.extend(b",\"entries\":[");
    for (at, row) in rows.enumerate() {
        if at > 0 {
            out.push(b',');
        }
        entry(&mut out, row.place, row.player, row.score, row.pending);
    }
    out.extend(b"],\"next\":");
    value(&mut out, &page.next());
    out.push(b'}');
    out
}

/// As a page's, with `"source":"store"`: places as they are now.
pub fn neighbours(board: &Board, neighbours: &Neighbours, place: &Place) -> Vec<u8> {
    let snapshot = &place.snapshot;
    let mut out = Vec::with_capacity(256 + neighbours.members.len() * ROW);
    head(&mut out, board, snapshot, snapshot.total());
    out.extend(b",\"source\":\"store\",\"entries\":[");
    for (at, (player, order)) in neighbours.members.iter().enumerate() {
        if at > 0 {
            out.push(b',');
        }
        let score = board.law().score(*order, snapshot.as_of_ms());
        entry(
            &mut out,
            neighbours.first + at as u64,
            player.as_str(),
            score,
            false,
        );
    }
    out.extend(b"]}");
    out
}

/// `{…,"player","source","place","low","high","score","pending"}`: `source` is `top`, `store`, `estimate`, `absent` or
/// `unknown`; what isn't known is `null`; `low` and `high` bound an estimate.
pub fn place(board: &Board, place: &Place) -> Vec<u8> {
    let mut out = Vec::with_capacity(256);
    head(&mut out, board, &place.snapshot, place.snapshot.total());
    out.extend(b",\"own\":");
    rank(
        &mut out,
        board,
        place.snapshot.as_of_ms(),
        None,
        &place.rank,
    );
    out.push(b'}');
    out
}

/// `{…,"friends":[{"player","source",…}]}`, best first.
pub fn friends(board: &Board, friends: &Friends) -> Vec<u8> {
    let snapshot = &friends.snapshot;
    let mut out = Vec::with_capacity(256 + friends.friends.len() * 2 * ROW);
    head(&mut out, board, snapshot, snapshot.total());
    out.extend(b",\"friends\":[");
    for (at, friend) in friends.friends.iter().enumerate() {
        if at > 0 {
            out.push(b',');
        }
        let player = Some(friend.player.as_str());
        rank(&mut out, board, snapshot.as_of_ms(), player, &friend.rank);
    }
    out.extend(b"]}");
    out
}

pub fn error(reason: &str, message: &str) -> Vec<u8> {
    let body = json!({ "reason": reason, "error": message });
    body.to_string().into_bytes()
}

fn head(out: &mut Vec<u8>, board: &Board, snapshot: &crate::board::Snapshot, total: u64) {
    out.extend(b"{\"board\":");
    value(out, &board.spec().name);
    print(
        out,
        format_args!(
            ",\"version\":\"{}\",\"as_of\":{},\"total\":{total},\"final\":{}",
            snapshot.version(),
            snapshot.as_of_ms(),
            snapshot.is_final(),
        ),
    );
}

fn entry(out: &mut Vec<u8>, place: u64, player: &str, score: f64, pending: bool) {
    print(out, format_args!("{{\"place\":{place},\"player\":"));
    value(out, &player);
    out.extend(b",\"score\":");
    number(out, score);
    if pending {
        out.extend(b",\"pending\":true");
    }
    out.push(b'}');
}

fn rank(out: &mut Vec<u8>, board: &Board, as_of_ms: u64, player: Option<&str>, rank: &Rank) {
    let (source, pending) = match rank {
        Rank::Top { pending, .. } => ("top", *pending),
        Rank::Store { .. } => ("store", false),
        Rank::About { pending, .. } => ("estimate", *pending),
        Rank::Absent => ("absent", false),
        Rank::Unknown => ("unknown", false),
    };
    let bounds = match rank {
        Rank::About { estimate, .. } => estimate.map(|estimate| (estimate.low, estimate.high)),
        _ => rank.place().map(|place| (place, place)),
    };
    out.push(b'{');
    if let Some(player) = player {
        out.extend(b"\"player\":");
        value(out, &player);
        out.push(b',');
    }
    print(out, format_args!("\"source\":\"{source}\",\"place\":"));
    value(out, &rank.place());
    out.extend(b",\"low\":");
    value(out, &bounds.map(|bounds| bounds.0));
    out.extend(b",\"high\":");
    value(out, &bounds.map(|bounds| bounds.1));
    out.extend(b",\"score\":");
    match rank.order() {
        Some(order) => number(out, board.law().score(order, as_of_ms)),
        None => out.extend(b"null"),
    }
    print(out, format_args!(",\"pending\":{pending}}}"));
}

/// Whole numbers without a fraction, others as short as they read back.
fn number(out: &mut Vec<u8>, score: f64) {
    if score.fract() == 0.0 && score.abs() < 9_007_199_254_740_993.0 {
        print(out, format_args!("{}", score as i64));
    } else {
        value(out, &score);
    }
}

fn value(out: &mut Vec<u8>, value: &impl serde::Serialize) {
    // Strings and numbers into memory: neither can fail.
    let _ = serde_json::to_writer(out, value);
}

fn print(out: &mut Vec<u8>, text: std::fmt::Arguments<'_>) {
    let _ = out.write_fmt(text);
}
