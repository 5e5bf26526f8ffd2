//! An Identity service in this process, over a real TLS socket: an issuer, tokens that are good for one key, and whatever
//! trust a test wants told.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use phalanx_pki::clock::{Clock, ManualClock, UnixMillis};
use phalanx_pki::credentials::{Credentials, Parts};
use phalanx_pki::csr::Csr;
use phalanx_pki::identity::Identity;
use phalanx_pki::issuer::{Attestation, Issuer, Order, RootCa};
use phalanx_pki::key::{Key, KeyKind};
use phalanx_pki::name::{TrustDomain, Workload};
use phalanx_pki::revocation::Link;
use phalanx_pki::roots::Roots;
use phalanx_pki::tls::{ClientAuth, ServerOptions, ServerTls};
use phalanx_pki::verifier::{CrlPolicy, Expected, Peer};
use phalanx_proto::phalanx::identity::v1::identity_server::{Identity as Service, IdentityServer};
use phalanx_proto::phalanx::identity::v1::{
    Certificate, JoinRequest, RenewRequest, Told, TrustRequest, TrustResponse, join_request,
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt};
use tonic::transport::Server;
use tonic::transport::server::Connected;
use tonic::{Request, Response, Status, Streaming};

pub const NOW: UnixMillis = UnixMillis(1_795_362_049_000);
pub const HOUR: Duration = Duration::from_secs(3600);
const YEAR: Duration = Duration::from_secs(365 * 86_400);
pub const TTL: Duration = Duration::from_secs(72 * 3600);

pub fn domain() -> TrustDomain {
    TrustDomain::parse("phalanx.local").unwrap()
}

pub fn workload(service: &str) -> Workload {
    Workload::parse(&domain(), "default", service, None).unwrap()
}

pub fn root(now: UnixMillis) -> RootCa {
    RootCa::create(&domain(), KeyKind::default(), now, 10 * YEAR).unwrap()
}

pub fn issuer_of(root: &RootCa, now: UnixMillis) -> Issuer {
    root.intermediate(KeyKind::default(), now, YEAR).unwrap()
}

pub fn parts(issuer: &Issuer, workload: &Workload, now: UnixMillis) -> Parts {
    let key = Key::generate(KeyKind::default()).unwrap();
    let by = Attestation::Operator {
        name: "test".into(),
    };
    let issued = issuer
        .issue_to(key.spki(), &Order::new(workload, TTL, by), now)
        .unwrap();
    Parts {
        chain: issued.chain,
        key,
        staple: None,
        roots: issuer.roots().clone(),
    }
}

/// What a caller last said on a stream of whom to trust.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Word {
    pub version: u64,
    pub serial: String,
    pub error: String,
}

type Tokens = BTreeMap<String, (String, Option<Vec<u8>>)>;

/// What the service does, as the test wants it.
pub struct Book {
    pub clock: Arc<ManualClock>,
    pub issuer: Mutex<Issuer>,
    pub roots: Mutex<Roots>,
    /// Each with its service, and the key that it was used for.
    pub tokens: Mutex<Tokens>,
    /// Answers nothing but errors.
    pub is_down: AtomicBool,
    /// Takes a join and loses its answers.
    pub answers_lost: AtomicUsize,
    pub joins: AtomicUsize,
    pub renewals: AtomicUsize,
    pub connections: AtomicUsize,
    /// Serials of the certificates that renewals were asked with.
    pub renewed_with: Mutex<Vec<String>>,
    pub told: watch::Sender<TrustResponse>,
    pub said: watch::Sender<Word>,
}

pub struct Authority {
    pub book: Arc<Book>,
    pub address: SocketAddr,
    task: JoinHandle<()>,
}

impl Drop for Authority {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Authority {
    pub async fn start() -> Self {
        let clock = Arc::new(ManualClock::at(NOW));
        Self::start_with(issuer_of(&root(NOW), NOW), clock, "127.0.0.1:0").await
    }

