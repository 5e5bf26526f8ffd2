//! The request path on loopback: real sockets on both sides, nothing between them but the workers.

mod support;

mod http1;
