//! One sidecar without a control plane, for profiling: everything for host `backend` goes to one address.
//!
//! `one_hop LISTEN UPSTREAM [http|h2c]`

use std::net::SocketAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;
use phalanx_model::instance::Protocol;
use phalanx_model::name::{ClusterName, ServiceName};
use phalanx_model::resource::{
    Action, Assignment, Backend, Cluster, Endpoint, Forward, HeaderEdit, Health, Retry, Rewrite,
    RouteTable, Rule, RuleMatch, VirtualHost,
};
use phalanx_proxy::account::Account;
use phalanx_proxy::drive::{DriveConfig, Workers};
use phalanx_proxy::plan::{Bootstrap, Plan, Resources, compile_table};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, listen, upstream, rest @ ..] = &arguments[..] else {
        return Err("usage: one_hop LISTEN UPSTREAM [http|h2c]".into());
    };
    let protocol = match rest.first().map(String::as_str) {
        Some("h2c") => Protocol::H2c,
        Some("http") => Protocol::Http1,
        _ => Protocol::Auto,
    };
    let any: SocketAddr = "127.0.0.1:0".parse()?;
    let config = DriveConfig {
        redirected: None,
        is_edge: false,
        inbound: any,
        outbound: listen.parse()?,
        tcp: Vec::new(),
        workers: 1,
        limits: Default::default(),
        deadlines: Default::default(),
        identity: None,
    };
    let account = Arc::new(Account::new(config.cores()));
    let bootstrap = Bootstrap {
        service: ServiceName::new("default", "caller"),
        version: String::new(),
        inbound: Vec::new(),
        tcp: Vec::new(),
    };
    let resources = resources(upstream.parse()?, protocol)?;
    let plan = Plan::assemble(&resources, &bootstrap, &Plan::empty(), &account);
    let _workers = Workers::spawn(&config, Arc::new(ArcSwap::from_pointee(plan)), account)?;
    loop {
        std::thread::park();
    }
}

fn resources(upstream: SocketAddr, protocol: Protocol) -> Result<Resources, String> {
    let name = ClusterName::outbound(ServiceName::new("default", "backend"), 80);
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
    let domains = vec!["backend".into(), "backend:80".into()];
    let host = VirtualHost {
        name: "backend".into(),
        domains,
        rules: vec![rule],
    };
    let table = compile_table(&RouteTable {
        name: "outbound".into(),
        hosts: vec![host],
    })?;
    let endpoint = Endpoint {
        address: upstream,
        weight: 1,
        zone: String::new(),
        is_far: false,
        health: Health::Healthy,
        version: String::new(),
        instance: "backend-1".into(),
        target: 0,
        mutual_tls: false,
        datagrams: false,
        token: String::new(),
    };
    let mut resources = Resources::default();
    resources.tables.insert("outbound".into(), Arc::new(table));
    resources
        .clusters
        .insert(name.clone(), Arc::new(Cluster::new(name.clone(), protocol)));
    resources.assignments.insert(
        name.clone(),
        Arc::new(Assignment {
            cluster: name,
            endpoints: vec![endpoint],
            overprovision: None,
        }),
    );
    Ok(resources)
}
