//! HTTP/2 (RFC 9113) in both roles: bytes in, a batch of events out; heads and bodies in, bytes out.
//!
//! A driver shows what it read to [`Server::receive`] or [`Client::receive`], dispatches the [`Batch`], serves whoever may
//! write again ([`Server::writable`]), and flushes the output once. Bodies stay in the driver's buffer: events tell where.
//! Every stream is a slot of its connection's slab, from its announcement until the driver lets go of it.

mod batch;
mod bounds;
mod client;
mod connection;
mod frame;
pub mod fuzz;
mod heads;
mod read;
mod send;
mod server;
mod settings;
mod streams;

pub use self::batch::{BadStream, Batch, Event, Why};
pub use self::bounds::Bound;
pub use self::client::{Client, Unopened};
pub use self::connection::{Broken, Config, Credit, Phase};
pub use self::frame::Code;
pub use self::send::WriteError;
pub use self::server::Server;
pub use self::streams::Stream;

#[cfg(test)]
mod tests;
