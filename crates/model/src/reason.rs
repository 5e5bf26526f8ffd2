//! Why the proxy answered a request itself: the values of `x-phalanx-reason`.

use std::fmt;

/// The header that carries a [`Reason`].
pub const REASON_HEADER: &str = "x-phalanx-reason";

macro_rules! reasons {
    ($($variant:ident $text:literal $http:literal $grpc:literal,)*) => {
        /// One of a closed list, so that it can be a metric label.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum Reason { $($variant,)* }

        impl Reason {
            pub const ALL: &'static [Reason] = &[$(Reason::$variant,)*];

            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }

            /// The HTTP status of an answer with this reason.
            pub fn http_status(self) -> u16 {
                match self { $(Self::$variant => $http,)* }
            }

            /// `grpc-status` of an answer to a gRPC request (which then has HTTP status 200).
            pub fn grpc_status(self) -> u8 {
                match self { $(Self::$variant => $grpc,)* }
            }

            pub fn parse(text: &str) -> Option<Self> {
                match text { $($text => Some(Self::$variant),)* _ => None }
            }
        }
    };
}

reasons! {
    NoRoute "no_route" 404 12,
    InvalidBackend "invalid_backend" 500 14,
    NoHealthyUpstream "no_healthy_upstream" 503 14,
    ConnectFailed "connect_failed" 503 14,
    UpstreamReset "upstream_reset" 503 14,
    Timeout "timeout" 504 4,
    Overflow "overflow" 503 8,
    RateLimited "rate_limited" 429 8,
    Overload "overload" 503 8,
    Denied "denied" 403 7,
    Unauthenticated "unauthenticated" 401 16,
    BadRequest "bad_request" 400 13,
    BadPath "bad_path" 400 13,
    TooLarge "too_large" 431 8,
    Fault "fault" 503 14,
    Draining "draining" 503 14,
    ColourLost "colour_lost" 503 9,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
