//! A sidecar on loopback, little upstreams that behave as they are told, and a client that says exactly what it is told.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use phalanx_model::instance::Protocol;
use phalanx_model::name::{ClusterName, ServiceName};
use phalanx_model::resource::*;
use phalanx_pki::identity::Identity;
use phalanx_proxy::account::{Account, EdgeTotals, Event};
use phalanx_proxy::drive::{DriveConfig, Workers};
use phalanx_proxy::plan::{AppPort, Bootstrap, Entries, Plan, Resources, compile_table};
use phalanx_relay::{Deadlines, Limits};

pub fn cluster_name(service: &str) -> ClusterName {
    ClusterName::outbound(ServiceName::new("default", service), 80)
}

/// What a test says of its mesh. Everything else is the default.
pub struct Setup {
    pub clusters: Vec<(Cluster, Vec<Endpoint>)>,
    pub rules: Vec<(String, Vec<Rule>)>,
    pub apps: Vec<AppPort>,
    pub tcp: Vec<ClusterName>,
    pub limits: Limits,
    pub deadlines: Deadlines,
    pub workers: usize,
    pub identity: Option<Arc<Identity>>,
    /// What callers are asked for; not known yet when there is none.
    pub inbound: Option<Inbound>,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            clusters: Vec::new(),
            rules: Vec::new(),
            apps: Vec::new(),
            tcp: Vec::new(),
            limits: Limits::default(),
            deadlines: Deadlines::default(),
            workers: 1,
            identity: None,
            inbound: None,
        }
    }
}

pub fn endpoint(address: SocketAddr) -> Endpoint {
    Endpoint {
        address,
        weight: 1,
        zone: String::new(),
        is_far: false,
        health: Health::Healthy,
        version: "v1".into(),
        instance: String::new(),
        target: 0,
        mutual_tls: false,
        datagrams: false,
        token: String::new(),
    }
}

pub fn backend(service: &str, weight: u32) -> Backend {
    Backend {
        cluster: Some(cluster_name(service)),
        weight,
        request_headers: HeaderEdit::default(),
        response_headers: HeaderEdit::default(),
    }
}

pub fn forward(service: &str) -> Forward {
    Forward {
        backends: vec![backend(service, 1)],
        rewrite: Rewrite::default(),
        request_timeout: None,
        attempt_timeout: None,
        retry: Retry::default(),
        hash_on: None,
        ..Forward::default()
    }
}

pub fn rule(action: Action) -> Rule {
    Rule {
        name: "HTTPRoute/default/test/0".into(),
        matches: RuleMatch::default(),
        request_headers: HeaderEdit::default(),
        response_headers: HeaderEdit::default(),
        action,
    }
}

impl Setup {
    /// Service `battle` with these endpoints, its host routed to it.
    pub fn battle(addresses: &[SocketAddr]) -> Self {
        Self::default()
            .cluster(
                Cluster::new(cluster_name("battle"), Protocol::Auto),
                addresses,
            )
            .route("battle", forward("battle"))
    }

    pub fn cluster(mut self, cluster: Cluster, addresses: &[SocketAddr]) -> Self {
        self.clusters
            .push((cluster, addresses.iter().copied().map(endpoint).collect()));
        self
    }

    /// Behind every endpoint is a sidecar.
    pub fn meshed(mut self) -> Self {
        for (_, endpoints) in &mut self.clusters {
            for (number, endpoint) in endpoints.iter_mut().enumerate() {
                endpoint.instance = format!("instance-{number}");
            }
        }
        self
    }

    /// Changes the first cluster.
    pub fn with_cluster(mut self, change: impl FnOnce(&mut Cluster)) -> Self {
        change(&mut self.clusters[0].0);
        self
    }

    pub fn route(self, host: &str, forward: Forward) -> Self {
        self.rule(host, rule(Action::Forward(forward)))
    }

    pub fn rule(mut self, host: &str, rule: Rule) -> Self {
        match self.rules.iter_mut().find(|(known, _)| known == host) {
            Some((_, rules)) => rules.push(rule),
            None => self.rules.push((host.into(), vec![rule])),
        }
        self
    }

