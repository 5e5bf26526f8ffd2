//! What a rule does besides forwarding a request: copies for others, sessions that stay where they began, and word to
//! browsers about pages of other origins.

use std::time::Duration;

use super::ValueMatch;
use crate::name::ClusterName;

/// A copy of requests for one endpoint of another cluster. Nobody hears its answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mirror {
    pub cluster: ClusterName,
    /// Of a million requests, how many; at least 1.
    pub per_million: u32,
}

/// Answers to copies are compared with those to the original, but for this.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Compare {
    /// Lower case.
    pub headers: Vec<String>,
    /// Of JSON: `$.a.b`, `$.list[].id`.
    pub paths: Vec<String>,
}

impl Compare {
    /// As a list of names and paths, separated by commas or blanks.
    ///
    /// # Errors
    /// The word that is neither.
    pub fn parse(ignored: &str) -> Result<Self, String> {
        let mut compare = Self::default();
        let words = ignored
            .split([',', ' ', '\n'])
            .filter(|word| !word.is_empty());
        for (count, word) in words.enumerate() {
            let is_name = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
            let is_plain = !word.chars().any(|c| c.is_control());
            if count >= IGNORED_MAX || word.len() > IGNORED_LEN_MAX {
                return Err(format!(
                    "more than {IGNORED_MAX} words, or a longer one than {IGNORED_LEN_MAX} bytes"
                ));
            }
            if word.starts_with('$') && is_plain {
                compare.paths.push(word.to_owned());
            } else if word.chars().all(is_name) {
                compare.headers.push(word.to_ascii_lowercase());
            } else {
                return Err(format!(
                    "`{word}` is neither a header\'s name nor a path such as $.a.b"
                ));
            }
        }
        Ok(compare)
    }

    /// What [`Compare::parse`] takes.
    pub fn ignored(&self) -> String {
        let words: Vec<&str> = self
            .headers
            .iter()
            .chain(&self.paths)
            .map(String::as_str)
            .collect();
        words.join(",")
    }
}

const IGNORED_MAX: usize = 64;
const IGNORED_LEN_MAX: usize = 128;

/// Every request.
pub const MILLION: u32 = 1_000_000;

/// Requests that carry the same token go to the same endpoint, whatever the weights of backends, for as long as the
/// endpoint is there and works, draining or not. The token is the endpoint's address, as Envoy encodes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// Of the cookie, or of the header in lower case. In a document empty where the rule's own is to be taken.
    pub name: String,
    pub carrier: Carrier,
    /// Whole seconds from the first answer after which the token means nothing any more.
    pub absolute: Option<Duration>,
    /// The same from the last answer.
    pub idle: Option<Duration>,
}

/// What carries a session's token, both ways.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carrier {
    /// That the client forgets when its own session ends.
    Cookie,
    /// That the client keeps for as long as [`Session::absolute`] says, which is always there.
    PermanentCookie,
    Header,
}

/// While an answer is awaited, further attempts at other endpoints; the first good answer is taken, the others are cancelled.
///
/// Only where sending twice is safe: an idempotent method, or a gRPC method that stands in `grpc`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hedging {
    /// Without an answer's head after the request has left, and between one further attempt and the next. At least 1 ms.
    pub delay: Duration,
    /// 1 to [`HEDGES_MAX`].
    pub extra_max: u32,
    /// Paths of gRPC methods that may be called twice: `/<service>/<method>`, or `/<service>/` for all of a service's.
    pub grpc: Vec<String>,
}

impl Hedging {
    /// Whether the gRPC method at this path may be called twice.
    pub fn allows_grpc(&self, path: &str) -> bool {
        let service = path.rfind('/').and_then(|end| path.get(..=end));
        let mut safe = self.grpc.iter().map(String::as_str);
        safe.any(|safe| safe == path || Some(safe) == service)
    }
}

/// Further attempts of one request that are under way together.
pub const HEDGES_MAX: u32 = 3;

/// What is told to browsers whose page is of another origin (the Fetch standard's CORS protocol).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cors {
    /// Whose pages may read answers: `*` for all, an origin, or a pattern of the whole of one.
    pub origins: Vec<ValueMatch>,
    pub credentials: bool,
    /// `*`: whatever is asked for.
    pub methods: Vec<String>,
    /// `*`: whatever is asked for.
    pub headers: Vec<String>,
    pub exposed: Vec<String>,
    /// Seconds for which an answer to a preflight holds.
    pub max_age: u32,
}

/// As an origin, stands for all of them; as a method or header, for whatever is asked for.
pub const ANY: &str = "*";
