//! Which failures may be repeated, and how many repetitions may be under way.

use phalanx_model::reason::Reason;
use phalanx_model::resource::{CircuitBreaker, Retry, RetryBudget};

use crate::balance::Evidence;

/// A document's word on retries, compiled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RetryPlan {
    /// Further attempts after the first.
    pub attempts: u32,
    codes: Box<[u16]>,
    /// The least wait before a further attempt.
    pub backoff_ms: u64,
}

/// Why an attempt has no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// ECONNREFUSED: nobody listens.
    Refused,
    /// No connection in time, no route to it, or no trust between the two ends.
    ConnectFailed,
    /// It takes mutual TLS only, and we have nothing to show: our own fault.
    NoCredentials,
    /// It does not take what we show, or was refused a moment ago: told once, and no word about how it works.
    Mistrust,
    /// The peer said, or we know, that the request was not processed: a refused stream, a GOAWAY before it, a connection
    /// that was closed before anything was written.
    Unprocessed,
    /// A connection used before was closed before a byte of the answer; the peer may or may not have seen the request.
    Stale,
    /// The connection or stream broke after the request went out.
    Reset,
    /// The attempt's own deadline.
    Timeout,
    /// The answer can't be passed on.
    BadAnswer,
    /// A circuit breaker.
    Overflow,
}

impl Fault {
    /// What the caller is told when there is no further attempt.
    pub fn reason(self) -> Reason {
        match self {
            Self::Refused | Self::ConnectFailed | Self::NoCredentials | Self::Mistrust => {
                Reason::ConnectFailed
            }
            Self::Unprocessed | Self::Stale | Self::Reset | Self::BadAnswer => {
                Reason::UpstreamReset
            }
            Self::Timeout => Reason::Timeout,
            Self::Overflow => Reason::Overflow,
        }
    }

    /// There was no connection to send it on.
    pub fn is_of_connecting(self) -> bool {
        matches!(
            self,
            Self::Refused | Self::ConnectFailed | Self::NoCredentials | Self::Mistrust
        )
    }

    /// What it says of the endpoint; nothing for what is our own doing.
    pub fn evidence(self) -> Option<Evidence> {
        match self {
            Self::Refused => Some(Evidence::Refused),
            Self::ConnectFailed | Self::Reset | Self::Timeout | Self::BadAnswer => {
                Some(Evidence::GatewayError)
            }
            Self::Unprocessed
            | Self::Stale
            | Self::Overflow
            | Self::NoCredentials
            | Self::Mistrust => None,
        }
    }
}

/// What one attempt came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    Answer {
        status: u16,
        /// What the peer's sidecar says of an answer that it made itself.
        peer_reason: Option<Reason>,
        /// In the head of an answer without body.
        grpc_status: Option<u8>,
    },
    Fault(Fault),
}

impl Heard {
    pub fn evidence(self) -> Option<Evidence> {
        match self {
            Self::Fault(fault) => fault.evidence(),
            Self::Answer {
                peer_reason: Some(Reason::ConnectFailed),
                ..
            } => Some(Evidence::Refused),
            Self::Answer {
                peer_reason: Some(Reason::UpstreamReset),
                ..
            } => Some(Evidence::GatewayError),
            // A limit that was kept, or a load that was shed, says nothing of how the endpoint works.
            Self::Answer {
                peer_reason: Some(Reason::RateLimited | Reason::Overload),
                ..
            } => None,
            // Its sidecar answers for the caller's or the operator's doing: no word about the application.
            Self::Answer {
                peer_reason: Some(reason),
                ..
            } if reason.http_status() < 500 => Some(Evidence::Success),
            Self::Answer {
                status: 502..=504, ..
            } => Some(Evidence::GatewayError),
            Self::Answer { status: 500.., .. } => Some(Evidence::ServerError),
            Self::Answer {
                grpc_status: Some(GRPC_UNAVAILABLE),
                ..
            } => Some(Evidence::GatewayError),
            Self::Answer { .. } => Some(Evidence::Success),
        }
    }

    /// Whether the application can't have seen the request, so that repeating it repeats nothing.
    pub fn is_unprocessed(self) -> bool {
        match self {
            Self::Fault(fault) => matches!(
                fault,
                Fault::Refused | Fault::ConnectFailed | Fault::Mistrust | Fault::Unprocessed
            ),
            Self::Answer { peer_reason, .. } => {
                matches!(
                    peer_reason,
                    Some(Reason::ConnectFailed | Reason::Draining | Reason::Overflow)
                )
            }
        }
    }
}

impl RetryPlan {
    pub fn new(retry: &Retry) -> Self {
        let backoff_ms = u64::try_from(retry.backoff.as_millis()).unwrap_or(u64::MAX);
        Self {
            attempts: retry.attempts.min(ATTEMPTS_MAX),
            codes: retry.codes.clone().into(),
            backoff_ms,
        }
    }

    /// For traffic to the sidecar's own application: there is nowhere else to go.
    pub fn none() -> Self {
        Self {
            attempts: 0,
            codes: Box::default(),
            backoff_ms: 0,
        }
    }

