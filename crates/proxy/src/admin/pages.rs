//! What the pages show, put together when somebody asks.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use arc_swap::ArcSwap;
use phalanx_client::registry::{Registration, State};
use phalanx_model::Instance;
use phalanx_model::identity::TrustDomain;
use phalanx_model::resource::ListenerProtocol;
use phalanx_telemetry::metrics::{Exposition, Family};
use phalanx_telemetry::process;
use phalanx_xds::Kind;
use serde_json::{Value, json};

use super::dump;
use super::istio::{self, Own};
use super::limits;
use crate::account::edge::without_lanes;
use crate::account::{Account, EdgeTotals, SecuredConnection};
use crate::discovery::{Held, Known, Refused};
use crate::health::Checks;
use crate::identity::Shown;
use crate::lease;
use crate::plan::Plan;
use crate::report::Reports;

/// Everything a page may need.
pub struct View {
    pub instance: Instance,
    pub control: String,
    pub inbound: SocketAddr,
    pub outbound: SocketAddr,
    pub account: Arc<Account>,
    /// In force.
    pub plan: Arc<ArcSwap<Plan>>,
    pub known: Arc<Known>,
    /// None without an application.
    pub registration: Option<Arc<Registration>>,
    pub reports: Arc<Reports>,
    pub checks: Arc<Checks>,
    pub leasing: Arc<lease::Counts>,
    /// None in plain text.
    pub certificates: Option<Shown>,
    /// Set once, when the process is told to end.
    pub draining: AtomicBool,
}

const BUILD: Family = Family::gauge("phalanx_build_info", "Always 1, with what runs as labels.");
const ATTEMPTS: Family = Family::counter(
    "phalanx_upstream_attempts_total",
    "Requests sent to endpoints, further attempts included.",
);
const RETRIES: Family = Family::counter(
    "phalanx_upstream_retries_total",
    "Attempts after one that failed.",
);
const CONNECT_FAILURES: Family = Family::counter(
    "phalanx_upstream_connect_failures_total",
    "Connections to endpoints that failed.",
);
const EJECTIONS: Family = Family::counter(
    "phalanx_upstream_ejections_total",
    "Endpoints taken out of balancing by their answers.",
);
const ACTIVE: Family = Family::gauge("phalanx_requests_active", "Requests in flight.");
const ANSWERS: Family = Family::counter(
    "phalanx_own_answers_total",
    "Requests that this proxy answered itself, by reason.",
);
const EVENTS: Family = Family::counter(
    "phalanx_events_total",
    "Connections, limits and deadlines, by what happened.",
);
const TLS_REFUSED: Family = Family::counter(
    "phalanx_tls_refused_total",
    "Connections and requests that were refused for want of mutual TLS, by reason.",
);
const TLS_OPEN: Family = Family::gauge(
    "phalanx_tls_connections_open",
    "Open connections over mutual TLS.",
);
const REGISTERED: Family = Family::gauge(
    "phalanx_registered",
    "Whether the control plane has acknowledged the registration.",
);
const REGISTRATIONS: Family = Family::counter(
    "phalanx_registrations_total",
    "Registrations that were acknowledged.",
);
const HEARTBEATS: Family = Family::counter(
    "phalanx_registry_heartbeats_total",
    "Heartbeats that were acknowledged.",
);
const REGISTRY_FAILURES: Family = Family::counter(
    "phalanx_registry_failures_total",
    "Calls of the registry that failed.",
);

impl View {
    /// Why not, if not. That listeners are open goes without saying: this page is there only after them.
    pub fn not_ready(&self) -> Option<String> {
        if self.is_draining() {
            return Some("draining".to_owned());
        }
        if let Some(why) = self.certificates.as_ref().and_then(Shown::not_ready) {
            return Some(why);
        }
        let complete = self.known.configuration().is_complete();
        (!complete).then(|| {
            let (control, trouble) = (&self.control, self.known.trouble());
            let colon = if trouble.is_empty() { "" } else { ": " };
            format!("no configuration from the control plane at {control} yet{colon}{trouble}")
        })
    }

    /// As the control plane tells it, with what is asked of callers.
    pub fn trust_domain(&self) -> TrustDomain {
        let configuration = self.known.configuration();
        let mut listeners = configuration.resources().listeners.values();
        let told = listeners.find_map(|listener| match &listener.protocol {
            ListenerProtocol::Inbound { trust_domain, .. } => Some(trust_domain.clone()),
            _ => None,
        });
        told.unwrap_or_default()
    }

    fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    pub fn metrics(&self) -> String {
        let mut out = Exposition::new();
        let edges = without_lanes(self.account.collect());
        let own = Own {
            service: self.instance.id.service.clone(),
            version: self.instance.version().to_owned(),
        };
        istio::write(&mut out, &own, &edges);
        let merged = without_lanes(self.account.collect_merged());
        self.write_upstream(&mut out, &merged);
        let mut events = out.family(&EVENTS);
        for (event, count) in self.account.events() {
            events.sample(&[("event", event.as_str())], count);
        }
        let secured = self.account.secured();
        let mut refused = out.family(&TLS_REFUSED);
        for (direction, reason, count) in secured.refusals() {
            let labels = [("direction", direction.as_str()), ("reason", reason)];
            refused.sample(&labels, count);
        }
        out.family(&TLS_OPEN).sample(&[], secured.count() as u64);
        self.known.write(&mut out);
        self.write_registration(&mut out);
        self.reports.write(&mut out);
        self.account.lookout().write(&mut out);
        self.account.datagrams().write(&mut out);
        self.account.underway().write(&mut out);
        self.account.comparisons().write(&mut out);
        self.account.colours().write(&mut out);
        self.checks.write(&mut out);
        limits::write(&mut out, &self.plan.load());
        self.leasing.write(&mut out);
        if let Some(certificates) = &self.certificates {
            certificates.metrics(&mut out);
        }
        let role = [("role", "proxy"), ("version", env!("CARGO_PKG_VERSION"))];
        out.family(&BUILD).sample(&role, 1u64);
        process::write(&mut out);
        out.finish()
    }

