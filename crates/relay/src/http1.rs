//! HTTP/1.0 and 1.1 in both roles: bytes in, events out; heads and bodies in, bytes out.
//!
//! A driver reads into a buffer of its own and shows it to [`Server::read`] or [`Exchange::read`], which take from its front
//! and borrow bodies from it. What they leave is kept by the driver ([`Unread`]) until it can go on. Everything that two
//! readers could read in two ways is refused, and ends the connection.

mod body;
mod client;
mod encode;
pub mod fuzz;
mod lines;
mod server;
mod steps;
mod trailers;
mod unread;

pub use self::body::BadBody;
pub use self::client::{Answer, BrokenAnswer, Exchange, Ready, Spent, Switched};
pub use self::encode::{ChunkFrame, WriteError};
pub use self::server::{Broken, Event, Phase, Server, Turn};
pub use self::trailers::is_forbidden_trailer;
pub use self::unread::Unread;

#[cfg(test)]
mod tests;
