//! The request path on loopback: real sockets on both sides, nothing between them but the workers.

mod smuggling;
mod support;

mod bounds;
mod deadlines;
mod drain;
mod hedge;
mod hostile;
mod http1;
mod http2;
mod refuse;
mod retry;
mod route;
mod slow;
mod smuggle;
mod tunnel;
mod withdrawn;