    /// Changes the forward of the first rule of the first host.
    pub fn with_forward(mut self, change: impl FnOnce(&mut Forward)) -> Self {
        if let Action::Forward(forward) = &mut self.rules[0].1[0].action {
            change(forward);
        }
        self
    }

    pub fn app(mut self, number: u16, address: SocketAddr, protocol: Protocol) -> Self {
        self.apps.push(AppPort {
            name: String::new(),
            number,
            address,
            protocol,
        });
        self
    }

    pub fn resources(&self) -> Resources {
        let mut resources = Resources::default();
        for (cluster, endpoints) in &self.clusters {
            resources
                .clusters
                .insert(cluster.name.clone(), Arc::new(cluster.clone()));
            let assignment = Assignment {
                cluster: cluster.name.clone(),
                endpoints: endpoints.clone(),
                overprovision: None,
            };
            resources
                .assignments
                .insert(cluster.name.clone(), Arc::new(assignment));
        }
        let hosts = self.rules.iter().map(|(host, rules)| VirtualHost {
            name: host.clone(),
            domains: vec![host.clone()],
            rules: rules.clone(),
        });
        let table = RouteTable {
            name: "outbound".into(),
            hosts: hosts.collect(),
        };
        resources
            .tables
            .insert("outbound".into(), Arc::new(compile_table(&table).unwrap()));
        let inbound = self.inbound.as_ref();
        resources.inbound = inbound.map(|rules| Arc::new(Entries::compile(rules, None).unwrap()));
        resources
    }

    pub fn bootstrap(&self) -> Bootstrap {
        Bootstrap {
            service: ServiceName::new("default", "caller"),
            version: "v1".into(),
            inbound: self.apps.clone(),
            tcp: self
                .tcp
                .iter()
                .map(|name| (any_port(), name.clone()))
                .collect(),
        }
    }

    pub fn start(self) -> Sidecar {
        let config = DriveConfig {
            redirected: None,
            is_edge: false,
            inbound: any_port(),
            outbound: any_port(),
            tcp: self.tcp.iter().map(|_| any_port()).collect(),
            workers: self.workers,
            limits: self.limits.clone(),
            deadlines: self.deadlines.clone(),
            identity: self.identity.clone(),
        };
        let account = Arc::new(Account::new(config.cores()));
        let plan = Plan::assemble(
            &self.resources(),
            &self.bootstrap(),
            &Plan::empty(),
            &account,
        );
        let plan = Arc::new(ArcSwap::from_pointee(plan));
        let workers = Workers::spawn(&config, plan.clone(), account.clone()).unwrap();
        let addresses = workers.addresses().clone();
        Sidecar {
            outbound: addresses.outbound,
            inbound: addresses.inbound,
            tcp: addresses.tcp,
            account,
            plan,
            workers: Some(workers),
            setup: self,
        }
    }
}

pub fn any_port() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

/// An address where nobody listens, and nobody will: its port is held for as long as the process lives, or another test might be
/// given it a moment later.
pub fn dead_end() -> SocketAddr {
    let held = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    held.bind(&any_port().into()).unwrap();
    let address = held.local_addr().unwrap().as_socket().unwrap();
    std::mem::forget(held);
    address
}

pub struct Sidecar {
    pub outbound: SocketAddr,
    pub inbound: SocketAddr,
    pub tcp: Vec<SocketAddr>,
    pub account: Arc<Account>,
    pub plan: Arc<ArcSwap<Plan>>,
    pub workers: Option<Workers>,
    pub setup: Setup,
}

impl Sidecar {
    /// Publishes another configuration.
    pub fn change(&mut self, change: impl FnOnce(&mut Setup)) {
        change(&mut self.setup);
        let next = Plan::assemble(
            &self.setup.resources(),
            &self.setup.bootstrap(),
            &self.plan.load(),
            &self.account,
        );
        self.plan.store(Arc::new(next));
    }

    pub fn event(&self, event: Event) -> u64 {
        self.account
            .events()
            .iter()
            .find(|(known, _)| *known == event)
            .unwrap()
            .1
    }

