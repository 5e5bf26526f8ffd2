//! What is remembered of one request while somebody looks: an access log or a tap. Nobody looks: nothing is remembered.
//!
//! Filled on the request path, written as JSON elsewhere. The query and credentials are not in it, unless asked for.

use std::cell::RefCell;
use std::fmt::Write as _;
use std::net::SocketAddr;

use phalanx_model::name::{ClusterName, Direction};
use phalanx_model::reason::Reason;

use super::Traffic;
use crate::underway::How;

/// One request, from its head to the end of its answer.
#[derive(Clone, Debug)]
pub struct Sight {
    /// Unix milliseconds of its head.
    pub time_ms: u64,
    pub direction: Direction,
    /// Id of the caller, empty in plain text.
    pub caller: String,
    /// SHA-256 of the certificate that it has shown.
    pub certificate: Option<[u8; 32]>,
    pub peer: Option<SocketAddr>,
    pub cluster: Option<ClusterName>,
    /// The endpoint's `version` label.
    pub version: String,
    /// The route's rule; empty when none was met.
    pub rule: String,
    pub traffic: Traffic,
    pub method: String,
    pub authority: String,
    /// Canonical, as the caller asked, before a rewrite; empty when it was refused.
    pub path: String,
    /// Only where it was asked for.
    pub query: Option<String>,
    /// As they came in, credentials blotted out; only for taps that ask for them.
    pub headers: Vec<(String, String)>,
    /// 0: the caller went away before the answer's end.
    pub status: u16,
    pub reason: Option<Reason>,
    pub grpc_status: Option<u8>,
    pub bytes: (u64, u64),
    pub messages: (u64, u64),
    pub attempts: u32,
    /// Of them, those beside another that was still awaited.
    pub hedges: u32,
    pub upstream: Option<SocketAddr>,
    pub request_id: String,
    pub trace_id: [u8; 16],
    /// Its `x-env` where rules saw it; empty: none.
    pub colour: String,
    /// Whose endpoint it came to last; none: no lane is for it there.
    pub lane: Option<AnsweredBy>,
    /// How surely the colour of an application's call is known.
    pub correlation: Option<How>,
    pub phases: Phases,
    /// Chosen by the log's sample.
    pub sampled: bool,
}

/// Who took a request that a lane is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AnsweredBy {
    Lane,
    Baseline,
    Nobody,
}

impl AnsweredBy {
    /// As in the metric `phalanx_lane_requests_total`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Lane => "lane",
            Self::Baseline => "baseline",
            Self::Nobody => "nobody",
        }
    }
}

/// When what happened, in µs after the request's head.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Phases {
    /// The last attempt began.
    pub attempt_us: Option<u64>,
    /// The head of the answer was there.
    pub head_us: Option<u64>,
    pub end_us: u64,
}

impl Default for Sight {
    fn default() -> Self {
        Self {
            time_ms: 0,
            direction: Direction::Outbound,
            caller: String::new(),
            certificate: None,
            peer: None,
            cluster: None,
            version: String::new(),
            rule: String::new(),
            traffic: Traffic::Http,
            method: String::new(),
            authority: String::new(),
            path: String::new(),
            query: None,
            headers: Vec::new(),
            status: 0,
            reason: None,
            grpc_status: None,
            bytes: (0, 0),
            messages: (0, 0),
            attempts: 0,
            hedges: 0,
            upstream: None,
            request_id: String::new(),
            trace_id: [0; 16],
            colour: String::new(),
            lane: None,
            correlation: None,
            phases: Phases::default(),
            sampled: false,
        }
    }
}

impl Sight {
    /// Empty, with memory of an earlier one where there is one.
    pub fn take() -> Box<Self> {
        SPARE.with_borrow_mut(Vec::pop).unwrap_or_default()
    }

    /// Gives its memory back.
    pub fn put(mut self: Box<Self>) {
        SPARE.with_borrow_mut(|spare| {
            if spare.len() < SPARE_MAX {
                self.clear();
                spare.push(self);
            }
        });
    }

