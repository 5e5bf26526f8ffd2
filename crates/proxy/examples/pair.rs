//! Two sidecars without a control plane, for profiling: what is called at the first goes through the second to one address.
//!
//! `pair LISTEN UPSTREAM plain|mutual [http|h2c]`: what is spoken between the two.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use phalanx_model::instance::Protocol;
use phalanx_model::name::{ClusterName, ServiceName};
use phalanx_model::resource::{
    Action, Assignment, Backend, Cluster, Endpoint, Forward, HeaderEdit, Health, Inbound, PeerTls,
    Retry, Rewrite, RouteTable, Rule, RuleMatch, VirtualHost,
};
use phalanx_pki::clock::{Clock, SystemClock};
use phalanx_pki::credentials::{Credentials, Parts};
use phalanx_pki::identity::Identity;
use phalanx_pki::issuer::{Attestation, Issuer, Order, RootCa};
use phalanx_pki::key::{Key, KeyKind};
use phalanx_pki::name::{TrustDomain, Workload};
use phalanx_proxy::account::Account;
use phalanx_proxy::drive::{DriveConfig, Workers};
use phalanx_proxy::plan::{AppPort, Bootstrap, Entries, Plan, Resources, compile_table};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

type Error = Box<dyn std::error::Error>;

const DAY: Duration = Duration::from_secs(86_400);

fn main() -> Result<(), Error> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, listen, upstream, security, rest @ ..] = &arguments[..] else {
        return Err("usage: pair LISTEN UPSTREAM plain|mutual [http|h2c]".into());
    };
    let protocol = match rest.first().map(String::as_str) {
        Some("http") => Protocol::Http1,
        _ => Protocol::H2c,
    };
    let mutual = security == "mutual";
    let domain = TrustDomain::parse("phalanx.local")?;
    let now = SystemClock.now();
    let issuer = RootCa::create(&domain, KeyKind::default(), now, 100 * DAY)?.intermediate(
        KeyKind::default(),
        now,
        50 * DAY,
    )?;
    let identity = |service| -> Result<_, Error> {
        let identity = Identity::new(Arc::new(SystemClock));
        identity.publish(credentials(&issuer, &domain, service)?);
        Ok(mutual.then(|| Arc::new(identity)))
    };
    let battle = Workload::parse(&domain, "default", "battle", None)?;

    let mut resources = Resources {
        inbound: Some(Arc::new(Entries::compile(&Inbound::default(), None)?)),
        ..Resources::default()
    };
    let app = AppPort {
        name: String::new(),
        number: 80,
        address: upstream.parse()?,
        protocol: Protocol::Http1,
    };
    let any: SocketAddr = "127.0.0.1:0".parse()?;
    let called = start(any, identity("battle")?, vec![app], &resources)?;

    let name = ClusterName::outbound(battle.id().service.clone(), 80);
    let mut cluster = Cluster::new(name.clone(), protocol);
    cluster.tls = mutual.then(|| PeerTls {
        ids: vec![battle.id().clone()],
    });
    let endpoint = Endpoint {
        address: called.addresses().inbound,
        weight: 1,
        zone: String::new(),
        is_far: false,
        health: Health::Healthy,
        version: String::new(),
        instance: "battle-1".into(),
        target: 80,
        mutual_tls: mutual,
        datagrams: false,
        token: String::new(),
    };
    let assignment = Assignment {
        cluster: name.clone(),
        endpoints: vec![endpoint],
        overprovision: None,
    };
    let table = Arc::new(compile_table(&table(&name))?);
    resources.tables.insert("outbound".into(), table);
    resources.clusters.insert(name.clone(), Arc::new(cluster));
    resources.assignments.insert(name, Arc::new(assignment));
    let _caller = start(
        listen.parse()?,
        identity("gateway")?,
        Vec::new(),
        &resources,
    )?;
    loop {
        std::thread::park();
    }
}

fn credentials(issuer: &Issuer, domain: &TrustDomain, service: &str) -> Result<Credentials, Error> {
    let workload = Workload::parse(domain, "default", service, None)?;
    let key = Key::generate(KeyKind::default())?;
    let attested = Attestation::Operator {
        name: "pair".into(),
    };
    let now = SystemClock.now();
    let issued = issuer.issue_to(key.spki(), &Order::new(&workload, DAY, attested), now)?;
    let parts = Parts {
        chain: issued.chain,
        key,
        staple: None,
        roots: issuer.roots().clone(),
    };
    Ok(Credentials::try_new(parts, &workload, now)?)
}

fn start(
    outbound: SocketAddr,
    identity: Option<Arc<Identity>>,
    inbound: Vec<AppPort>,
    resources: &Resources,
) -> Result<Workers, Error> {
    let config = DriveConfig {
        redirected: None,
        is_edge: false,
        inbound: "127.0.0.1:0".parse()?,
        outbound,
        tcp: Vec::new(),
        workers: 1,
        limits: Default::default(),
        deadlines: Default::default(),
        identity,
    };
    let account = Arc::new(Account::new(config.cores()));
    let bootstrap = Bootstrap {
        service: ServiceName::new("default", "battle"),
        version: String::new(),
        inbound,
        tcp: Vec::new(),
    };
    let plan = Plan::assemble(resources, &bootstrap, &Plan::empty(), &account);
    let plan = Arc::new(ArcSwap::from_pointee(plan));
    Ok(Workers::spawn(&config, plan, account)?)
}

fn table(name: &ClusterName) -> RouteTable {
    let backend = Backend {
        cluster: Some(name.clone()),
        weight: 1,
        request_headers: HeaderEdit::default(),
        response_headers: HeaderEdit::default(),
    };
    let forward = Forward {
        backends: vec![backend],
        rewrite: Rewrite::default(),
        request_timeout: None,
        attempt_timeout: None,
        retry: Retry::default(),
        hash_on: None,
        ..Forward::default()
    };
    let rule = Rule {
        name: "all".into(),
        matches: RuleMatch::default(),
        request_headers: HeaderEdit::default(),
        response_headers: HeaderEdit::default(),
        action: Action::Forward(forward),
    };
    RouteTable {
        name: "outbound".into(),
        hosts: vec![VirtualHost {
            name: "all".into(),
            domains: vec!["*".into()],
            rules: vec![rule],
        }],
    }
}