    fn write_upstream(&self, out: &mut Exposition, edges: &[EdgeTotals]) {
        type Count = fn(&EdgeTotals) -> u64;
        let families: [(&Family, Count); 5] = [
            (&ATTEMPTS, |edge| edge.attempts),
            (&RETRIES, |edge| edge.retries),
            (&CONNECT_FAILURES, |edge| edge.connect_failures),
            (&EJECTIONS, |edge| edge.ejections),
            (&ACTIVE, |edge| edge.active),
        ];
        let names: Vec<(String, &EdgeTotals)> = edges
            .iter()
            .map(|edge| (cluster_text(edge), edge))
            .collect();
        let labels = |name: &str, edge: &EdgeTotals| {
            [
                ("cluster", name.to_owned()),
                ("version", edge.key.version.clone()),
                ("protocol", edge.key.traffic.as_str().to_owned()),
                ("direction", edge.key.direction.as_str().to_owned()),
            ]
        };
        for (family, count) in families {
            let mut samples = out.family(family);
            for (name, edge) in &names {
                let labels = labels(name, edge);
                samples.sample(
                    &labels.each_ref().map(|(key, value)| (*key, value.as_str())),
                    count(edge),
                );
            }
        }
        let mut samples = out.family(&ANSWERS);
        for (name, edge) in &names {
            let labels = labels(name, edge);
            for (reason, count) in &edge.reasons {
                let mut labels = labels
                    .each_ref()
                    .map(|(key, value)| (*key, value.as_str()))
                    .to_vec();
                labels.push(("reason", reason.as_str()));
                samples.sample(&labels, *count);
            }
        }
    }

    fn write_registration(&self, out: &mut Exposition) {
        let Some(registration) = &self.registration else {
            return;
        };
        out.family(&REGISTERED)
            .sample(&[], u64::from(registration.state().is_registered()));
        let counts = registration.counts();
        out.family(&REGISTRATIONS)
            .sample(&[], counts.registrations());
        out.family(&HEARTBEATS).sample(&[], counts.heartbeats());
        out.family(&REGISTRY_FAILURES)
            .sample(&[], counts.failures());
    }

    /// Which connection uses which certificate.
    pub fn connections(&self) -> Value {
        let (open, shown) = self.account.secured().open(CONNECTIONS_SHOWN);
        let now = Instant::now();
        let row = |connection: &SecuredConnection| {
            let peer = connection.peer.as_deref();
            let hex =
                |bytes: [u8; 32]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
            json!({
                "direction": connection.direction.as_str(),
                "address": connection.address.to_string(),
                "peer": peer.map(|peer| peer.id.to_string()),
                "serial": peer.map(|peer| peer.serial.to_string()),
                "fingerprint": peer.map(|peer| hex(peer.fingerprint)),
                "not_after": peer.map(|peer| peer.not_after.as_secs()),
                "protocol": connection.protocol,
                "tls": connection.version,
                "resumed": connection.resumed,
                "age_ms": u64::try_from((now - connection.opened).as_millis()).unwrap_or(u64::MAX),
            })
        };
        let shown: Vec<Value> = shown.iter().map(|connection| row(connection)).collect();
        json!({ "open": open, "connections": shown })
    }

    /// None in plain text.
    pub fn certs(&self) -> Option<Value> {
        self.certificates.as_ref().map(Shown::page)
    }

    pub fn config_dump(&self) -> Value {
        let registration =
            self.registration
                .as_ref()
                .map(|registration| match registration.state() {
                    State::Registered { .. } => "registered",
                    State::Withdrawn { .. } => "withdrawn",
                    State::Unknown => "unknown",
                });
        let configuration = self.known.configuration();
        let held: Vec<Value> = configuration
            .held()
            .iter()
            .map(|((kind, name), held)| resource(*kind, name, held))
            .collect();
        let refused: Vec<Value> = configuration
            .refused()
            .iter()
            .map(|((kind, name), r)| refusal(*kind, name, r))
            .collect();
        json!({
            "node": self.instance.id.to_string(),
            "labels": self.instance.labels,
            "draining": self.is_draining(),
            "inbound": self.inbound.to_string(),
            "outbound": self.outbound.to_string(),
            "control": self.control,
            "connected": self.known.is_connected(),
            "complete": configuration.is_complete(),
            "revision": self.known.revision(),
            "registration": registration,
            "identity": self.certificates.as_ref().map(Shown::line),
            "resources": held,
            "refused": refused,
        })
    }
}

/// Rows of the page of connections, the youngest first.
const CONNECTIONS_SHOWN: usize = 1000;

fn cluster_text(edge: &EdgeTotals) -> String {
    edge.key
        .cluster
        .as_ref()
        .map_or_else(String::new, ToString::to_string)
}

fn resource(kind: Kind, name: &str, held: &Held) -> Value {
    json!({ "kind": kind.as_str(), "name": name, "version": held.version, "resource": dump::resource(&held.resource) })
}

fn refusal(kind: Kind, name: &str, refused: &Refused) -> Value {
    json!({ "kind": kind.as_str(), "name": name, "version": refused.version, "error": refused.message })
}
