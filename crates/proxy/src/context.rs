//! What the stages know of one request beside its head: where it came in, and what earlier stages decided.

use std::net::IpAddr;
use std::sync::Arc;

use phalanx_model::name::Direction;
use phalanx_pki::verifier::Peer;
use phalanx_relay::Field;

use crate::plan::Entry;
use crate::plan::table::{BackendPlan, ForwardPlan, RulePlan};

/// Who is at the other end of a connection from downstream.
pub enum Caller {
    /// In plain text: anybody.
    Plain,
    /// Over TLS, without a certificate.
    Nobody,
    Known(Box<KnownCaller>),
}

pub struct KnownCaller {
    pub peer: Arc<Peer>,
    /// What the application is told of it.
    pub header: Field,
}

/// Made per request; borrows from the plan that the request started with.
pub struct StreamContext<'p> {
    pub direction: Direction,
    pub caller: &'p Caller,
    /// This sidecar has an identity: what is asked of callers comes from the mesh, and is waited for.
    pub guarded: bool,
    /// What is asked of callers of the chosen port; none when that is not known.
    pub entry: Option<&'p Entry>,
    pub rng: fastrand::Rng,
    /// Chosen by `route`.
    pub rule: Option<&'p RulePlan>,
    pub forward: Option<&'p ForwardPlan>,
    pub backend: Option<&'p BackendPlan>,
    /// In [`crate::plan::Plan::clusters`].
    pub cluster: Option<usize>,
    /// Length of the path prefix that the rule matched.
    pub prefix_len: Option<usize>,
    /// The application port that the caller's sidecar asked for.
    pub asked_port: Option<u16>,
    /// It came to the caller's sidecar over HTTP/1, and is to leave ours so.
    pub began_as_http1: bool,
    /// The other end of the connection.
    pub peer: Option<IpAddr>,
    /// Of the request's key, where the chosen cluster goes by keys.
    pub hash: Option<u64>,
    /// A cookie that the caller is to keep: the key that its request did not have.
    pub cookie: Option<Field>,
}

impl<'p> StreamContext<'p> {
    pub fn new(
        direction: Direction,
        caller: &'p Caller,
        guarded: bool,
        rng: fastrand::Rng,
    ) -> Self {
        Self {
            direction,
            caller,
            guarded,
            entry: None,
            rng,
            rule: None,
            forward: None,
            backend: None,
            cluster: None,
            prefix_len: None,
            asked_port: None,
            began_as_http1: false,
            peer: None,
            hash: None,
            cookie: None,
        }
    }
}
