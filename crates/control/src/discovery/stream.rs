//! One stream: requests and snapshots into the session, responses out, its progress into the fleet.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use phalanx_proto::envoy::service::discovery::v3 as wire;
use phalanx_xds::server::{Response, Session};
use phalanx_xds::{Kind, Snapshot};
use tokio::sync::watch::Receiver;
use tokio::time::{Instant, sleep_until};
use tonic::{Status, Streaming};

use super::clients::{Clients, Entry, Questions};
use super::fleet::{Fleet, Lane, Refused, Seat};
use super::handoff::Giver;
use super::isolate::Isolation;
use super::lost::Lost;
use super::memory::{Memory, Recalled, Remembered, Who};
use super::message::Message;
use super::secrets::Secrets;
use super::separate::{Rewrite, Rewrites};
use super::wishes::Wishes;
use crate::access::Who as Caller;
use crate::ca::Ca;
use crate::sessions::{Feed, Sessions};
use crate::snapshot::{Asks, AtGateway, Demand, Node, Own, Proxyless, Published, Resources, Unmet};

/// What all streams have in common; cheap to clone.
#[derive(Clone)]
pub struct Rooms {
    pub published: Receiver<Arc<Published>>,
    pub fleet: Fleet,
    pub memory: Memory,
    pub clients: Clients,
    pub rewrites: Rewrites,
    /// Who makes secrets; none: nobody gets any.
    pub ca: Option<Ca>,
    /// None: nobody follows any.
    pub sessions: Option<Sessions>,
}

pub struct Driver {
    session: Session,
    rooms: Rooms,
    peer: String,
    /// By the connection, whatever the peer says of itself.
    caller: Caller,
    started: Instant,
}

/// What is known once the peer has said who it is.
struct Peer {
    node: Node,
    listeners: Resources,
    own: Own,
    /// From when a stock proxy asks for some, over a connection that proves who it is.
    secrets: Option<Secrets>,
    /// Where it gets what it asks for and no more.
    demand: Option<Box<Demand>>,
    /// Where it runs a Gateway.
    gateway: Option<Box<AtGateway>>,
    /// Where it is gRPC itself.
    proxyless: Option<Box<Proxyless>>,
    isolation: Isolation,
    /// What it has of a store that was lost.
    lost: Lost,
    /// Where resources must say that the others come on streams of their own.
    rewrite: Option<Box<Rewrite>>,
    /// What of its refusals is remembered.
    remembered: Remembered,
    /// Under this.
    who: Who,
    seat: Seat,
    /// From when it asks for sessions.
    sessions: Option<Box<Feed>>,
}

impl Driver {
    pub fn new(session: Session, rooms: Rooms, peer: String, caller: Caller) -> Self {
        Self {
            session,
            rooms,
            peer,
            caller,
            started: Instant::now(),
        }
    }

    /// Runs until the peer ends the stream.
    ///
    /// # Errors
    /// The status to end it with.
    pub async fn run<M: Message>(
        mut self: Box<Self>,
        mut inbound: Box<Streaming<M>>,
        answers: &Giver<Result<Box<M::Response>, Status>>,
    ) -> Result<(), Status> {
        let first = tokio::time::timeout(FIRST_MAX, inbound.message()).await;
        let Some(first) = first.map_err(|_| Status::deadline_exceeded("no request came"))?? else {
            return Ok(());
        };
        let (mut peer, entry, questions) = self.meet(&first)?;
        self.take(&mut peer, first)?;
        self.target(&mut peer);
        let ended = self.pump(&mut peer, &mut inbound, questions, answers).await;
        drop(entry);
        tracing::info!(node = %peer.node.id, peer = %self.peer, "proxy disconnected");
        ended
    }

    /// A seat for whoever that is, unless it may not be who it says it is.
    fn meet<M: Message>(&mut self, first: &M) -> Result<(Box<Peer>, Entry, Questions), Status> {
        let refuse = |error: &dyn std::fmt::Display| Status::invalid_argument(error.to_string());
        let mut node = Node::parse(first.node()).map_err(|e| refuse(&e))?;
        node.tls.has_identity = self.caller.is_workload();
        self.caller.owns(&node.service)?;
        self.caller.owns_node(&node.id)?;
        let wishes = Wishes::parse(first.node()).map_err(|e| refuse(&e))?;
        tracing::info!(node = %node.id, agent = %node.agent, peer = %self.peer, protocol = M::PROTOCOL, "proxy connected");
        let lane = Lane::new(self.session.only(), first.names());
        let seat = self
            .rooms
            .fleet
            .connect(&node, &self.peer, M::PROTOCOL, lane);
        if let Caller::Workload(certificate) = &self.caller {
            seat.shows(certificate.clone());
        }
        let (entry, questions) = self.rooms.clients.enter(&node);
        let peer = self.introduce::<M>(first, node, &wishes, seat);
        if peer.demand.is_some() {
            peer.seat.asks(Asks::default());
        }
        Ok((peer, entry, questions))
    }

