//! gRPC to JSON and back: a descriptor set becomes a table of HTTP bindings (`google.api.http`); a request that one of them
//! matches becomes a gRPC call, and its answer JSON again.
//!
//! Bytes in, bytes out: no socket, no clock, no async. Nothing is decoded into trees: JSON is read straight into protobuf's
//! wire format and the other way round, so what is held is a small multiple of what came.
//!
//! Module order (a module imports only later ones): table, answer, request, json, schema, template, query, status, text, wire, options.
#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic
    )
)]

pub mod answer;
pub mod json;
pub mod options;
pub mod query;
pub mod request;
pub mod schema;
pub mod status;
pub mod table;
pub mod template;
pub mod text;
pub mod wire;

pub use answer::{Answer, Style, Whole};
pub use options::{Options, Print, Validation};
pub use request::{Call, Came, Refused};
pub use schema::Schema;
pub use status::Status;
pub use table::{Binding, Table};
