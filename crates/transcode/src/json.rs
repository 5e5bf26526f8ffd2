//! proto3's JSON mapping, between JSON text and wire format.

mod lexer;
mod read;
mod write;

pub use self::lexer::Bad;
pub use self::read::{put_text, read_field, read_message, read_stream};
pub use self::write::{TooLarge, Unwritable, write_message, write_status};

/// Objects, arrays and messages within one another; protobuf's own limit.
pub const DEPTH_MAX: usize = 100;
