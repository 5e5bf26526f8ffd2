//! The gRPC service `Identity`. Who calls stands in the request's extensions; a proof that is refused is counted and logged with
//! its reason, and told to the caller in words that give nothing away to somebody who only guesses.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use phalanx_pki::csr::Csr;
use phalanx_pki::issuer::Issued;
use phalanx_pki::revocation::Link;
use phalanx_pki::verifier::Peer;
use phalanx_pki::x509::Serial;
use phalanx_proto::phalanx::identity::v1 as wire;
use phalanx_proto::phalanx::identity::v1::identity_server::{Identity, IdentityServer};
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use super::issue::Proof;
use super::tend::chain;
use super::{Bundle, Ca, CaError, Fault, JoinRequest};
use crate::access::Who;

/// Joins that are worked on at once, and renewals; more wait.
const AT_ONCE: usize = 64;
/// How long one waits for its turn.
const WAIT: Duration = Duration::from_secs(10);
/// How often a staple is looked at without any other reason.
const STAPLE: Duration = Duration::from_secs(60);
/// Largest request: a token and a CSR.
const MESSAGE_MAX: usize = 64 << 10;
const GRANTED: &str = "granted";

/// The service over an authority.
#[derive(Clone)]
pub struct Service {
    ca: Ca,
    /// Of joins, which anybody may try, and of renewals: the first can't hold up the second.
    joins: Arc<Semaphore>,
    renewals: Arc<Semaphore>,
}

impl Ca {
    /// The gRPC service; its streams end when [`Ca::run`] does.
    pub fn service(&self) -> IdentityServer<Service> {
        let service = Service {
            ca: self.clone(),
            joins: Arc::new(Semaphore::new(AT_ONCE)),
            renewals: Arc::new(Semaphore::new(AT_ONCE)),
        };
        IdentityServer::new(service).max_decoding_message_size(MESSAGE_MAX)
    }
}

#[tonic::async_trait]
impl Identity for Service {
    async fn join(
        &self,
        request: Request<wire::JoinRequest>,
    ) -> Result<Response<wire::Certificate>, Status> {
        let _turn = turn(&self.joins).await?;
        let asked = request.into_inner();
        let proof = match asked.proof {
            Some(wire::join_request::Proof::JoinToken(token)) => Proof::JoinToken(token),
            Some(wire::join_request::Proof::ServiceAccountToken(token)) => {
                Proof::ServiceAccount(token)
            }
            None => return Err(Status::invalid_argument("a join needs a proof")),
        };
        let request = JoinRequest {
            proof,
            namespace: asked.namespace,
            service: asked.service,
            zone: asked.zone,
            csr: asked.csr,
        };
        let whom = (request.namespace.clone(), request.service.clone());
        let joined = self.ca.join(request).await;
        let issued = joined.map_err(|e| self.refused("join", &format!("{whom:?}"), &e))?;
        self.ca.0.counts.add("join", GRANTED);
        tracing::info!(id = %issued.record.id, serial = %issued.record.serial, "joined");
        Ok(Response::new(self.answer(&issued).await))
    }

    async fn renew(
        &self,
        request: Request<wire::RenewRequest>,
    ) -> Result<Response<wire::Certificate>, Status> {
        let peer = workload(&request)?;
        let _turn = turn(&self.renewals).await?;
        let whom = peer.id.to_string();
        let csr = Csr::from_der(&request.get_ref().csr).map_err(CaError::from);
        let issued = match csr {
            Ok(csr) => self.ca.renew(&peer, &csr).await,
            Err(error) => Err(error),
        };
        let issued = issued.map_err(|e| self.refused("renewal", &whom, &e))?;
        self.ca.0.counts.add("renewal", GRANTED);
        Ok(Response::new(self.answer(&issued).await))
    }

    type TrustStream = Pin<Box<dyn Stream<Item = Result<wire::TrustResponse, Status>> + Send>>;