    pub async fn start_with(issuer: Issuer, clock: Arc<ManualClock>, at: &str) -> Self {
        let roots = issuer.roots().clone();
        let book = Arc::new(Book {
            roots: Mutex::new(roots),
            issuer: Mutex::new(issuer),
            clock,
            tokens: Mutex::default(),
            is_down: AtomicBool::new(false),
            answers_lost: AtomicUsize::new(0),
            joins: AtomicUsize::new(0),
            renewals: AtomicUsize::new(0),
            connections: AtomicUsize::new(0),
            renewed_with: Mutex::default(),
            told: watch::Sender::new(TrustResponse::default()),
            said: watch::Sender::new(Word::default()),
        });
        let listener = TcpListener::bind(at).await.unwrap();
        let address = listener.local_addr().unwrap();
        let task = tokio::spawn(serve(listener, book.clone()));
        Self {
            book,
            address,
            task,
        }
    }

    /// A token for a service, as the file that is given to its sidecar.
    pub fn token(&self, service: &str) -> String {
        let mut tokens = self.book.tokens.lock().unwrap();
        let token = format!("phxt.{service}.{}", tokens.len());
        tokens.insert(token.clone(), (service.to_owned(), None));
        format!("{token}\n{}", self.book.roots.lock().unwrap().to_pem())
    }

    /// Tells these roots and lists from now on.
    pub fn tell(&self, roots: &Roots, crls: &[Vec<u8>], issuers: &[&Issuer]) -> u64 {
        let version = self.book.told.borrow().version + 1;
        self.book.told.send_replace(TrustResponse {
            version,
            roots: roots.iter().map(|root| root.der().to_vec()).collect(),
            crls: crls.to_vec(),
            issuers: issuers
                .iter()
                .filter_map(|issuer| issuer.chain().first().map(|der| der.to_vec()))
                .collect(),
            staple: Vec::new(),
            renew: false,
            told: Vec::new(),
        });
        version
    }

