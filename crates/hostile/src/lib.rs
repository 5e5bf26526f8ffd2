//! For tests only: one function for each parser of foreign bytes, which feeds it and asserts what must hold of whatever comes
//! out. `tests/parsers.rs` runs them over `fuzz/corpus` and what [`mutate`] makes of it, `fuzz/` gives them to cargo-fuzz.
//!
//! Module order (a module imports only later ones): http, identity, config, wire, json, game, mutate.

pub mod config;
pub mod game;
pub mod http;
pub mod identity;
pub mod json;
pub mod mutate;
pub mod wire;

/// A parser under test.
#[derive(Clone, Copy)]
pub struct Target {
    /// Of its folder in `fuzz/corpus`, and of its program in `fuzz/fuzz_targets`.
    pub name: &'static str,
    /// Panics where an invariant is broken, or the parser itself panics.
    pub run: fn(&[u8]),
    /// Inputs that a short test makes of its corpus: some tenths of a second in a debug build.
    pub share: u32,
}

macro_rules! targets {
    ($($room:ident::$name:ident $share:literal,)*) => {
        pub const TARGETS: &[Target] = &[$(Target {
            name: stringify!($name),
            run: $room::$name,
            share: $share,
        },)*];
    };
}

targets! {
    http::http1_requests 1500,
    http::http1_answers 1500,
    http::chunked 1500,
    http::http2_requests 600,
    http::http2_answers 600,
    http::hpack 1500,
    http::checked 1500,
    http::paths 3000,
    http::authorities 3000,
    config::manifests 300,
    config::xds 500,
    config::durations 2000,
    identity::certificates 1500,
    identity::requests_to_sign 300,
    identity::ocsp 1500,
    identity::jwt 1500,
    identity::join_tokens 3000,
    identity::names_of_peers 3000,
    identity::sessions 3000,
    wire::client_hello 1500,
    wire::beginnings 3000,
    wire::dns 1000,
    wire::redis 1500,
    wire::imports 1500,
    wire::wills 3000,
    json::descriptors 200,
    json::templates 3000,
    json::queries 1500,
    json::json_bodies 800,
    json::grpc_answers 1500,
    game::reconnect_tokens 3000,
    game::ledgers 1500,
}
