//! The request path on loopback: real sockets on both sides, nothing between them but the workers.

mod support;

mod deadlines;
mod drain;
mod hostile;
mod http1;
mod http2;
mod refuse;
mod retry;
mod route;
mod tunnel;