    /// What its first request and earlier streams tell about a peer.
    fn introduce<M: Message>(
        &mut self,
        first: &M,
        node: Node,
        wishes: &Wishes,
        seat: Seat,
    ) -> Box<Peer> {
        let is_delta = M::PROTOCOL == "delta";
        let demand = Demand::asked(first.node(), &node);
        let demand = demand.filter(|_| is_delta && node.edge.is_none());
        if demand.is_some() {
            self.session.trust_order();
        }
        self.session.set_ttl(wishes.resource_ttl.as_millis() as u64);
        let source = wishes.source(self.session.only(), is_delta);
        let address = self.peer.parse().ok().map(|peer: SocketAddr| peer.ip());
        let who = Who::new(&node, address);
        // Who holds nothing has started anew, and may take by now what it refused: a port that was taken is free.
        let recalled = match first.comes_back() {
            true => self.rooms.memory.recall(&who),
            false if self.session.only().is_none() => self.rooms.memory.forget(&who),
            false => Recalled::default(),
        };
        self.session.remember(recalled.nacks);
        Box::new(Peer {
            listeners: Published::listeners(&node),
            own: Own::default(),
            secrets: None,
            demand: demand.map(Box::new),
            gateway: node.edge.is_some().then(Box::default),
            proxyless: Proxyless::of(&node).map(Box::new),
            isolation: recalled.isolation,
            lost: Lost::default(),
            rewrite: source.map(|source| Box::new(self.rooms.rewrites.to(source))),
            remembered: Remembered::default(),
            who,
            node,
            seat,
            sessions: None,
        })
    }

    async fn pump<M: Message>(
        &mut self,
        peer: &mut Peer,
        inbound: &mut Streaming<M>,
        questions: Questions,
        answers: &Giver<Result<Box<M::Response>, Status>>,
    ) -> Result<(), Status> {
        let mut waiting: Option<(Box<M::Response>, Instant)> = None;
        loop {
            if waiting.is_none() {
                waiting = self
                    .next(peer)
                    .and_then(M::response)
                    .map(|response| (Box::new(response), Instant::now() + STALL_MAX));
                self.report(peer);
                if let Some(error) = self.session.failed() {
                    return Err(Status::resource_exhausted(error.to_string()));
                }
            }
            let stalled = waiting.as_ref().map(|(_, until)| *until);
            let patience = self
                .session
                .deadline_ms()
                .map(|ms| self.started + Duration::from_millis(ms));
            let patience = patience.filter(|_| waiting.is_none());
            let look_at = peer.lost.look_at();
            let next = [stalled, patience, look_at].into_iter().flatten().min();
            tokio::select! {
                biased;
                free = answers.free(), if waiting.is_some() => {
                    if free.is_err() {
                        return Ok(());
                    }
                    if let Some((response, _)) = waiting.take() {
                        self.rooms.fleet.sent();
                        answers.give(Ok(response));
                    }
                }
                message = inbound.message() => match message? {
                    Some(message) => self.take(peer, message)?,
                    None => return Ok(()),
                },
                () = new_secrets(&mut peer.secrets) => self.target(peer),
                // Looked at above.
                () = new_sessions(&mut peer.sessions), if waiting.is_none() => {}
                question = questions.next() => question.answer(&self.session),
                changed = self.rooms.published.changed() => {
                    changed.map_err(|_| Status::unavailable("the control plane is stopping"))?;
                    self.target(peer);
                }
                () = wait_until(next) => {
                    let is_due = |until: Option<Instant>| until.is_some_and(|until| until <= Instant::now());
                    if is_due(stalled) {
                        return Err(Status::resource_exhausted("the peer does not read its responses"));
                    }
                    if is_due(look_at) {
                        self.target(peer);
                    }
                }
            }
        }
    }

    fn next(&mut self, peer: &mut Peer) -> Option<Response> {
        let Some(response) = self.session.poll(self.now_ms()) else {
            let told = peer.sessions.as_mut().and_then(|feed| feed.tell());
            return told.map(Response::Delta);
        };
        if response.kind() == Some(Kind::Routes) {
            let (Response::Delta(wire::DeltaDiscoveryResponse { nonce, .. })
            | Response::Sotw(wire::DiscoveryResponse { nonce, .. })) = &response;
            peer.isolation.sent(nonce);
        }
        Some(response)
    }

