//! Names that proxies meet all the time, known by a small number: their comparison is one of integers.

use super::Name;

macro_rules! well_known {
    ($($constant:ident $text:literal,)*) => {
        /// Sorted by nothing; a name's place is its index.
        pub static WELL_KNOWN: &[&str] = &[$($text,)*];

        #[allow(non_camel_case_types, clippy::upper_case_acronyms)]
        #[repr(u8)]
        enum Index { $($constant,)* }

        $(
            pub const $constant: Name<'static> =
                Name { bytes: $text.as_bytes(), hash: hash($text.as_bytes()), index: Index::$constant as u8 };
        )*
    };
}

well_known! {
    ACCEPT "accept",
    ACCEPT_ENCODING "accept-encoding",
    ACCEPT_LANGUAGE "accept-language",
    ACCEPT_RANGES "accept-ranges",
    ACCESS_CONTROL_ALLOW_CREDENTIALS "access-control-allow-credentials",
    ACCESS_CONTROL_ALLOW_HEADERS "access-control-allow-headers",
    ACCESS_CONTROL_ALLOW_METHODS "access-control-allow-methods",
    ACCESS_CONTROL_ALLOW_ORIGIN "access-control-allow-origin",
    AGE "age",
    ALLOW "allow",
    AUTHORIZATION "authorization",
    BAGGAGE "baggage",
    CACHE_CONTROL "cache-control",
    CONNECTION "connection",
    CONTENT_DISPOSITION "content-disposition",
    CONTENT_ENCODING "content-encoding",
    CONTENT_LANGUAGE "content-language",
    CONTENT_LENGTH "content-length",
    CONTENT_TYPE "content-type",
    COOKIE "cookie",
    DATE "date",
    ETAG "etag",
    EXPECT "expect",
    EXPIRES "expires",
    FORWARDED "forwarded",
    GRPC_ACCEPT_ENCODING "grpc-accept-encoding",
    GRPC_ENCODING "grpc-encoding",
    GRPC_MESSAGE "grpc-message",
    GRPC_STATUS "grpc-status",
    GRPC_TIMEOUT "grpc-timeout",
    HOST "host",
    HTTP2_SETTINGS "http2-settings",
    IF_MATCH "if-match",
    IF_MODIFIED_SINCE "if-modified-since",
    IF_NONE_MATCH "if-none-match",
    KEEP_ALIVE "keep-alive",
    LAST_MODIFIED "last-modified",
    LINK "link",
    LOCATION "location",
    ORIGIN "origin",
    PROXY_AUTHENTICATE "proxy-authenticate",
    PROXY_AUTHORIZATION "proxy-authorization",
    PROXY_CONNECTION "proxy-connection",
    RANGE "range",
    REFERER "referer",
    RETRY_AFTER "retry-after",
    SEC_WEBSOCKET_ACCEPT "sec-websocket-accept",
    SEC_WEBSOCKET_EXTENSIONS "sec-websocket-extensions",
    SEC_WEBSOCKET_KEY "sec-websocket-key",
    SEC_WEBSOCKET_PROTOCOL "sec-websocket-protocol",
    SEC_WEBSOCKET_VERSION "sec-websocket-version",
    SERVER "server",
    SET_COOKIE "set-cookie",
    TE "te",
    TRACEPARENT "traceparent",
    TRACESTATE "tracestate",
    TRAILER "trailer",
    TRANSFER_ENCODING "transfer-encoding",
    UPGRADE "upgrade",
    USER_AGENT "user-agent",
    VARY "vary",
    VIA "via",
    WWW_AUTHENTICATE "www-authenticate",
    X_CANARY_ID "x-canary-id",
    X_ENV "x-env",
    X_FORWARDED_FOR "x-forwarded-for",
    X_FORWARDED_HOST "x-forwarded-host",
    X_FORWARDED_PROTO "x-forwarded-proto",
    X_GAME_SESSION "x-game-session",
    X_PHALANX_HTTP "x-phalanx-http",
    X_PHALANX_PORT "x-phalanx-port",
    X_PHALANX_REASON "x-phalanx-reason",
    X_REQUEST_ID "x-request-id",
    ACCEPT_CHARSET "accept-charset",
    CONTENT_LOCATION "content-location",
    CONTENT_RANGE "content-range",
    FROM "from",
    IF_RANGE "if-range",
    IF_UNMODIFIED_SINCE "if-unmodified-since",
    MAX_FORWARDS "max-forwards",
    REFRESH "refresh",
    STRICT_TRANSPORT_SECURITY "strict-transport-security",
    X_PHALANX_PRIORITY "x-phalanx-priority",
    X_SESSION_EPOCH "x-session-epoch",
}

/// Four bytes a step; also the length. A list is bounded, so collisions cost a comparison and no more.
#[inline]
pub(super) const fn hash(bytes: &[u8]) -> u32 {
    let mut state = (bytes.len() as u32).wrapping_mul(0x9E37_79B1);
    let mut rest = bytes;
    while let Some((word, after)) = rest.split_first_chunk::<4>() {
        state = (state.rotate_left(5) ^ u32::from_le_bytes(*word)).wrapping_mul(0x9E37_79B1);
        rest = after;
    }
    let mut last = 0;
    while let Some((byte, after)) = rest.split_first() {
        last = last << 8 | *byte as u32;
        rest = after;
    }
    state = (state.rotate_left(5) ^ last).wrapping_mul(0x9E37_79B1);
    state ^ state >> 15
}

/// The place of a name in [`WELL_KNOWN`].
#[inline]
pub(super) fn index(hash: u32, bytes: &[u8]) -> Option<u8> {
    let mut slot = hash as usize % SLOTS;
    loop {
        let entry = *TABLE.get(slot)?;
        let candidate = WELL_KNOWN.get(usize::from(entry))?;
        if candidate.as_bytes() == bytes {
            return Some(entry);
        }
        slot = (slot + 1) % SLOTS;
    }
}

const SLOTS: usize = 512;
const EMPTY: u8 = u8::MAX;

/// Open addressing; at most a seventh is taken, so that a miss mostly ends at the first look.
#[allow(clippy::indexing_slicing)] // at compile time
static TABLE: [u8; SLOTS] = {
    let mut table = [EMPTY; SLOTS];
    let names = WELL_KNOWN;
    let mut i = 0;
    while i < names.len() {
        let mut slot = hash(names[i].as_bytes()) as usize % SLOTS;
        while table[slot] != EMPTY {
            slot = (slot + 1) % SLOTS;
        }
        table[slot] = i as u8;
        i += 1;
    }
    table
};
