//! Header compression of HTTP/2 (RFC 7541), both ways: a block in, a flat list of fields out, and the reverse.
//!
//! A decoder counts a list while it grows and goes on without keeping anything once it is over its limit, because the table
//! must stay in step with the peer's. What is secret, or seldom the same twice, never enters the encoder's table.

mod decode;
mod encode;
mod fields;
mod huffman;
mod integer;
mod statics;
mod table;

pub use self::decode::{BadBlock, Decoder, Most};
pub use self::encode::Encoder;
pub use self::fields::{FieldName, Fields, Pseudo};

/// Bytes of the dynamic table, each way: what a peer may use of ours, and what we use of theirs at most.
pub const TABLE_BYTES: usize = 4096;

#[cfg(test)]
mod tests;
