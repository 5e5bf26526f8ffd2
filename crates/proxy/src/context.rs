//! What the stages know of one request beside its head: where it came in, and what earlier stages decided.

use std::cell::Cell;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use phalanx_model::name::Direction;
use phalanx_pki::verifier::Peer;
use phalanx_relay::{Field, HeaderList};

use crate::account::ColourId;
use crate::directory;
use crate::plan::Entry;
use crate::plan::session::Held;
use crate::plan::table::{BackendPlan, ForwardPlan, RulePlan};
use crate::quota::Admitted;
use crate::transcode::Work;
use crate::underway::{Here, How};

/// Who is at the other end of a connection from downstream.
pub enum Caller {
    /// In plain text: anybody.
    Plain,
    /// Over TLS, without a certificate.
    Nobody,
    Known(Box<KnownCaller>),
    /// Somebody outside the mesh, whoever that is.
    Outside(Outside),
}

/// Where somebody came in.
pub struct Outside {
    /// The name of the route table.
    pub table: Arc<str>,
    /// Over TLS.
    pub is_secured: bool,
}

/// Where a redirected call was going.
pub struct Original {
    pub address: SocketAddr,
    /// The same as the mesh is asked for it.
    pub authority: Box<str>,
    /// It may go there when that is nobody of the mesh.
    pub is_open: bool,
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
    /// Nobody sent it, somebody asks what would happen: nothing may be taken from it (tokens, leases, counts).
    pub dry: bool,
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
    /// As its `x-env` says; none: it has no colour.
    pub colour: Option<ColourId>,
    /// The application port that the caller's sidecar asked for.
    pub asked_port: Option<u16>,
    /// The one that was called, where the kernel told us.
    pub meant_port: Option<u16>,
    /// Where it was going before it was redirected.
    pub original: Option<&'p Original>,
    /// It goes there, past the mesh; there is no cluster then.
    pub passes: bool,
    /// It came to the caller's sidecar over HTTP/1, and is to leave ours so.
    pub began_as_http1: bool,
    /// The other end of the connection.
    pub peer: Option<IpAddr>,
    /// Of the request's key, where the chosen cluster goes by keys.
    pub hash: Option<u64>,
    /// A cookie that the caller is to keep: the key that its request did not have.
    pub cookie: Option<Field>,
    /// The session that the request belongs to.
    pub session: Option<Held>,
    /// Where that is: the member of the chosen cluster that the first attempt goes to, unless it is ejected.
    pub wanted: Option<usize>,
    /// The directory put it there: no other member will do.
    pub seat: Option<Arc<directory::Entry>>,
    /// The endpoint of the attempt under way, for what the answer says of its session.
    pub endpoint: Cell<Option<SocketAddr>>,
    /// What the answer says of the request's origin.
    pub origin: Option<Field>,
    /// When the caller gives up, by [`crate::quota::clock`]; what it said in `grpc-timeout`.
    pub deadline_ns: Option<u64>,
    /// What a fault makes it wait before the first attempt.
    pub delay_ms: u64,
    /// Its place among the requests under way; given back when the answer's head is there.
    pub admitted: Option<Admitted>,
    /// It becomes a call of gRPC, or can't.
    pub transcoding: Option<Box<Work>>,
    /// Clusters that get a copy, in [`crate::plan::Plan::clusters`].
    pub mirrors: Vec<usize>,
    /// The application's requests under way; none where its calls are not correlated.
    pub underway: Option<Here<'p>>,
    /// How surely the colour of its call is known.
    pub correlated: Option<How>,
    /// The headers of those copies, where the edits of the chosen backend make them other than the request's.
    pub mirrored: Option<Box<HeaderList>>,
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
            dry: false,
            entry: None,
            rng,
            rule: None,
            forward: None,
            backend: None,
            cluster: None,
            prefix_len: None,
            colour: None,
            asked_port: None,
            meant_port: None,
            original: None,
            passes: false,
            began_as_http1: false,
            peer: None,
            hash: None,
            cookie: None,
            session: None,
            wanted: None,
            seat: None,
            endpoint: Cell::new(None),
            origin: None,
            deadline_ns: None,
            delay_ms: 0,
            admitted: None,
            transcoding: None,
            mirrors: Vec::new(),
            underway: None,
            correlated: None,
            mirrored: None,
        }
    }
}
