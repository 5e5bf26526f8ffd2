//! A tap: live requests of this sidecar as lines of JSON, for as long as somebody listens. Asked for by a query string,
//! answered as a stream whose dropping ends the tap. Who may listen is whoever reaches the admin address.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use phalanx_model::name::Direction;
use phalanx_model::reason::Reason;
use tokio::time::{Sleep, sleep};

use crate::account::Lookout;
use crate::account::lookout::{Filter, Tapped};
use crate::config::Sample;

/// A tap of one listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Order {
    pub filter: Filter,
    /// Ends after so many requests.
    pub max: u64,
    pub time: Duration,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum TapError {
    #[error("`{0}` is no parameter of a tap")]
    Unknown(String),
    #[error("{key}=`{value}`: {expected}")]
    Value {
        key: String,
        value: String,
        expected: String,
    },
}

impl Order {
    /// Of the parameters of a query, decoded.
    ///
    /// # Errors
    /// One that is not known, or whose value is none.
    pub fn parse<'q>(
        parameters: impl Iterator<Item = (&'q str, &'q str)>,
    ) -> Result<Self, TapError> {
        let mut order = Self {
            filter: Filter::default(),
            max: MAX_USUAL,
            time: TIME_MAX,
        };
        for (key, value) in parameters {
            let wrong = |expected: &str| TapError::Value {
                key: key.to_owned(),
                value: value.to_owned(),
                expected: expected.to_owned(),
            };
            let text = || Some(value.to_owned());
            let filter = &mut order.filter;
            match key {
                "service" => filter.service = text(),
                "path" => filter.path_prefix = text(),
                "method" => filter.method = Some(value.to_ascii_uppercase()),
                "caller" => filter.caller = text(),
                "reason" => {
                    Reason::parse(value).ok_or_else(|| wrong("no reason of ours"))?;
                    filter.reason = text();
                }
                "colour" => filter.colour = text(),
                "direction" => {
                    let all = [Direction::Inbound, Direction::Outbound];
                    let found = all.into_iter().find(|d| d.as_str() == value);
                    let found = found.ok_or_else(|| wrong("inbound or outbound"));
                    filter.direction = Some(found?);
                }
                "status" => {
                    let range = statuses(value).ok_or_else(|| wrong("such as 503 or 5xx"))?;
                    filter.status = Some(range);
                }
                "grpc_status" => {
                    let status = value.parse().map_err(|_| wrong("a number, 0 to 16"))?;
                    filter.grpc_status = Some(status);
                }
                "slower_ms" => {
                    let ms: u64 = value.parse().map_err(|_| wrong("milliseconds"))?;
                    filter.slower_than_us = Some(ms.saturating_mul(1000));
                }
                "errors" => filter.errors = flag(value).ok_or_else(|| wrong("1 or 0"))?,
                "headers" => filter.headers = flag(value).ok_or_else(|| wrong("1 or 0"))?,
                "sample" => {
                    filter.sample = Some(Sample::parse(value).map_err(|why| wrong(&why))?);
                }
                "max" => {
                    let max = value.parse().ok().filter(|max| *max > 0);
                    order.max = max.ok_or_else(|| wrong("a number above 0"))?;
                }
                "seconds" => {
                    let seconds: u64 = value.parse().map_err(|_| wrong("seconds"))?;
                    order.time = Duration::from_secs(seconds).min(TIME_MAX);
                }
                other => return Err(TapError::Unknown(other.to_owned())),
            }
        }
        Ok(order)
    }
}

/// `503`, or `5xx` for all of its class; `0` stands for callers that went away.
fn statuses(text: &str) -> Option<(u16, u16)> {
    if let Some(class) = text.strip_suffix("xx") {
        let class: u16 = class.parse().ok().filter(|class| (1..=5).contains(class))?;
        return Some((class * 100, class * 100 + 99));
    }
    let status: u16 = text.parse().ok().filter(|status| *status < 600)?;
    Some((status, status))
}

fn flag(text: &str) -> Option<bool> {
    match text {
        "1" | "true" => Some(true),
        "0" | "false" => Some(false),
        _ => None,
    }
}

/// What a listener reads: a line for each request, and one that tells how many were lost, when some were.
pub struct Stream {
    tapped: Tapped,
    left: u64,
    told_lost: u64,
    until: Pin<Box<Sleep>>,
}

impl Stream {
    /// None when as many listen as may.
    pub fn open(lookout: &Arc<Lookout>, order: &Order) -> Option<Self> {
        Some(Self {
            tapped: lookout.tap(order.filter.clone())?,
            left: order.max,
            told_lost: 0,
            until: Box::pin(sleep(order.time)),
        })
    }

    /// None at its end.
    pub fn poll_line(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        let lost = self.tapped.dropped.load(Ordering::Relaxed);
        if lost > self.told_lost {
            let line = format!("{{\"lost\":{}}}\n", lost - self.told_lost);
            self.told_lost = lost;
            return Poll::Ready(Some(line.into()));
        }
        if self.left == 0 || self.until.as_mut().poll(cx).is_ready() {
            return Poll::Ready(None);
        }
        self.tapped.seen.poll_recv(cx).map(|seen| {
            self.left -= 1;
            Some(Bytes::from(seen?.json() + "\n"))
        })
    }
}

const MAX_USUAL: u64 = 1_000_000;
/// Nobody listens longer without asking again.
pub const TIME_MAX: Duration = Duration::from_secs(3_600);

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(pairs: &[(&'static str, &'static str)]) -> Result<Order, TapError> {
        Order::parse(pairs.iter().copied())
    }

    #[test]
    fn parameters_become_a_filter_and_unknown_ones_are_refused() {
        let order = parse(&[
            ("path", "/cart"),
            ("status", "5xx"),
            ("max", "3"),
            ("direction", "inbound"),
            ("colour", "dev-li"),
            ("slower_ms", "20"),
        ])
        .unwrap();
        assert_eq!(order.filter.status, Some((500, 599)));
        assert_eq!(order.filter.direction, Some(Direction::Inbound));
        assert_eq!(order.filter.slower_than_us, Some(20_000));
        assert_eq!(order.filter.colour.as_deref(), Some("dev-li"));
        assert_eq!(order.max, 3);
        for wrong in [
            ("status", "9xx"),
            ("status", "x"),
            ("max", "0"),
            ("direction", "up"),
            ("reason", "because"),
            ("shape", "round"),
            ("sample", "200%"),
        ] {
            assert!(parse(&[wrong]).is_err(), "{wrong:?}");
        }
    }
}
