//! The wire formats as Rust types: the part of Envoy's v3 API that the mesh speaks, and Phalanx' own
//! services. Everything here is generated (`cargo run -p phalanx-codegen`) and committed; modules follow
//! the protobuf packages, maps are `BTreeMap`, so that equal messages have equal bytes.

#[rustfmt::skip]
#[allow(
    clippy::all,
    deprecated,
    missing_docs,
    rust_2018_idioms,
    rustdoc::bare_urls,
    rustdoc::broken_intra_doc_links,
    rustdoc::invalid_html_tags
)]
mod generated;

pub use generated::*;