    /// Whether a document or the nature of the failure lets this be tried again, budget and body aside.
    ///
    /// What never reached the application may always be. Otherwise the method must be idempotent, or the status be one
    /// that a document wrote down; without a document's word the gateway statuses 502 to 504 count.
    pub fn allows(&self, heard: Heard, idempotent: bool) -> bool {
        if heard.is_unprocessed() {
            return true;
        }
        match heard {
            // More of the same would be shed as well; only a document can want it.
            Heard::Answer {
                peer_reason: Some(Reason::Overload | Reason::RateLimited),
                ..
            } if self.codes.is_empty() => false,
            Heard::Answer { status, .. } if self.codes.is_empty() => {
                idempotent && matches!(status, 502..=504)
            }
            Heard::Answer { status, .. } => self.codes.contains(&status),
            Heard::Fault(fault) => {
                idempotent && !matches!(fault, Fault::Overflow | Fault::NoCredentials)
            }
        }
    }
}

/// How many retries to a cluster may be under way at once. As with Envoy, the budget takes the place of `max_retries`,
/// unless that was set to something else than its default: then it is a cap.
pub fn retries_allowed(budget: RetryBudget, breaker: CircuitBreaker, requests: u32) -> u32 {
    let share = u64::from(requests) * u64::from(budget.percent) / 100;
    let allowed = u32::try_from(share)
        .unwrap_or(u32::MAX)
        .max(budget.min_concurrency);
    if breaker.max_retries == CircuitBreaker::default().max_retries {
        allowed
    } else {
        allowed.min(breaker.max_retries)
    }
}

/// Attempts of one request, whatever a document says.
pub const ATTEMPTS_MAX: u32 = 16;
const GRPC_UNAVAILABLE: u8 = 14;

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16) -> Heard {
        Heard::Answer {
            status,
            peer_reason: None,
            grpc_status: None,
        }
    }

    fn from_sidecar(reason: Reason) -> Heard {
        Heard::Answer {
            status: reason.http_status(),
            peer_reason: Some(reason),
            grpc_status: None,
        }
    }

    #[test]
    fn what_never_reached_the_application_is_always_repeated() {
        let plan = RetryPlan::new(&Retry::default());
        for fault in [Fault::Refused, Fault::ConnectFailed, Fault::Unprocessed] {
            assert!(plan.allows(Heard::Fault(fault), false), "{fault:?}");
        }
        assert!(plan.allows(from_sidecar(Reason::ConnectFailed), false));
        for fault in [Fault::Reset, Fault::Stale, Fault::Timeout] {
            assert!(!plan.allows(Heard::Fault(fault), false), "{fault:?}");
            assert!(plan.allows(Heard::Fault(fault), true), "{fault:?}");
        }
        assert!(!plan.allows(Heard::Fault(Fault::Overflow), true));
    }

    #[test]
    fn who_does_not_take_our_certificate_is_neither_blamed_nor_paid_for_by_the_budget() {
        let heard = Heard::Fault(Fault::Mistrust);
        assert_eq!(heard.evidence(), None);
        assert!(heard.is_unprocessed());
        assert!(RetryPlan::new(&Retry::default()).allows(heard, false));
    }

    #[test]
    fn written_codes_are_repeated_whatever_the_method() {
        let plan = RetryPlan::new(&Retry {
            codes: vec![500, 429],
            ..Retry::default()
        });
        assert!(plan.allows(answer(500), false) && plan.allows(answer(429), false));
        assert!(!plan.allows(answer(503), true));
        let plan = RetryPlan::new(&Retry::default());
        assert!(
            plan.allows(answer(503), true)
                && !plan.allows(answer(503), false)
                && !plan.allows(answer(500), true)
        );
    }

    #[test]
    fn peer_sidecar_speaks_for_its_application() {
        assert_eq!(
            from_sidecar(Reason::ConnectFailed).evidence(),
            Some(Evidence::Refused)
        );
        assert_eq!(
            from_sidecar(Reason::UpstreamReset).evidence(),
            Some(Evidence::GatewayError)
        );
        assert_eq!(
            from_sidecar(Reason::NoRoute).evidence(),
            Some(Evidence::Success)
        );
        assert_eq!(from_sidecar(Reason::Overload).evidence(), None);
        assert!(!RetryPlan::new(&Retry::default()).allows(from_sidecar(Reason::Overload), true));
        assert_eq!(answer(500).evidence(), Some(Evidence::ServerError));
        assert_eq!(answer(404).evidence(), Some(Evidence::Success));
    }

    #[test]
    fn budget_grows_with_the_traffic() {
        let (budget, breaker) = (RetryBudget::default(), CircuitBreaker::default());
        assert_eq!(retries_allowed(budget, breaker, 0), 3);
        assert_eq!(retries_allowed(budget, breaker, 100), 20);
        assert_eq!(
            retries_allowed(
                budget,
                CircuitBreaker {
                    max_retries: 1,
                    ..breaker
                },
                100
            ),
            1
        );
    }
}