    fn clear(&mut self) {
        let texts = [
            &mut self.caller,
            &mut self.version,
            &mut self.rule,
            &mut self.method,
            &mut self.authority,
            &mut self.path,
            &mut self.request_id,
            &mut self.colour,
        ];
        let [
            caller,
            version,
            rule,
            method,
            authority,
            path,
            request_id,
            colour,
        ] = texts.map(|text| {
            text.clear();
            text.shrink_to(TEXT_KEPT_MAX);
            std::mem::take(text)
        });
        *self = Self {
            caller,
            version,
            rule,
            method,
            authority,
            path,
            request_id,
            colour,
            ..Self::default()
        };
    }

    /// Answered with an error: a status of 400 or more, a `grpc-status` other than 0, or an answer of our own with a reason.
    pub fn is_error(&self) -> bool {
        self.status >= 400
            || self.reason.is_some()
            || self.grpc_status.is_some_and(|status| status != 0)
    }

    /// One line of JSON, without its end.
    pub fn json(&self) -> String {
        let mut line = Line::new();
        line.text("time", &rfc3339(self.time_ms));
        line.text("direction", self.direction.as_str());
        line.text_or_none("caller", &self.caller);
        if let Some(certificate) = &self.certificate {
            line.text("certificate", &phalanx_pki::x509::hex(certificate));
        }
        if let Some(peer) = self.peer {
            line.text("peer", &peer.to_string());
        }
        if let Some(cluster) = &self.cluster {
            let service = &cluster.service;
            let host = format!("{}.{}:{}", service.name, service.namespace, cluster.port);
            line.text("service", &host);
            line.text_or_none("version", &self.version);
        }
        line.text_or_none("rule", &self.rule);
        line.text("protocol", self.traffic.as_str());
        line.text("method", &self.method);
        line.text_or_none("authority", &self.authority);
        line.text_or_none("path", &self.path);
        if let Some(query) = &self.query {
            line.text("query", query);
        }
        line.number("status", u64::from(self.status));
        if let Some(reason) = self.reason {
            line.text("reason", reason.as_str());
        }
        if let Some(status) = self.grpc_status {
            line.number("grpc_status", u64::from(status));
        }
        line.number("bytes_in", self.bytes.0);
        line.number("bytes_out", self.bytes.1);
        if self.messages != (0, 0) {
            line.number("messages_in", self.messages.0);
            line.number("messages_out", self.messages.1);
        }
        let Phases {
            attempt_us,
            head_us,
            end_us,
        } = self.phases;
        line.milliseconds("duration_ms", end_us);
        if let Some(attempt) = attempt_us {
            line.milliseconds("before_upstream_ms", attempt);
            if let Some(head) = head_us {
                line.milliseconds("upstream_ms", head.saturating_sub(attempt));
                line.milliseconds("answer_ms", end_us.saturating_sub(head));
            }
        }
        line.number("attempts", u64::from(self.attempts));
        if self.hedges > 0 {
            line.number("hedges", u64::from(self.hedges));
        }
        if let Some(upstream) = self.upstream {
            line.text("upstream", &upstream.to_string());
        }
        line.text_or_none("request_id", &self.request_id);
        if self.trace_id != [0; 16] {
            let mut hex = String::with_capacity(32);
            for byte in self.trace_id {
                let _ = write!(hex, "{byte:02x}");
            }
            line.text("trace_id", &hex);
        }
        line.text_or_none("colour", &self.colour);
        if let Some(by) = self.lane {
            line.text("lane", by.as_str());
        }
        if let Some(how) = self.correlation {
            line.text("correlation", how.as_str());
        }
        if !self.headers.is_empty() {
            line.pairs("headers", &self.headers);
        }
        line.finish()
    }
}

/// Whether a header's value is nobody's business.
pub fn is_secret(name: &str) -> bool {
    SECRETS.contains(&name) || SECRET_PARTS.iter().any(|part| name.contains(part))
}

/// An object of JSON, written in the order of its fields.
struct Line(String);

impl Line {
    fn new() -> Self {
        Self(String::with_capacity(LINE_USUAL))
    }

    fn key(&mut self, key: &str) {
        self.0.push(if self.0.is_empty() { '{' } else { ',' });
        let _ = write!(self.0, "\"{key}\":");
    }

    fn text(&mut self, key: &str, value: &str) {
        self.key(key);
        quote(&mut self.0, value);
    }

