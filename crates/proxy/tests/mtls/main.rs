//! Mutual TLS between sidecars, on loopback: real sockets, real certificates, peers that are not ours.

#[allow(dead_code)]
#[path = "../path/smuggling.rs"]
mod smuggling;
#[allow(dead_code)]
#[path = "../path/support.rs"]
mod support;

mod pki;

mod access;
mod both_ends;
mod hostile;
mod lasting;
mod modes;
mod raw;
mod refusals;
mod revocation;
mod rotation;