    pub fn sum(&self, of: impl Fn(&EdgeTotals) -> u64) -> u64 {
        self.account.collect().iter().map(of).sum()
    }

    /// One request on a connection of its own.
    pub fn get(&self, path: &str) -> Answer {
        Client::connect(self.outbound).get("battle", path)
    }

    pub fn drain(&mut self, deadline: Duration) {
        let workers = self.workers.take().unwrap();
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
            .block_on(workers.drain(deadline));
    }
}

/// Waits until `done`, for some seconds.
pub fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(30);
    while !done() {
        assert!(Instant::now() < until, "not in time: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// A message read from a socket.
#[derive(Clone, Debug, Default)]
pub struct Message {
    pub line: String,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

pub type Answer = Message;

impl Message {
    pub fn status(&self) -> u16 {
        self.line
            .split(' ')
            .nth(1)
            .and_then(|status| status.parse().ok())
            .unwrap_or(0)
    }

    pub fn path(&self) -> &str {
        self.line.split(' ').nth(1).unwrap_or("")
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(known, _)| known.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    }

    pub fn reason(&self) -> &str {
        self.header("x-phalanx-reason").unwrap_or("")
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// An HTTP/1 connection of either side; reads whole messages.
pub struct Client {
    pub stream: TcpStream,
    read: Vec<u8>,
}

impl Client {
    pub fn connect(address: SocketAddr) -> Self {
        Self::over(TcpStream::connect(address).unwrap())
    }

    pub fn over(stream: TcpStream) -> Self {
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        stream.set_nodelay(true).unwrap();
        Self {
            stream,
            read: Vec::new(),
        }
    }

    pub fn get(&mut self, host: &str, path: &str) -> Answer {
        self.ask(&format!("GET {path} HTTP/1.1\r\nhost: {host}\r\n\r\n"))
    }

    pub fn post(&mut self, host: &str, path: &str, body: &str) -> Answer {
        self.ask(&format!(
            "POST {path} HTTP/1.1\r\nhost: {host}\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        ))
    }

    pub fn ask(&mut self, text: &str) -> Answer {
        self.send(text.as_bytes());
        self.message().expect("an answer")
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    /// None at the end of the stream.
    pub fn message(&mut self) -> Option<Message> {
        let end = loop {
            if let Some(end) = self.read.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
                break end + 4;
            }
            self.more()?;
        };
        let head = String::from_utf8_lossy(&self.read[..end]).into_owned();
        self.read.drain(..end);
        let mut lines = head.trim_end().split("\r\n");
        let line = lines.next().unwrap_or("").to_owned();
        let headers = lines
            .filter_map(|line| line.split_once(':'))
            .map(|(n, v)| (n.to_lowercase(), v.trim().to_owned()));
        let mut message = Message {
            line,
            headers: headers.collect(),
            body: Vec::new(),
        };
        let bodyless = matches!(message.status(), 101 | 204 | 304);
        if message.header("transfer-encoding").is_some() {
            message.body = self.chunks()?;
        } else if let Some(length) = message.header("content-length").filter(|_| !bodyless) {
            message.body = self.exactly(length.parse().unwrap())?;
        }
        Some(message)
    }

    fn chunks(&mut self) -> Option<Vec<u8>> {
        let mut body = Vec::new();
        loop {
            let size = loop {
                if let Some(end) = self.read.windows(2).position(|bytes| bytes == b"\r\n") {
                    let size = String::from_utf8_lossy(&self.read[..end]).into_owned();
                    self.read.drain(..end + 2);
                    break usize::from_str_radix(size.split(';').next().unwrap(), 16).unwrap();
                }
                self.more()?;
            };
            let chunk = self.exactly(size + 2)?;
            body.extend_from_slice(&chunk[..size]);
            if size == 0 {
                return Some(body);
            }
        }
    }

    pub fn exactly(&mut self, length: usize) -> Option<Vec<u8>> {
        while self.read.len() < length {
            self.more()?;
        }
        Some(self.read.drain(..length).collect())
    }

    fn more(&mut self) -> Option<()> {
        let mut buffer = [0; 4096];
        let count = self
            .stream
            .read(&mut buffer)
            .ok()
            .filter(|count| *count > 0)?;
        self.read.extend_from_slice(&buffer[..count]);
        Some(())
    }

    /// Whether the peer closed without another byte.
    pub fn is_closed(&mut self) -> bool {
        self.read.is_empty() && self.more().is_none()
    }
}

/// What an upstream does with a request.
pub enum Act {
    Say(String),
    /// Writes, then closes the connection.
    SayAndClose(String),
    /// Closes with a reset, without a word.
    Reset,
    /// Says nothing for this long, then answers 200.
    Wait(Duration),
    /// Answers 101 and then sends everything back.
    Echo,
}

pub fn ok(body: &str) -> Act {
    Act::Say(format!(
        "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    ))
}

pub fn status(status: u16) -> Act {
    Act::Say(format!(
        "HTTP/1.1 {status} Whatever\r\ncontent-length: 0\r\n\r\n"
    ))
}

/// An HTTP/1 upstream; `act` is told the request and how many came before.
pub struct Upstream {
    pub address: SocketAddr,
    pub requests: Arc<AtomicUsize>,
    pub connections: Arc<AtomicUsize>,
    pub seen: Arc<Mutex<Vec<Message>>>,
}

impl Upstream {
    pub fn start(act: impl Fn(&Message, usize) -> Act + Send + Sync + 'static) -> Self {
        Self::on(TcpListener::bind(any_port()).unwrap(), act)
    }

    pub fn on(
        listener: TcpListener,
        act: impl Fn(&Message, usize) -> Act + Send + Sync + 'static,
    ) -> Self {
        let upstream = Self {
            address: listener.local_addr().unwrap(),
            requests: Arc::default(),
            connections: Arc::default(),
            seen: Arc::default(),
        };
        let (requests, connections, seen) = (
            upstream.requests.clone(),
            upstream.connections.clone(),
            upstream.seen.clone(),
        );
        let act = Arc::new(act);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(stream) = stream else { return };
                connections.fetch_add(1, Ordering::SeqCst);
                let (requests, seen, act) = (requests.clone(), seen.clone(), act.clone());
                thread::spawn(move || serve(Client::over(stream), &requests, &seen, &*act));
            }
        });
        upstream
    }

    pub fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }

    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    pub fn last(&self) -> Message {
        self.seen.lock().unwrap().last().cloned().unwrap()
    }
}

fn serve(
    mut client: Client,
    requests: &AtomicUsize,
    seen: &Mutex<Vec<Message>>,
    act: &dyn Fn(&Message, usize) -> Act,
) {
    while let Some(message) = client.message() {
        seen.lock().unwrap().push(message.clone());
        let act = act(&message, requests.fetch_add(1, Ordering::SeqCst));
        let write = |client: &mut Client, text: &str| client.stream.write_all(text.as_bytes());
        let written = match act {
            Act::Say(text) => write(&mut client, &text),
            Act::SayAndClose(text) => {
                let _ = write(&mut client, &text);
                return;
            }
            Act::Reset => {
                socket2::SockRef::from(&client.stream)
                    .set_linger(Some(Duration::ZERO))
                    .unwrap();
                return;
            }
            Act::Wait(time) => {
                thread::sleep(time);
                write(
                    &mut client,
                    "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nlate",
                )
            }
            Act::Echo => {
                let _ = write(
                    &mut client,
                    "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-accept: x\r\n\r\n",
                );
                echo(client.stream);
                return;
            }
        };
        if written.is_err() {
            return;
        }
    }
}

/// Sends back what comes, until the other side ends.
pub fn echo(mut stream: TcpStream) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(count) = stream.read(&mut buffer) {
        if count == 0 || stream.write_all(&buffer[..count]).is_err() {
            return;
        }
    }
}

/// A raw TCP upstream that echoes.
pub fn echo_server() -> SocketAddr {
    let listener = TcpListener::bind(any_port()).unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || echo(stream));
        }
    });
    address
}
