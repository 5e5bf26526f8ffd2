//! Reads over HTTP, in any framework: what was asked goes in as text, and out come a status, headers and a body. Every
//! answer says how old it is (`X-Cache`, `Age`, `Cache-Status` of RFC 9211) and which version it is of (`ETag`).
//!
//! | path | query | |
//! |---|---|---|
//! | `top` | `offset`, `limit`, `token`, `viewer` | [`Board::page`] |
//! | `rank/{player}` | `score` (a hint) | [`Board::rank`] |
//! | `around/{player}` | `radius`, `score` | [`Board::around`] |
//! | `friends` | `player`, once per friend | [`Board::friends`] |
//!
//! All take `require=fresh` (refuse what is older than [`BoardSpec::fresh_ms`](super::BoardSpec)) and `max_age_ms`.

mod json;
mod query;

use super::page::{Audience, Freshness, Page};
use super::{Around, Board, ReadError};
use bytes::Bytes;
use query::{Query, Read};

const NAME: &str = "phalanx-board";
const JSON: &str = "application/json";
const PRIVATE: &str = "private, no-cache";

/// A request for one board. `path` is what follows the board's own prefix, without a slash in front; it and `query` are
/// percent-encoded, as they came.
#[derive(Clone, Copy, Debug, Default)]
pub struct Request<'a> {
    pub path: &'a str,
    pub query: &'a str,
    /// The header `If-None-Match`.
    pub if_none_match: Option<&'a str>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// 200, 304, 400 (names what is wrong), 404 (no such path), 410 (the version is gone: begin again) or 503 (too old, or
    /// no snapshot yet).
    pub status: u16,
    /// Lower case names, each once.
    pub headers: Vec<(&'static str, String)>,
    /// JSON; empty with 304.
    pub body: Bytes,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(known, _)| *known == name);
        found.map(|(_, value)| value.as_str())
    }
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
enum Failure {
    #[error("no such read: top, rank/{{player}}, around/{{player}} or friends")]
    Path,
    #[error(transparent)]
    Query(#[from] query::BadQuery),
    #[error(transparent)]
    Read(#[from] ReadError),
}

impl Board {
    /// Never fails: what can't be answered is an answer with a status of its own. Reads of players outside the top wait as
    /// [`Board::rank`] does; pages never wait.
    pub async fn answer(&self, request: Request<'_>, now_ms: u64) -> Answer {
        match self.try_answer(request, now_ms).await {
            Ok(answer) => answer,
            Err(failure) => refusal(&failure),
        }
    }

    async fn try_answer(&self, request: Request<'_>, now_ms: u64) -> Result<Answer, Failure> {
        let read = Read::parse(request.path).ok_or(Failure::Path)??;
        let query = Query::parse(&read, request.query, self)?;
        let seen = request.if_none_match;
        match read {
            Read::Top => {
                let page = self.page(&query.page, now_ms)?;
                Ok(self.page_answer(&page, seen))
            }
            Read::Rank(player) => {
                let place = self.rank(&query.own(player), now_ms).await?;
                let body = json::place(self, &place);
                Ok(own_answer(body.into(), &place.freshness, self, seen))
            }
            Read::Around(player) => {
                let around = self
                    .around(&query.own(player), query.radius, now_ms)
                    .await?;
                let (body, fresh) = match &around {
                    Around::Top(page) => (json::page(self, page), page.freshness()),
                    Around::Store { neighbours, place } => {
                        (json::neighbours(self, neighbours, place), place.freshness)
                    }
                    Around::Alone(place) => (json::place(self, place), place.freshness),
                };
                Ok(own_answer(body.into(), &fresh, self, seen))
            }
            Read::Friends => {
                let max_age_ms = query.page.max_age_ms;
                let friends = self.friends(&query.players, max_age_ms, now_ms).await?;
                let body = json::friends(self, &friends);
                Ok(own_answer(body.into(), &friends.freshness, self, seen))
            }
        }
    }

    /// A page as [`Board::answer`] gives it: its body is written once per version, offset and limit, unless it is personal.
    pub fn page_answer(&self, page: &Page, if_none_match: Option<&str>) -> Answer {
        if page.is_personal() {
            return own_answer(
                json::page(self, page).into(),
                &page.freshness(),
                self,
                if_none_match,
            );
        }
        let etag = page.snapshot().etag();
        let fresh = page.freshness();
        let mut headers = freshness(&fresh, self);
        headers.push((
            "cache-control",
            match page.of {
                Audience::Everybody => max_age(&fresh),
                // What she writes next has to show in it.
                Audience::Viewer | Audience::Her => PRIVATE.into(),
            },
        ));
        if matches(if_none_match, &etag) {
            headers.push(("etag", etag));
            return Answer {
                status: 304,
                headers,
                body: Bytes::new(),
            };
        }
        let (from, to) = page.range();
        let body = page.snapshot().body(from, to, || json::page(self, page));
        headers.push(("etag", etag));
        headers.push(("content-type", JSON.into()));
        Answer {
            status: 200,
            headers,
            body,
        }
    }
}

/// An answer for one player alone: its tag is of its very bytes, and no shared cache may keep it.
fn own_answer(body: Bytes, fresh: &Freshness, board: &Board, seen: Option<&str>) -> Answer {
    let etag = format!("\"{:016x}\"", xxhash_rust::xxh3::xxh3_64(&body));
    let mut headers = freshness(fresh, board);
    headers.push(("cache-control", PRIVATE.into()));
    if matches(seen, &etag) {
        headers.push(("etag", etag));
        return Answer {
            status: 304,
            headers,
            body: Bytes::new(),
        };
    }
    headers.push(("etag", etag));
    headers.push(("content-type", JSON.into()));
    Answer {
        status: 200,
        headers,
        body,
    }
}

/// The headers that tell how old an answer is.
pub fn freshness(fresh: &Freshness, board: &Board) -> Vec<(&'static str, String)> {
    let mut status = format!("{NAME}; hit");
    if let Some(ttl_ms) = fresh.ttl_ms {
        // Rounded down, so that what is stale by a millisecond doesn't say 0.
        status.push_str(&format!("; ttl={}", ttl_ms.div_euclid(1_000)));
    }
    status.push_str(&format!("; key=\"{}\"", board.spec().name));
    let detail = if fresh.ttl_ms.is_none() {
        Some("final")
    } else {
        fresh.store.detail()
    };
    if let Some(detail) = detail {
        status.push_str(&format!("; detail=\"{detail}\""));
    }
    let cache = if fresh.stale { "STALE" } else { "HIT" };
    vec![
        ("x-cache", cache.into()),
        ("age", (fresh.age_ms / 1_000).to_string()),
        ("cache-status", status),
    ]
}

/// How long others may keep a page without asking: as long as it is fresh here, counted from when its `Age` was 0.
fn max_age(fresh: &Freshness) -> String {
    match fresh.ttl_ms {
        None => "max-age=3600".into(),
        Some(ttl) if ttl > 0 => format!("max-age={}", (fresh.age_ms + ttl as u64) / 1_000),
        Some(_) => "no-cache".into(),
    }
}

/// RFC 9110, 13.1.2: a list of tags, weak ones compare as strong ones do, `*` matches whatever there is.
fn matches(if_none_match: Option<&str>, etag: &str) -> bool {
    let Some(list) = if_none_match else {
        return false;
    };
    list.split(',')
        .map(str::trim)
        .any(|tag| tag == "*" || tag.strip_prefix("W/").unwrap_or(tag) == etag)
}

fn refusal(failure: &Failure) -> Answer {
    let (status, reason) = match failure {
        Failure::Path => (404, "no_such_read"),
        Failure::Query(_) => (400, "bad_query"),
        Failure::Read(error) => match error {
            ReadError::Empty { .. } => (503, "empty"),
            ReadError::Stale { .. } => (503, "stale"),
            ReadError::Gone { .. } => (410, "gone"),
            ReadError::Token(_) => (400, "bad_token"),
            ReadError::TooMany { .. } | ReadError::Player(_) => (400, "bad_query"),
        },
    };
    let mut headers = vec![
        ("content-type", JSON.to_owned()),
        ("cache-control", "no-store".to_owned()),
        ("cache-status", format!("{NAME}; detail=\"{reason}\"")),
    ];
    if let Failure::Read(ReadError::Stale { age_ms, .. }) = failure {
        headers.push(("age", (age_ms / 1_000).to_string()));
        headers.push(("x-cache", "STALE".into()));
    }
    if status == 503 {
        headers.push(("retry-after", "1".into()));
    }
    let body = json::error(reason, &failure.to_string()).into();
    Answer {
        status,
        headers,
        body,
    }
}

#[cfg(test)]
mod tests;