    fn take<M: Message>(&mut self, peer: &mut Peer, message: M) -> Result<(), Status> {
        if let (Some(asked), Some(sessions)) = (message.of_sessions(), &self.rooms.sessions) {
            let feed = peer
                .sessions
                .get_or_insert_with(|| Box::new(sessions.feed()));
            return feed.on_request(asked);
        }
        let answer = message.answer();
        if answer.error.is_some() {
            self.rooms.fleet.nacked();
        }
        let published = self.published(peer);
        // A route table that was refused is replaced by one without the documents that it can be blamed on.
        let is_routes = match self.session.only() {
            Some(only) => only == Kind::Routes,
            None => answer.type_url == Kind::Routes.type_url(),
        };
        let is_other = is_routes
            && peer
                .isolation
                .answered(answer.nonce, answer.error, &published);
        peer.lost.hear(&published, self.session.only(), &message);
        let changes_names = message.changes_names();
        let of_secrets =
            self.session.only() == Some(Kind::Secret) || answer.type_url == Kind::Secret.type_url();
        let refusal = answer.error.filter(|_| of_secrets).map(str::to_owned);
        let unserved = self.session.unserved().count();
        self.session
            .on_request(message)
            .map_err(|e| Status::invalid_argument(e.to_string()))?;
        if of_secrets {
            self.secrets(peer, refusal.as_deref())?;
        }
        if self.session.unserved().count() > unserved {
            let types: Vec<&str> = self.session.unserved().collect();
            tracing::warn!(node = %peer.node.id, ?types, "asks for types that are not served");
        }
        if peer.proxyless.is_some() || (changes_names && peer.demand.is_some()) {
            peer.seat.asks(Asks::of(&self.session));
        }
        if is_other {
            self.target(peer);
        } else if peer.proxyless.is_some() || (changes_names && peer.demand.is_some()) {
            self.resnapshot(peer, &published);
        }
        Ok(())
    }

    /// A sidecar makes its keys itself, and proxyless gRPC takes them from files.
    fn secrets(&mut self, peer: &mut Peer, refusal: Option<&str>) -> Result<(), Status> {
        if let Some(secrets) = &peer.secrets {
            secrets.answered(&self.session, refusal);
            return Ok(());
        }
        let is_asked = self.session.names(Kind::Secret).next().is_some();
        let is_stock = !peer.node.is_sidecar() && peer.proxyless.is_none();
        if let (Some(ca), Caller::Workload(who)) = (&self.rooms.ca, &self.caller)
            && is_asked
            && is_stock
        {
            let spawned = Secrets::spawn(ca.clone(), who.clone());
            let full = || {
                Status::resource_exhausted("too many streams of this certificate ask for secrets")
            };
            peer.secrets = Some(spawned.ok_or_else(full)?);
        }
        Ok(())
    }

    /// The compiled world that this node gets.
    fn published(&self, peer: &Peer) -> Arc<Published> {
        self.rooms.published.borrow().of(&peer.node.id)
    }

    fn target(&mut self, peer: &mut Peer) {
        self.rooms.published.mark_unchanged();
        let published = self.published(peer);
        if let Some(demand) = &mut peer.demand {
            demand.isolate(peer.isolation.mesh(&published));
        }
        if let Some(gateway) = &mut peer.gateway {
            gateway.isolate(peer.isolation.mesh(&published));
        }
        self.resnapshot(peer, &published);
    }

    fn resnapshot(&mut self, peer: &mut Peer, published: &Published) {
        let mut snapshot = self.snapshot(peer, published);
        if peer.proxyless.is_none() {
            let secrets = peer.secrets.as_ref().map(Secrets::resources);
            let (own, node) = (&mut peer.own, &peer.node);
            snapshot = own.add(&snapshot, published, node, secrets.as_ref());
        }
        let snapshot = match &mut peer.rewrite {
            Some(rewrite) => rewrite.apply(&snapshot),
            None => snapshot,
        };
        if !peer.lost.holds(published, &snapshot) {
            self.session.set_snapshot(Arc::new(snapshot));
        }
    }

    /// This node's part of it.
    fn snapshot(&self, peer: &mut Peer, published: &Published) -> Snapshot {
        if let Some(proxyless) = &mut peer.proxyless {
            let known = proxyless.unmet().to_vec();
            let snapshot = proxyless.snapshot(published, &peer.node, &self.session);
            if *proxyless.unmet() != *known {
                for Unmet { rule, message, .. } in proxyless.unmet() {
                    tracing::warn!(node = %peer.node.id, rule, message, "calls that match it fail");
                }
            }
            return snapshot;
        }
        if let Some(gateway) = &mut peer.gateway {
            return gateway.snapshot(published, &peer.node);
        }
        match &mut peer.demand {
            Some(demand) => demand.snapshot(published, &peer.node, &self.session),
            None => peer
                .isolation
                .snapshot(published, &peer.node, &peer.listeners),
        }
    }

    fn report(&self, peer: &mut Peer) {
        let progress = self.session.progress();
        let mut refused = peer.isolation.refused(&progress, &self.published(peer));
        let unmet = peer
            .proxyless
            .iter()
            .flat_map(|proxyless| proxyless.unmet());
        refused.extend(unmet.map(Refused::from));
        refused.extend(peer.lost.is_stuck().then(Lost::told));
        if let Some(known) = peer.remembered.renew(&progress.nacks, &peer.isolation) {
            self.rooms.memory.keep(&peer.who, known);
        }
        peer.seat.report(progress.target, progress.acked, refused);
    }

    fn now_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }
}

async fn new_secrets(secrets: &mut Option<Secrets>) {
    match secrets {
        Some(secrets) => secrets.changed().await,
        None => std::future::pending().await,
    }
}

async fn new_sessions(sessions: &mut Option<Box<Feed>>) {
    match sessions {
        Some(feed) => feed.changed().await,
        None => std::future::pending().await,
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