    /// Tells the same as before, and who is revoked without a list.
    pub fn tell_without_list(&self, revoked: &[&Link]) -> u64 {
        let mut next = self.book.told.borrow().clone();
        next.version += 1;
        let told = |link: &&Link| Told {
            issuer_key: link.issuer_key.to_vec(),
            serial: link.serial.to_string(),
        };
        next.told = revoked.iter().map(told).collect();
        let version = next.version;
        self.book.told.send_replace(next);
        version
    }
}

/// A fresh server identity for each connection would be too clean: it is made once, and again when the issuer is another.
async fn serve(listener: TcpListener, book: Arc<Book>) {
    let (streams, incoming) = mpsc::channel(16);
    let control = Workload::parse(&domain(), "phalanx-system", "control", None).unwrap();
    let accepting = async {
        loop {
            let Ok((tcp, _)) = listener.accept().await else {
                return;
            };
            let (book, streams, control) = (book.clone(), streams.clone(), control.clone());
            tokio::spawn(async move {
                let now = book.clock.now();
                let parts = parts(&book.issuer.lock().unwrap().clone(), &control, now);
                let identity = Identity::new(book.clock.clone());
                identity.publish(Credentials::try_new(parts, &control, now).unwrap());
                let _ = identity.publish_roots(book.roots.lock().unwrap().clone());
                let options = ServerOptions {
                    client_auth: ClientAuth::Optional,
                    expected: Expected::trust_domain(domain()),
                    crl: CrlPolicy::IfPresent,
                    alpn: vec![b"h2".to_vec()],
                };
                let tls = ServerTls::try_new(Arc::new(identity), options).unwrap();
                let acceptor = TlsAcceptor::from(tls.config().clone());
                let Ok(stream) = acceptor.accept(tcp).await else {
                    return;
                };
                let Ok(peer) = tls.admit(stream.get_ref().1) else {
                    return;
                };
                book.connections.fetch_add(1, Ordering::SeqCst);
                let _ = streams
                    .send(Ok::<_, std::io::Error>(Line { stream, peer }))
                    .await;
            });
        }
    };
    let served = Server::builder()
        .add_service(IdentityServer::new(Door(book.clone())))
        .serve_with_incoming(ReceiverStream::new(incoming));
    tokio::select! {
        () = accepting => {}
        done = served => done.unwrap(),
    }
}

struct Line {
    stream: TlsStream<TcpStream>,
    peer: Option<Arc<Peer>>,
}

impl Connected for Line {
    type ConnectInfo = Option<Arc<Peer>>;
    fn connect_info(&self) -> Self::ConnectInfo {
        self.peer.clone()
    }
}

impl AsyncRead for Line {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Line {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
        buf: &[u8],
    ) -> std::task::Poll<std::io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }
    fn poll_flush(
        mut self: Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }
    fn poll_shutdown(
        mut self: Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

struct Door(Arc<Book>);

impl Door {
    fn up(&self) -> Result<(), Status> {
        match self.0.is_down.load(Ordering::SeqCst) {
            true => Err(Status::unavailable("the test says so")),
            false => Ok(()),
        }
    }

    fn issue(&self, csr: &[u8], workload: &Workload) -> Result<Response<Certificate>, Status> {
        let csr = Csr::from_der(csr).map_err(|e| Status::invalid_argument(e.to_string()))?;
        let by = Attestation::Operator {
            name: "test".into(),
        };
        let issuer = self.0.issuer.lock().unwrap().clone();
        let order = Order::new(workload, TTL, by);
        let issued = issuer.issue(&csr, &order, self.0.clock.now());
        let issued = issued.map_err(|e| Status::permission_denied(e.to_string()))?;
        let roots = self.0.roots.lock().unwrap().clone();
        Ok(Response::new(Certificate {
            chain: issued.chain.iter().map(|der| der.to_vec()).collect(),
            roots: roots.iter().map(|root| root.der().to_vec()).collect(),
            staple: Vec::new(),
        }))
    }
}

fn peer<T>(request: &Request<T>) -> Result<Arc<Peer>, Status> {
    let peer = request.extensions().get::<Option<Arc<Peer>>>().cloned();
    peer.flatten()
        .ok_or_else(|| Status::unauthenticated("a certificate is needed"))
}

#[tonic::async_trait]
impl Service for Door {
    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<Certificate>, Status> {
        self.up()?;
        let request = request.into_inner();
        let service = match request.proof {
            Some(join_request::Proof::JoinToken(token)) => {
                let key = Csr::from_der(&request.csr).unwrap().spki().to_vec();
                let mut tokens = self.0.tokens.lock().unwrap();
                let Some((service, used)) = tokens.get_mut(&token) else {
                    return Err(Status::permission_denied("no such token"));
                };
                if used.get_or_insert_with(|| key.clone()) != &key {
                    return Err(Status::permission_denied("the token was used already"));
                }
                service.clone()
            }
            Some(join_request::Proof::ServiceAccountToken(jwt)) => jwt
                .strip_prefix("jwt-of-")
                .ok_or_else(|| Status::unauthenticated("no such JWT"))?
                .to_owned(),
            None => return Err(Status::invalid_argument("no proof")),
        };
        if service != request.service {
            return Err(Status::permission_denied("the token is of another service"));
        }
        let lost = self.0.answers_lost.load(Ordering::SeqCst);
        if lost > 0 {
            self.0.answers_lost.store(lost - 1, Ordering::SeqCst);
            return Err(Status::unavailable("lost on the way"));
        }
        let answer = self.issue(&request.csr, &workload(&service))?;
        self.0.joins.fetch_add(1, Ordering::SeqCst);
        Ok(answer)
    }

    async fn renew(&self, request: Request<RenewRequest>) -> Result<Response<Certificate>, Status> {
        self.up()?;
        let peer = peer(&request)?;
        let service = peer.id.service.name.clone();
        let answer = self.issue(&request.into_inner().csr, &workload(&service))?;
        self.0.renewals.fetch_add(1, Ordering::SeqCst);
        let serial = peer.serial.to_string();
        self.0.renewed_with.lock().unwrap().push(serial);
        Ok(answer)
    }

    type TrustStream = Pin<Box<dyn Stream<Item = Result<TrustResponse, Status>> + Send>>;

    async fn trust(
        &self,
        request: Request<Streaming<TrustRequest>>,
    ) -> Result<Response<Self::TrustStream>, Status> {
        self.up()?;
        peer(&request)?;
        let (mut words, said) = (request.into_inner(), self.0.said.clone());
        let mut told = self.0.told.subscribe();
        let (answers, stream) = mpsc::channel(4);
        tokio::spawn(async move {
            let mut version = 0;
            loop {
                let next = told.borrow_and_update().clone();
                if next.version > version {
                    version = next.version;
                    let _ = answers.send(Ok(next)).await;
                }
                tokio::select! {
                    changed = told.changed() => if changed.is_err() { return },
                    word = words.next() => match word {
                        Some(Ok(TrustRequest { version, serial, error })) => {
                            said.send_replace(Word { version, serial, error });
                        }
                        _ => return,
                    },
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }
}
