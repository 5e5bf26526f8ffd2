//! One stream: requests and snapshots into the session, responses out, its progress into the fleet.

use std::sync::Arc;
use std::time::Duration;

use phalanx_proto::envoy::config::core::v3::Node as WireNode;
use phalanx_proto::envoy::service::discovery::v3 as wire;
use phalanx_xds::Kind;
use phalanx_xds::server::{Request, Response, Session};
use tokio::sync::mpsc::Sender;
use tokio::sync::watch::Receiver;
use tokio::time::{Instant, sleep_until};
use tonic::{Status, Streaming};

use super::fleet::{Fleet, Seat};
use super::isolate::Isolation;
use crate::snapshot::{Node, Published, Resources};

/// A request of one of the two protocols.
pub trait Message: Into<Request> + Send + 'static {
    type Response: Send + 'static;
    const PROTOCOL: &'static str;

    fn node(&self) -> Option<&WireNode>;
    fn answer(&self) -> Answer<'_>;
    fn response(response: Response) -> Option<Self::Response>;
}

/// What a request answers, if it answers something.
pub struct Answer<'a> {
    type_url: &'a str,
    nonce: &'a str,
    /// The peer's words when it refuses.
    error: Option<&'a str>,
}

impl Message for wire::DeltaDiscoveryRequest {
    type Response = wire::DeltaDiscoveryResponse;
    const PROTOCOL: &'static str = "delta";

    fn node(&self) -> Option<&WireNode> {
        self.node.as_ref()
    }

    fn answer(&self) -> Answer<'_> {
        Answer {
            type_url: &self.type_url,
            nonce: &self.response_nonce,
            error: self.error_detail.as_ref().map(|e| e.message.as_str()),
        }
    }

    fn response(response: Response) -> Option<Self::Response> {
        response.into_delta()
    }
}

impl Message for wire::DiscoveryRequest {
    type Response = wire::DiscoveryResponse;
    const PROTOCOL: &'static str = "sotw";

    fn node(&self) -> Option<&WireNode> {
        self.node.as_ref()
    }

    fn answer(&self) -> Answer<'_> {
        Answer {
            type_url: &self.type_url,
            nonce: &self.response_nonce,
            error: self.error_detail.as_ref().map(|e| e.message.as_str()),
        }
    }

    fn response(response: Response) -> Option<Self::Response> {
        response.into_sotw()
    }
}

pub struct Driver {
    session: Session,
    published: Receiver<Arc<Published>>,
    fleet: Fleet,
    peer: String,
    started: Instant,
}

/// What is known once the peer has said who it is.
struct Peer {
    node: Node,
    listeners: Resources,
    isolation: Isolation,
    seat: Seat,
}

impl Driver {
    pub fn new(
        session: Session,
        published: Receiver<Arc<Published>>,
        fleet: Fleet,
        peer: String,
    ) -> Self {
        Self {
            session,
            published,
            fleet,
            peer,
            started: Instant::now(),
        }
    }

    /// Runs until the peer ends the stream.
    ///
    /// # Errors
    /// The status to end it with.
    pub async fn run<M: Message>(
        mut self,
        mut inbound: Streaming<M>,
        answers: &Sender<Result<M::Response, Status>>,
    ) -> Result<(), Status> {
        let first = tokio::time::timeout(FIRST_MAX, inbound.message()).await;
        let Some(first) = first.map_err(|_| Status::deadline_exceeded("no request came"))?? else {
            return Ok(());
        };
        let node =
            Node::parse(first.node()).map_err(|e| Status::invalid_argument(e.to_string()))?;
        tracing::info!(node = %node.id, agent = %node.agent, peer = %self.peer, protocol = M::PROTOCOL, "proxy connected");
        let seat = self.fleet.connect(&node, &self.peer, M::PROTOCOL);
        let mut peer = Peer {
            listeners: Published::listeners(&node),
            isolation: Isolation::default(),
            node,
            seat,
        };
        self.take(&mut peer, first)?;
        self.target(&mut peer);
        let ended = self.pump(&mut peer, inbound, answers).await;
        tracing::info!(node = %peer.node.id, peer = %self.peer, "proxy disconnected");
        ended
    }

    async fn pump<M: Message>(
        &mut self,
        peer: &mut Peer,
        mut inbound: Streaming<M>,
        answers: &Sender<Result<M::Response, Status>>,
    ) -> Result<(), Status> {
        let mut waiting: Option<(M::Response, Instant)> = None;
        loop {
            if waiting.is_none() {
                waiting = self
                    .next(peer)
                    .and_then(M::response)
                    .map(|response| (response, Instant::now() + STALL_MAX));
                self.report(peer);
            }
            let stalled = waiting.as_ref().map(|(_, until)| *until);
            let patience = self
                .session
                .deadline_ms()
                .map(|ms| self.started + Duration::from_millis(ms));
            tokio::select! {
                biased;
                place = answers.reserve(), if waiting.is_some() => {
                    let Ok(place) = place else { return Ok(()) };
                    if let Some((response, _)) = waiting.take() {
                        self.fleet.sent();
                        place.send(Ok(response));
                    }
                }
                message = inbound.message() => match message? {
                    Some(message) => self.take(peer, message)?,
                    None => return Ok(()),
                },
                changed = self.published.changed() => {
                    changed.map_err(|_| Status::unavailable("the control plane is stopping"))?;
                    self.target(peer);
                }
                () = wait_until(stalled) => return Err(Status::resource_exhausted("the peer does not read its responses")),
                () = wait_until(patience), if waiting.is_none() => {}
            }
        }
    }

    fn next(&mut self, peer: &mut Peer) -> Option<Response> {
        let response = self.session.poll(self.now_ms())?;
        if response.kind() == Some(Kind::Routes) {
            let (Response::Delta(wire::DeltaDiscoveryResponse { nonce, .. })
            | Response::Sotw(wire::DiscoveryResponse { nonce, .. })) = &response;
            peer.isolation.sent(nonce);
        }
        Some(response)
    }

    fn take<M: Message>(&mut self, peer: &mut Peer, message: M) -> Result<(), Status> {
        let answer = message.answer();
        if answer.error.is_some() {
            self.fleet.nacked();
        }
        let published = self.published.borrow().clone();
        // A route table that was refused is replaced by one without the documents that it can be blamed on.
        let is_routes = answer.type_url == Kind::Routes.type_url();
        let is_other = is_routes
            && peer
                .isolation
                .answered(answer.nonce, answer.error, &published);
        self.session
            .on_request(message)
            .map_err(|e| Status::invalid_argument(e.to_string()))?;
        if is_other {
            self.target(peer);
        }
        Ok(())
    }

    fn target(&mut self, peer: &mut Peer) {
        let published = self.published.borrow_and_update().clone();
        let snapshot = peer
            .isolation
            .snapshot(&published, &peer.node, &peer.listeners);
        self.session.set_snapshot(Arc::new(snapshot));
    }

    fn report(&self, peer: &Peer) {
        let progress = self.session.progress();
        let refused = peer.isolation.refused(&progress, &self.published.borrow());
        peer.seat.report(progress.target, progress.acked, refused);
    }

    fn now_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }
}

async fn wait_until(until: Option<Instant>) {
    match until {
        Some(until) => sleep_until(until).await,
        None => std::future::pending().await,
    }
}

/// Between the opening of a stream and its first request.
const FIRST_MAX: Duration = Duration::from_secs(10);
/// How long a response may wait for a peer that does not read.
const STALL_MAX: Duration = Duration::from_secs(60);