    fn text_or_none(&mut self, key: &str, value: &str) {
        if !value.is_empty() {
            self.text(key, value);
        }
    }

    fn number(&mut self, key: &str, value: u64) {
        self.key(key);
        let _ = write!(self.0, "{value}");
    }

    fn milliseconds(&mut self, key: &str, us: u64) {
        self.key(key);
        let _ = write!(self.0, "{}.{:03}", us / 1000, us % 1000);
    }

    fn pairs(&mut self, key: &str, pairs: &[(String, String)]) {
        self.key(key);
        for (index, (name, value)) in pairs.iter().enumerate() {
            self.0.push_str(if index == 0 { "[[" } else { ",[" });
            quote(&mut self.0, name);
            self.0.push(',');
            quote(&mut self.0, value);
            self.0.push(']');
        }
        self.0.push(']');
    }

    fn finish(mut self) -> String {
        self.0.push('}');
        self.0
    }
}

/// As RFC 8259 §7 wants it, on one line whatever the value.
fn quote(out: &mut String, text: &str) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            c if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}') => {
                let _ = write!(out, "\\u{:04x}", c as u32);
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

/// UTC, with milliseconds.
fn rfc3339(unix_ms: u64) -> String {
    let (days, ms) = (unix_ms / 86_400_000, unix_ms % 86_400_000);
    // Civil date from days since 1970-01-01 (H. Hinnant, "chrono-compatible low-level date algorithms").
    let shifted = days + 719_468;
    let (era, of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = match shifted_month {
        0..10 => shifted_month + 3,
        _ => shifted_month - 9,
    };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute) = (ms / 3_600_000, ms / 60_000 % 60);
    let (second, milli) = (ms / 1_000 % 60, ms % 1_000);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{milli:03}Z")
}

thread_local! {
    #[allow(clippy::vec_box, reason = "they come and go as boxes")]
    static SPARE: RefCell<Vec<Box<Sight>>> = const { RefCell::new(Vec::new()) };
}

/// Kept per core for the next requests.
const SPARE_MAX: usize = 32;
/// Memory that a text keeps.
const TEXT_KEPT_MAX: usize = 512;
const LINE_USUAL: usize = 512;
const SECRETS: [&str; 4] = [
    "authorization",
    "proxy-authorization",
    "cookie",
    "set-cookie",
];
const SECRET_PARTS: [&str; 6] = [
    "token",
    "secret",
    "password",
    "api-key",
    "apikey",
    "credential",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_those_of_the_calendar() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(rfc3339(951_782_400_000), "2000-02-29T00:00:00.000Z");
        assert_eq!(rfc3339(1_795_384_173_042), "2026-11-22T21:49:33.042Z");
        assert_eq!(rfc3339(4_102_444_799_999), "2099-12-31T23:59:59.999Z");
    }

    #[test]
    fn a_line_is_one_line_of_json_whatever_was_sent() {
        let sight = Sight {
            path: "/a\"\\\n\u{2028}\u{7f}ü".into(),
            headers: vec![("x".into(), "\r\n\"".into()), ("y".into(), String::new())],
            colour: "dev-li\n".into(),
            lane: Some(AnsweredBy::Baseline),
            phases: Phases {
                attempt_us: Some(10),
                head_us: Some(1_210),
                end_us: 5_007,
            },
            ..Sight::default()
        };
        let line = sight.json();
        assert!(!line.contains(['\n', '\r', '\u{2028}', '\u{7f}']));
        let value: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(value["path"], sight.path);
        assert_eq!(value["headers"][0][1], "\r\n\"");
        assert_eq!(value["colour"], "dev-li\n");
        assert_eq!(value["lane"], "baseline");
        assert_eq!(value["duration_ms"], 5.007);
        assert_eq!(value["upstream_ms"], 1.2);
    }

    #[test]
    fn what_identifies_somebody_is_a_secret() {
        for name in ["authorization", "cookie", "x-auth-token", "x-api-key"] {
            assert!(is_secret(name), "{name}");
        }
        for name in ["x-request-id", "content-type", "x-env"] {
            assert!(!is_secret(name), "{name}");
        }
    }
}