    async fn trust(
        &self,
        request: Request<Streaming<wire::TrustRequest>>,
    ) -> Result<Response<Self::TrustStream>, Status> {
        let peer = match request.extensions().get::<Who>() {
            Some(Who::Workload(peer)) => Some(peer.clone()),
            // What is told is public; an open one is just not counted on.
            Some(Who::Open) => None,
            _ => {
                return Err(Status::unauthenticated(
                    "a stream of trust needs a certificate",
                ));
            }
        };
        let known = peer.as_ref().map(|p| (p.id.clone(), p.serial.clone()));
        let opened = self.ca.peers().open(known);
        let stream = opened.ok_or_else(|| Status::resource_exhausted("too many streams"))?;
        // One in the channel, one in the making: whoever reads slowly gets the latest, not each.
        let (sender, receiver) = mpsc::channel(1);
        let trust = Trust {
            open: Open {
                ca: self.ca.clone(),
                stream,
            },
            peer,
            requests: request.into_inner(),
            sender,
            serial: None,
            sent: None,
            roots: Vec::new(),
        };
        tokio::spawn(trust.run(self.ca.0.stopped.clone()));
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

impl Service {
    fn refused(&self, kind: &'static str, whom: &str, error: &CaError) -> Status {
        let (text, reason) = (chain(error), error.reason());
        self.ca.0.counts.add(kind, reason);
        tracing::warn!(whom, reason, error = text, "{kind} refused");
        match error.fault() {
            Fault::Request => Status::invalid_argument(text),
            Fault::Denied => Status::permission_denied(text),
            Fault::State => Status::failed_precondition(text),
            Fault::Busy => Status::unavailable(text),
            Fault::Ours => Status::internal(error.to_string()),
        }
    }

    async fn answer(&self, issued: &Issued) -> wire::Certificate {
        let staple = self.ca.staple(&issued.record.serial).await;
        wire::Certificate {
            chain: issued.chain.iter().map(|der| der.to_vec()).collect(),
            roots: self.ca.roots().iter().map(|r| r.der().to_vec()).collect(),
            staple: staple.unwrap_or_default(),
        }
    }
}

async fn turn(turns: &Arc<Semaphore>) -> Result<tokio::sync::OwnedSemaphorePermit, Status> {
    let turn = tokio::time::timeout(WAIT, turns.clone().acquire_owned()).await;
    let busy = || Status::unavailable("too many ask for certificates at once");
    turn.map_err(|_| busy())?.map_err(|_| busy())
}

fn workload<T>(request: &Request<T>) -> Result<Arc<Peer>, Status> {
    match request.extensions().get::<Who>() {
        Some(Who::Workload(peer)) => Ok(peer.clone()),
        _ => Err(Status::unauthenticated(
            "a renewal needs the certificate that it renews",
        )),
    }
}

fn told(link: &Link) -> wire::Told {
    wire::Told {
        issuer_key: link.issuer_key.to_vec(),
        serial: link.serial.to_string(),
    }
}

/// Forgets its stream when it goes, however it goes.
struct Open {
    ca: Ca,
    stream: u64,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.ca.peers().close(self.stream);
    }
}

/// One stream of trust.
struct Trust {
    open: Open,
    peer: Option<Arc<Peer>>,
    requests: Streaming<wire::TrustRequest>,
    sender: mpsc::Sender<Result<wire::TrustResponse, Status>>,
    /// Of the certificate that the peer shows.
    serial: Option<Serial>,
    sent: Option<(Arc<Bundle>, Vec<u8>, bool)>,
    /// Which roots went out with which version, oldest first.
    roots: Vec<(u64, String)>,
}

/// Versions that a peer may still confirm.
const UNCONFIRMED_MAX: usize = 16;

impl Trust {
    async fn run(mut self, stop: CancellationToken) {
        self.serial = self.peer.as_ref().map(|peer| peer.serial.clone());
        let mut changes = self.open.ca.changes();
        let mut staples = tokio::time::interval(STAPLE);
        loop {
            // Where the one before is still on its way, this waits, and then sends what is current.
            tokio::select! {
                () = stop.cancelled() => return,
                told = self.tell() => if told.is_err() { return },
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.sender.closed() => return,
                changed = changes.changed() => if changed.is_err() { return },
                _ = staples.tick() => {}
                said = self.requests.message() => match said {
                    Ok(Some(said)) => self.hear(&said),
                    Ok(None) | Err(_) => return,
                },
            }
        }
    }

    /// Sends what is current, if it is not what went out last.
    async fn tell(&mut self) -> Result<(), ()> {
        let sender = self.sender.clone();
        let room = sender.reserve().await.map_err(|_| ())?;
        let ca = &self.open.ca;
        let bundle = ca.bundle();
        let staple = match &self.serial {
            Some(serial) => ca.staple(serial).await.unwrap_or_default(),
            None => Vec::new(),
        };
        let renew = self.serial.as_ref().is_some_and(|s| ca.is_outgoing(s));
        let same = |(sent, stapled, hinted): &(Arc<Bundle>, Vec<u8>, bool)| {
            Arc::ptr_eq(sent, &bundle) && *stapled == staple && *hinted == renew
        };
        if self.sent.as_ref().is_some_and(same) {
            return Ok(());
        }
        // A staple alone is a change too, so versions are counted here.
        let last = self.roots.last().map_or(0, |(version, _)| *version);
        let version = bundle.version.max(last + 1);
        if self.roots.len() >= UNCONFIRMED_MAX {
            self.roots.remove(0);
        }
        self.roots.push((version, bundle.roots_id.clone()));
        let message = wire::TrustResponse {
            version,
            roots: bundle.roots.iter().map(|r| r.der().to_vec()).collect(),
            crls: bundle.crls.to_vec(),
            issuers: bundle.issuers.clone(),
            staple: staple.clone(),
            renew,
            told: bundle.told.iter().map(told).collect(),
        };
        self.sent = Some((bundle, staple, renew));
        room.send(Ok(message));
        Ok(())
    }

    fn hear(&mut self, said: &wire::TrustRequest) {
        let taken = self.roots.iter().rev().find(|(v, _)| *v <= said.version);
        let taken = taken
            .filter(|_| said.version > 0)
            .map(|(_, roots)| roots.as_str());
        let serial = Serial::parse(&said.serial).ok().filter(|s| self.owns(s));
        if serial.is_some() {
            self.serial.clone_from(&serial);
        }
        let error: String = said.error.chars().take(200).collect();
        self.open
            .ca
            .peers()
            .said(self.open.stream, serial, taken, &error);
    }

    /// Whether a certificate is of the one who speaks: what is said of another counts for nothing.
    fn owns(&self, serial: &Serial) -> bool {
        let line = self.open.ca.log().entry(serial);
        let id = self.peer.as_ref().map(|peer| &peer.id);
        line.is_some_and(|line| Some(&line.record.id) == id)
    }
}
